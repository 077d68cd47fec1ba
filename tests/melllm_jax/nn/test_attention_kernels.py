"""Every kernel equals the reference, mask by mask and mesh by mesh."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from melllm_jax import sharding
from melllm_jax.config.run import Mesh
from melllm_jax.errors import Mistake
from melllm_jax.nn import attention, attention_kernels
from melllm_jax.nn.attention import PositionIds
from tests.support import models

RULES = {
    "causal": {"window": 0, "both_ways": False},
    "window": {"window": 5, "both_ways": False},
    "both ways": {"window": 0, "both_ways": True},
    "both ways, window": {"window": 5, "both_ways": True},
}
T, N, K, H = 512, 4, 2, 8  # splash wants tiles of 128 queries on each of four devices
SPLITS = {
    "one": Mesh(fsdp=1),
    "rows and heads": Mesh(fsdp=4, tp=2),
    "time": Mesh(fsdp=2, seq=2, tp=2),
    "more time": Mesh(replica=2, fsdp=1, seq=4),
}


@functools.cache
def rows():
    """Four packed rows: segments, clips side by side and across a border, padding at the end."""
    parts = [
        [models.segment(3, models.Clip(300), models.Clip(500), 9, seed=1), clip_first(2)],
        [models.segment(70, models.Clip(80), 20, seed=3)],
        [models.segment(60, models.Clip(600), seed=4), clip_first(5), clip_first(6)],
        [models.segment(1, models.Clip(900), 30, seed=7)],
    ]
    return models.pack(parts, T)


def clip_first(seed):
    """A segment that begins with its clip 1, as the one before may end with its own."""
    return models.segment(models.Clip(90), 4, seed=seed)


def place():
    batch = rows()
    return PositionIds(*(jnp.asarray(x) for x in (batch.segments, batch.positions, batch.clips)))


def split_as(name):
    mesh = SPLITS[name]
    size = max(mesh.fsdp, 1) * mesh.replica * mesh.seq * mesh.tp
    return jax.set_mesh(sharding.make_mesh(mesh, jax.devices()[:size]))


@pytest.mark.parametrize("rules", RULES)
def test_spans_are_what_the_rule_says(rules):
    with split_as("one"):
        seen = np.asarray(attention.visibility_mask(place(), place(), **RULES[rules]))
        span = attention_kernels.visible_ranges(place(), **RULES[rules])
    index = np.arange(T)
    first, last = (np.asarray(x)[..., None] for x in span[1:])
    real = rows().segments > 0
    assert (~real).any() and real.any()
    found = (first <= index) & (index <= last)
    np.testing.assert_array_equal(found[real], seen[real])
    np.testing.assert_array_equal(found[~real], np.eye(T, dtype=bool)[np.where(~real)[1]])


@functools.cache
def vectors():
    rng = np.random.default_rng(0)
    draw = lambda heads: rng.standard_normal((4, T, heads, H)).astype(np.float32)
    return draw(N), draw(K), draw(K), draw(N)


def graded(how, rules, split):
    """What a kernel gives at real positions, and its gradients by q, k and v."""
    with split_as(split):
        here = lambda dims: jax.NamedSharding(jax.sharding.get_mesh(), sharding.a(dims))
        put = lambda x, dims: jax.device_put(x, here(dims))
        q, k, v, weights = (
            put(x, dims)
            for x, dims in zip(vectors(), ("b t n h", "b t k h", "b t k h", "b t n h"), strict=True)
        )
        places = PositionIds(*(put(x, "b t") for x in place()))

        @jax.jit
        def both(q, k, v):
            if how == "whole":
                seen = attention.visibility_mask(places, places, **rules)
                see = lambda q, k, v: attention.attend(q, k, v, seen)
            else:
                see = attention_kernels.make_attend_fn(
                    how, attention_kernels.visible_ranges(places, **rules), **rules
                )
            real = (places.segments > 0)[..., None, None]
            found = lambda q, k, v: jnp.where(real, see(q, k, v), 0.0)
            y, back = jax.vjp(found, q, k, v)
            return y, back(weights)

        return jax.device_get(both(q, k, v))


@functools.cache
def reference(rules):
    return graded("whole", RULES[rules], "one")


# Splash alone computes by the rules: whether they have a window, and whether its tiles are those
# of causal rows, which they are where time is whole; how far a clip's positions see is their range.
# The others' mask is of the ranges, which are tested above, but that cuDNN's is told to be causal
# where splash's tiles are. Each axis of a mesh splits all kernels alike.
CASES = {
    "splash": [
        ("one", "window"),
        ("one", "both ways, window"),
        ("rows and heads", "causal"),
        ("time", "causal"),
        ("more time", "window"),
    ],
    "blocks": [("one", "both ways, window"), ("time", "causal")],
    "cudnn": [
        ("one", "causal"),
        ("one", "both ways, window"),
        ("time", "causal"),
        ("more time", "window"),  # fails where it is told to be causal and time is not whole
    ],
}


@pytest.mark.parametrize(
    ("how", "split", "rules"),
    [(how, *case) for how, cases in CASES.items() for case in cases],
)
def test_a_kernel_equals_the_reference(how, split, rules):
    """Sums of up to 512 float32 terms in another order: within 1e-5, of size 1 to 10."""
    y, grads = graded(how, RULES[rules], split)
    expected, expected_grads = reference(rules)
    np.testing.assert_allclose(y, expected, rtol=0, atol=1e-5)
    for grad, same in zip(grads, expected_grads, strict=True):
        np.testing.assert_allclose(grad, same, rtol=0, atol=1e-5 * np.abs(same).max())


@pytest.mark.parametrize(
    ("platform", "t", "dtype", "expected"),
    [
        ("tpu", 4096, "bfloat16", "splash"),
        ("tpu", 4096, "float32", "splash"),
        ("tpu", 192, "bfloat16", "whole"),
        ("tpu", 1120, "bfloat16", "blocks"),
        ("cuda", 4096, "bfloat16", "cudnn"),
        ("cuda", 4096, "float32", "blocks"),
        ("cpu", 1024, "float32", "whole"),
        ("cpu", 2048, "float32", "blocks"),
        (None, 4096, "bfloat16", "blocks"),
    ],
)
def test_auto_takes_what_the_platform_has(platform, t, dtype, expected):
    device = platform and jax.sharding.AbstractDevice(
        device_kind=platform, num_cores=1, platform=platform
    )
    mesh = jax.sharding.AbstractMesh(
        (1,) * 4, sharding.AXES, (jax.sharding.AxisType.Explicit,) * 4, abstract_device=device
    )
    with jax.sharding.use_abstract_mesh(mesh):
        assert attention_kernels.choose_kernel("auto", t, dtype) == expected
        assert attention_kernels.choose_kernel("blocks", t, dtype) == "blocks"


def test_splash_under_a_window_refuses_rows_whose_indices_it_could_not_pack():
    def see(q, row):
        q, row = jax.reshard(q, sharding.a("b t n h")), jax.reshard(row, sharding.a("b t"))
        span = attention_kernels.VisibleRange(row, row, row)
        return attention_kernels.make_attend_fn("splash", span, window=512, both_ways=False)(
            q, q, q
        )

    x = jax.ShapeDtypeStruct((1, 2**16, 2, 128), jnp.float32)
    row = jax.ShapeDtypeStruct((1, 2**16), jnp.int32)
    with split_as("one"), pytest.raises(Mistake, match=r"data\.t=65536: .*32768"):
        jax.eval_shape(see, x, row)
