import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from melllm_jax import sharding
from melllm_jax.config.model import Lora, Rope
from melllm_jax.objectives import next_token
from tests.support import models
from tests.support.models import Clip

LONG = Rope(
    theta=100.0, partial=0.75, short=(1.0, 1.5, 2.0), long=(3.0, 4.0, 8.0), original=16, longest=64
)
KINDS = {
    "linear": {"rope": LONG, "window": 7, "tied": False, "scan": False},
    "conv": {"front": "conv", "speech": "bidirectional", "qkv_bias": True, "qk_norm": True},
}
T = 40
# Lengths 18, 13 and 9: the first takes LongRoPE's long factors, though it stands among short ones.
FIRST = [2, Clip(30), 3, Clip(21), Clip(8), 5]
SECOND = [3, Clip(11), Clip(19), 5]
THIRD = [Clip(1), 4, Clip(16), 2]


class Forward:
    """A model on one device: hidden batches in, logits out, compiled once a shape."""

    def __init__(self, run):
        with models.one_device():
            self.skeleton, self.values = models.made(run)
        self.logits = models.jitted(lambda w, b: (lambda m: m.logits(m(b)))(self.skeleton.model(w)))
        self.loss = models.jitted(
            lambda w, b: next_token.next_token_loss(self.skeleton.model(w), b)
        )

    def __call__(self, batch):
        with models.one_device():
            return np.asarray(self.logits(self.values, sharding.shard_batch(batch)))


@pytest.fixture(scope="module", params=KINDS)
def forward(request):
    model = dataclasses.replace(models.MODEL, **KINDS[request.param])
    return Forward(models.run(model, t=T))


def packed(seed=1):
    """Row 0 packs three examples; rows 1 to 3 hold each alone; `seed` is the second's."""
    parts = [
        models.segment(*pieces, seed=s) for pieces, s in ((FIRST, 0), (SECOND, seed), (THIRD, 2))
    ]
    return models.pack([parts, *([part] for part in parts)], T)


PLACES = [slice(0, 18), slice(18, 31), slice(31, 40)]  # of the three examples in row 0


def test_a_packed_row_equals_its_examples_alone(forward):
    """float32: sums in the same order, or in another where XLA tiles rows differently."""
    logits = forward(packed())
    for alone, here in zip(logits[1:], PLACES, strict=True):
        length = here.stop - here.start
        np.testing.assert_allclose(logits[0, here], alone[:length], rtol=0, atol=1e-5)


def test_a_packed_rows_loss_is_the_sum_of_its_examples_losses(forward):
    batch = packed()
    only = lambda rows: batch._replace(
        loss_weight=np.where(np.isin(np.arange(4), rows)[:, None], batch.loss_weight, 0)
    )
    with models.one_device():
        row, alone = (
            forward.loss(forward.values, sharding.shard_batch(only(rows)))
            for rows in ([0], [1, 2, 3])
        )
    assert float(row.weight) > 5
    row, alone = (jax.tree.leaves(jax.device_get(sums)) for sums in (row, alone))
    np.testing.assert_allclose(row, alone, rtol=1e-5)


def test_a_neighbour_of_other_content_leaves_a_segment_bit_identical(forward):
    before, after = forward(packed())[0], forward(packed(seed=9))[0]
    for here in (PLACES[0], PLACES[2]):
        np.testing.assert_array_equal(before[here], after[here])
    assert np.abs(before[PLACES[1]] - after[PLACES[1]]).max() > 0.1


# Who is reached from where: row i, column j is drawn # where position i reads position j. One
# layer, so that what a position reads is what it sees. Two words, a clip of two patches beside a
# clip of three, one word.
CAUSAL = """
    #.......
    ##......
    ###.....
    ####....
    #####...
    ######..
    #######.
    ########
"""
WINDOW_OF_3 = """
    #.......
    ##......
    ###.....
    .###....
    ..###...
    ...###..
    ....###.
    .....###
"""
BOTH_WAYS = """
    #.......
    ##......
    ####....
    ####....
    #######.
    #######.
    #######.
    ########
"""


@pytest.mark.parametrize(
    ("changes", "drawn"),
    [
        ({"front": "conv"}, CAUSAL),
        ({"window": 3}, WINDOW_OF_3),
        ({"front": "conv", "speech": "bidirectional"}, BOTH_WAYS),
    ],
)
def test_a_position_is_reached_by_those_it_may_see_and_by_no_other(changes, drawn):
    forward = Forward(models.run(dataclasses.replace(models.MODEL, l=1, **changes)))
    example = models.segment(2, Clip(16), Clip(21), 1, seed=0)
    others = []
    for j in range(8):
        other = {name: column.copy() for name, column in example.items()}
        other["tokens"][j] = (other["tokens"][j] + 7) % 64
        other["patches"][j] *= -1.5
        others.append([other])
    logits = forward(models.pack([[example], *others], 8))
    moved = np.abs(logits[1:] - logits[:1]).max(axis=-1).T  # [reached, changed]
    expected = np.array([[cell == "#" for cell in row] for row in drawn.split()])
    assert moved[~expected].max() < 1e-6
    assert moved[expected].min() > 1e-4


def test_gradients_of_a_position_are_zero_at_every_later_patch():
    run = models.run(dataclasses.replace(models.MODEL, front="conv"))
    forward = Forward(run)
    batch = models.pack([[models.segment(1, Clip(40), 2, seed=0)]], 8)

    def third(patches, rest):
        model = forward.skeleton.model(forward.values)
        squares = jnp.square(model(rest._replace(patches=patches))).sum(axis=-1)
        return jnp.sum(squares * (jnp.arange(8) == 3)[None])

    with models.one_device():
        placed = sharding.shard_batch(batch)
        grad = models.jitted(jax.grad(third))(placed.patches, placed)
    reached = np.abs(grad[0]).max(axis=-1)
    np.testing.assert_array_equal(reached > 1e-6, [False, True, True, True] + [False] * 4)
    assert not reached[4:].any()


def test_weights_of_bfloat16_are_never_promoted_silently():
    """Strict promotion raises where two dtypes meet without a cast."""
    model = dataclasses.replace(models.MODEL, front="conv", rope=LONG, l=1)
    run = models.run(model, lora=dataclasses.replace(models.LORA, dropout=0.1, at="speech"))

    def loss(values, batch):
        model = skeleton.model(values, jnp.dtype("bfloat16"))
        return next_token.next_token_loss(model, batch, jax.random.key(0))

    with models.one_device(), jax.numpy_dtype_promotion("strict"):
        skeleton, values = models.made(run)
        batch = sharding.shard_batch(models.speech_rows(2, 32))
        sums, grads = jax.eval_shape(jax.value_and_grad(lambda w, b: loss(w, b)[0]), values, batch)
        hidden = jax.eval_shape(
            lambda w, b: skeleton.model(w, jnp.dtype("bfloat16"))(b), values, batch
        )
    assert hidden.dtype == jnp.bfloat16
    assert sums.dtype == jnp.float32
    assert {x.dtype for x in grads.values()} == {jnp.dtype("float32")}


def test_dropout_changes_the_output_only_where_a_key_is_given():
    lora = dataclasses.replace(models.LORA, dropout=0.5)
    run = models.run(dataclasses.replace(models.MODEL, l=1), lora=lora)
    with models.one_device():
        skeleton, values = models.made(run)
        batch = sharding.shard_batch(models.speech_rows(2, 32))
        model = models.jitted(lambda w, b, key: skeleton.model(w)(b, key))
        still, again, other = (
            np.asarray(model(values, batch, jax.random.key(seed))) for seed in (0, 0, 1)
        )
        plain = np.asarray(models.jitted(lambda w, b: skeleton.model(w)(b))(values, batch))
    np.testing.assert_array_equal(still, again)
    assert np.abs(still - other).max() > 0.01
    assert np.abs(still - plain).max() > 0.01


def text_and_speech(t=24):
    """Eight rows: text alone, two segments of it, where the number is odd; else with a clip."""
    texts = [[models.segment(9, seed=i), models.segment(5, seed=i + 9)] for i in range(8)]
    clips = [[models.segment(3, Clip(40), 5, seed=i)] for i in range(8)]
    return models.pack([texts[i] if i % 2 else clips[i] for i in range(8)], t)


@pytest.mark.parametrize("split", [None, "fsdp2-seq2-tp2"])
def test_lora_at_speech_leaves_rows_of_text_bit_equal_to_those_without_it(split):
    """In every layer, beside rows with a clip, whose positions up to it stay as they were too."""
    model = dataclasses.replace(models.MODEL, front="conv", speech="bidirectional")
    with models.one_device() if split is None else models.split_as(split):
        batch, found = sharding.shard_batch(text_and_speech()), []
        at_speech = dataclasses.replace(models.LORA, at="speech")
        values = models.made(models.run(model))[1]
        for lora in (at_speech, Lora()):
            skeleton = models.made(models.run(model, lora))[0]
            run = models.jitted(lambda m, b: (m.hidden(b), m.logits(m(b))))
            found.append(jax.device_get(run(skeleton.model(values), batch)))
    for speech, none in zip(*found, strict=True):
        speech, none = (np.moveaxis(x, -3, 0) for x in (speech, none))
        np.testing.assert_array_equal(speech[1::2], none[1::2])
        np.testing.assert_array_equal(speech[::2, ..., :3, :], none[::2, ..., :3, :])
        assert np.abs(speech - none).max(axis=-1)[::2, ..., 3:13].min() > 1e-3


def test_lora_at_speech_learns_from_positions_of_speech_alone():
    """Of its inputs and outputs elsewhere nothing reaches its gradient: here there is no speech."""
    run = models.run(lora=dataclasses.replace(models.LORA, at="speech"))
    with models.one_device():
        _, grads = models.graded(run, models.pack([[models.segment(9, seed=1)]], 12))
    lora = {name: np.abs(x).max() for name, x in grads.items() if "_lora." in name}
    assert len(lora) == 4 + 7
    assert not any(lora.values())
    assert np.abs(grads["stack.blocks.attn.q"]).max() > 0


def test_a_layer_taken_apart_equals_its_share_of_the_stack():
    run = models.run(lora=Lora())
    with models.one_device():
        skeleton, values = models.made(run)
        stack = skeleton.model(values).stack
        for i in range(2):
            layer = stack.layer(i)
            np.testing.assert_array_equal(layer.attn.q[...], values["stack.blocks.attn.q"][i])
            np.testing.assert_array_equal(layer.mlp.down[...], values["stack.blocks.mlp.down"][i])


def test_a_model_without_a_front_end_reads_text_alone():
    """It has no weights for sound, and its logits are those of the same model with one."""
    silent = models.run(dataclasses.replace(models.MODEL, front="none"))
    with models.one_device():
        skeleton, values = models.made(silent)
        assert not any(name.startswith("front.") for name in values)
        other, more = models.made(models.run())
        batch = sharding.shard_batch(models.pack([[models.segment(9, seed=1)]], 12))
        run = models.jitted(lambda model, b: model.logits(model(b)))
        mine = run(skeleton.model(values), batch)
        theirs = run(other.model({**more, **values}), batch)
    np.testing.assert_array_equal(mine, theirs)
