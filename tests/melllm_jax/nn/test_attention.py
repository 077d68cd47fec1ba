import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from melllm_jax import sharding
from melllm_jax.nn import attention
from melllm_jax.nn.attention import PositionIds
from tests.support import models

# Two segments and padding; the first holds two clips side by side between its words.
SEGMENTS = [1, 1, 1, 1, 1, 1, 2, 2, 2, 0, 0]
POSITIONS = [0, 1, 2, 3, 4, 5, 0, 1, 2, 0, 0]
CLIPS = [0, 1, 1, 2, 2, 0, 0, 1, 1, 0, 0]

CAUSAL = """
    #..........
    ##.........
    ###........
    ####.......
    #####......
    ######.....
    ......#....
    ......##...
    ......###..
"""
WINDOW_OF_2 = """
    #..........
    ##.........
    .##........
    ..##.......
    ...##......
    ....##.....
    ......#....
    ......##...
    .......##..
"""
BOTH_WAYS = """
    #..........
    ###........
    ###........
    #####......
    #####......
    ######.....
    ......#....
    ......###..
    ......###..
"""


@pytest.fixture(autouse=True)
def mesh():
    with models.one_device():
        yield


def place():
    return PositionIds(*(jnp.asarray([x], jnp.int32) for x in (SEGMENTS, POSITIONS, CLIPS)))


@pytest.mark.parametrize(
    ("window", "both_ways", "drawn"),
    [(0, False, CAUSAL), (2, False, WINDOW_OF_2), (0, True, BOTH_WAYS)],
)
def test_a_position_sees_its_own_segment_as_drawn(window, both_ways, drawn):
    seen = attention.visibility_mask(place(), place(), window=window, both_ways=both_ways)[0]
    expected = [[cell == "#" for cell in row] for row in drawn.split()]
    np.testing.assert_array_equal(seen[:9], expected)


def test_padding_sees_no_segment_and_something():
    """A softmax over nothing would be a mean over what must not be read."""
    seen = np.asarray(attention.visibility_mask(place(), place(), window=0, both_ways=True)[0])
    assert not seen[9:, :9].any()
    assert seen[9:].any(axis=1).all()


def test_a_window_that_reaches_past_its_row_is_causal():
    seen = attention.visibility_mask(place(), place(), window=99, both_ways=False)
    np.testing.assert_array_equal(
        seen, attention.visibility_mask(place(), place(), window=0, both_ways=False)
    )


@pytest.mark.parametrize("k", [1, 2, 4])
def test_attend_equals_a_loop_over_heads_and_positions(k):
    b, t, n, h = 2, 5, 4, 8
    rng = np.random.default_rng(0)
    q, keys, values = (
        rng.standard_normal(shape).astype(np.float32)
        for shape in ((b, t, n, h), (b, t, k, h), (b, t, k, h))
    )
    seen = np.tril(np.ones((t, t), bool))[None].repeat(b, axis=0)
    y = np.asarray(attention.attend(*map(jnp.asarray, (q, keys, values, seen))))
    for i in range(b):
        for head in range(n):
            shared = head * k // n  # heads 0 and 1 of 4 share head 0 of 2
            for at in range(t):
                scores = keys[i, : at + 1, shared] @ q[i, at, head] / math.sqrt(h)
                share = np.exp(scores - scores.max())
                expected = share / share.sum() @ values[i, : at + 1, shared]
                np.testing.assert_allclose(y[i, at, head], expected, rtol=0, atol=1e-5)


def test_attend_of_bfloat16_keeps_its_scores_in_float32():
    """Scores 128.5 and 128 differ; bfloat16 rounds both to 128 and would share evenly."""
    q = np.array([2.0, 1.0, 0.0, 0.0]).reshape(1, 1, 1, 4)  # over √4: 1 and 1/2
    keys = np.array([[128.0, 1.0, 0.0, 0.0], [128.0, 0.0, 0.0, 0.0]]).reshape(1, 2, 1, 4)
    values = np.array([[1.0] * 4, [0.0] * 4]).reshape(1, 2, 1, 4)
    short = (jnp.asarray(x, jnp.bfloat16) for x in (q, keys, values))
    y = attention.attend(*short, jnp.ones((1, 1, 2), bool))
    assert y.dtype == jnp.bfloat16
    assert float(y[0, 0, 0, 0]) == pytest.approx(1 / (1 + np.exp(-0.5)), rel=2**-8)


@pytest.mark.parametrize(("queries", "heads"), [(4, 1), (4, 2), (6, 5), (250, 1)])
def test_attention_to_all_is_attention_without_a_mask(monkeypatch, queries, heads):
    """Six queries in pieces of three, or at once; heads of both rows by one, two and three."""
    monkeypatch.setattr(attention, "QUERIES", queries)
    monkeypatch.setattr(attention, "HEADS", heads)
    rng = np.random.default_rng(0)
    q, k, v = (rng.normal(size=(2, t, 3, 4)).astype(np.float32) for t in (6, 5, 5))
    with models.one_device():
        expected = attention.attend(*on_devices(q, k, v), jnp.ones((2, 6, 5), bool))
        found = models.jitted(attention.attend_all)(*on_devices(q, k, v))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


def on_devices(*arrays):
    return [jax.device_put(x, sharding.a("b t n h")) for x in arrays]
