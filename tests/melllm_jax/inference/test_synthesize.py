"""Speech row by row: as training has it, the same in any batch, and ended as it should be."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from melllm_jax import sharding
from melllm_jax.errors import Mistake
from melllm_jax.inference.generate import prompt_batch
from melllm_jax.inference.synthesize import Speaker, SpeakingOptions
from melllm_jax.nn.noise import normal, row_draw
from tests.melllm_jax.objectives.test_next_patch import MODEL
from tests.support import models
from tests.support.models import MEL, Clip

# One layer: tests/melllm_jax/inference/test_generate.py holds that each has a cache of its own.
RUN = models.run(dataclasses.replace(MODEL, remat="none", l=1))
PROMPTS = [[5], [3, Clip(16), 2], [4, Clip(24, written=True)]]
LIMITS, SEEDS = np.array([9, 6, 7]), np.array([11, 12, 13])
NEVER = SpeakingOptions(stop=1 - 1e-9)


class Tiny:
    """A small model that speaks, and its prompts."""

    def __init__(self):
        self.skeleton, self.values = models.made(RUN)
        self.model = self.skeleton.model(self.values)
        self.rows = [models.segment(*pieces, seed=i) for i, pieces in enumerate(PROMPTS)]
        self.speaker = Speaker(self.model, NEVER)

    def said(self, chosen, options=None, seeds=SEEDS):
        """What chosen prompts give, as NumPy, of four rows: one program for all."""
        speaker = Speaker(self.model, options) if options else self.speaker
        prompt = prompt_batch([self.rows[i] for i in chosen], 4)
        more = np.zeros(4 - len(chosen), int)
        limits, own = (np.concatenate([x[list(chosen)], more]) for x in (LIMITS, seeds))
        return jax.device_get(speaker(prompt, limits, own))


@pytest.fixture(scope="module")
def tiny():
    with models.one_device():
        yield Tiny()


def test_patches_are_those_of_one_pass_over_the_whole_sequence(tiny):
    """The prompts and what was written, read at once with the same draws, give the same patches."""
    found = tiny.said([0, 1, 2])
    rows, longest = [], 0
    for i, row in enumerate(tiny.rows):
        n, start = LIMITS[i], len(row["tokens"])
        columns = {
            name: np.concatenate([x, np.zeros((n, *x.shape[1:]), x.dtype)])
            for name, x in row.items()
        }
        columns["patches"][start:] = found.patches[i, :n]
        columns["clips"][start:], columns["frames"][start:] = -9, MEL.r
        columns["positions"] = np.arange(start + n)
        rows.append([columns])
        longest = max(longest, start + n)
    batch = sharding.shard_batch(models.pack(rows, longest))

    def written(values, batch):
        model = tiny.skeleton.model(values)
        draw = row_draw(jnp.asarray(SEEDS), batch.positions)
        inputs = model.inputs(batch, draw)
        context = model._stack_inputs(batch)[1]
        hidden = model.norm(model.stack(inputs, context))
        return model.mel_head.latent(hidden, draw)

    whole = jax.device_get(models.jitted(written)(tiny.values, batch))
    for i, row in enumerate(tiny.rows):
        n = LIMITS[i]
        here = slice(len(row["tokens"]) - 1, len(row["tokens"]) - 1 + n)
        np.testing.assert_allclose(found.patches[i, :n], whole.patch[i, here], atol=2e-4, rtol=1e-4)
        stops = 1 / (1 + np.exp(-whole.stop[i, here]))
        np.testing.assert_allclose(found.stops[i, :n], stops, atol=1e-5)


def test_a_batch_equals_its_rows_alone_and_padding_says_nothing(tiny):
    together = tiny.said([0, 1, 2])
    for i in range(3):
        alone, n = tiny.said([i]), LIMITS[i]
        np.testing.assert_allclose(together.patches[i, :n], alone.patches[0, :n], atol=2e-4)
    np.testing.assert_array_equal(together.lengths, [*LIMITS, 0])
    assert not together.patches[3].any()
    assert not together.stopped.any()


def test_equal_seeds_are_equal_to_the_bit_and_others_differ(tiny):
    first, second = (tiny.said([0, 1]) for _ in range(2))
    np.testing.assert_array_equal(first.patches, second.patches)
    other = tiny.said([0, 1], seeds=SEEDS + 1)
    assert np.abs(other.patches[:, 0] - first.patches[:, 0]).max() > 1e-2


def test_temperature_scales_the_draw_and_0_takes_the_mean(tiny):
    """At 0 what is left to chance is the pre-net's dropout, which the first patch has not."""
    options = dataclasses.replace(NEVER, temperature=0.0)
    calm = [tiny.said([0], options, SEEDS + n) for n in (0, 1)]
    np.testing.assert_array_equal(calm[0].patches[0, 0], calm[1].patches[0, 0])
    assert np.abs(calm[0].patches[0, 1] - calm[1].patches[0, 1]).max() > 1e-4


def test_a_row_ends_with_the_patch_whose_stop_is_likely(tiny):
    free = tiny.said([0, 1, 2])
    stops = free.stops[0, : LIMITS[0]]
    end = int(np.argmax(stops[:-1]))
    found = tiny.said([0, 1, 2], SpeakingOptions(stop=float(stops[end]) * 0.999))
    first = int(np.argmax(stops > stops[end] * 0.999))
    assert found.lengths[0] == first + 1
    assert found.stopped[0]
    np.testing.assert_array_equal(found.patches[0, first + 1 :], 0.0)


def test_a_row_that_is_not_finite_ends_flagged_and_others_go_on(tiny):
    """A prompt of NaN stands for a model that overflows."""
    row = {name: column.copy() for name, column in tiny.rows[2].items()}
    row["patches"][-1] = np.nan
    prompt = prompt_batch([tiny.rows[0], row], 4)
    limits, seeds = (np.array([x[0], x[2], 0, 0]) for x in (LIMITS, SEEDS))
    found = jax.device_get(tiny.speaker(prompt, limits, seeds))
    np.testing.assert_array_equal(found.broken, [False, True, False, False])
    np.testing.assert_array_equal(found.lengths, [LIMITS[0], 0, 0, 0])
    assert np.isfinite(found.patches).all()
    np.testing.assert_allclose(
        found.patches[0, : LIMITS[0]], tiny.said([0]).patches[0, : LIMITS[0]], atol=2e-4
    )


def test_a_stream_gives_what_the_whole_gives(tiny):
    prompt = prompt_batch([tiny.rows[0]], 4)
    limits, seeds = (np.array([x[0], 0, 0, 0]) for x in (LIMITS, SEEDS))
    parts = list(tiny.speaker.stream(prompt, limits, seeds, every=4))
    assert len(parts) == 3
    np.testing.assert_array_equal(jax.device_get(parts[-1].patches), tiny.said([0]).patches)


def test_refined_patches_are_the_post_nets_of_each_row_alone(tiny):
    found = tiny.said([0, 1])
    refined = tiny.speaker.refine(found)
    n = LIMITS[1]
    ones = jnp.ones((1, n), jnp.int32)
    alone = models.jitted(lambda head, x: head.refine(x, ones, ones * MEL.r))
    own = alone(tiny.model.mel_head, jnp.asarray(found.patches[1:2, :n]))
    np.testing.assert_allclose(refined[1, :n], own[0], atol=1e-5)
    assert not refined[1, n:].any()


@functools.cache
def causal():
    """A speaker whose post-net reads no later frame, a prompt, and the row after it, refined."""
    head = dataclasses.replace(MODEL.mel_head, causal=True, convolutions=2, taps=5)
    run = models.run(dataclasses.replace(RUN.model, mel_head=head))
    skeleton, values = models.made(run)
    speaker = Speaker(skeleton.model(values), NEVER)
    prompt = prompt_batch([models.segment(5, seed=0)], 1)
    whole = speaker.refine(speaker(prompt, LIMITS[:1], SEEDS[:1]))[0, : LIMITS[0]]
    return speaker, prompt, whole


@pytest.mark.parametrize("every", [1, 4])
def test_a_row_streamed_through_a_causal_post_net_is_that_row_refined(every):
    with models.one_device():
        speaker, prompt, whole = causal()
        given = int(LIMITS[0]), int(SEEDS[0]), every
        parts = [patches for patches, _ in speaker.stream_row(prompt, *given)]
    assert len(parts) == -(-LIMITS[0] // every)
    np.testing.assert_allclose(np.concatenate(parts), whole, atol=1e-5)


def test_a_post_net_that_reads_later_frames_cannot_stream(tiny):
    prompt = prompt_batch([tiny.rows[0]], 1)
    with pytest.raises(Mistake, match="model.mel_head.causal=False: its post-net reads later"):
        next(tiny.speaker.stream_row(prompt, 3, 1, 1))


def test_draws_depend_on_seed_and_position_alone_and_are_normal():
    seeds, positions = jnp.array([5, 6]), jnp.broadcast_to(jnp.arange(400), (2, 400))
    with models.one_device():
        draw = lambda seeds, positions, which, x: row_draw(seeds, positions)(which, x)
        draw = jax.jit(draw, static_argnums=2)
        whole, other = (draw(seeds, positions, which, jnp.zeros((2, 400, 50))) for which in (1, 2))
        part = draw(seeds[1:], positions[1:, 7:9], 1, jnp.zeros((1, 2, 50)))
    np.testing.assert_array_equal(part[0], whole[1, 7:9])
    assert abs(np.corrcoef(np.ravel(whole), np.ravel(other))[0, 1]) < 0.02
    drawn = np.asarray(jax.jit(normal)(whole))
    assert np.isfinite(drawn).all()
    assert abs(drawn.mean()) < 0.02
    assert drawn.std() == pytest.approx(1.0, abs=0.02)
    assert abs(np.corrcoef(drawn[0].ravel(), drawn[1].ravel())[0, 1]) < 0.03


def test_limits_grow_with_the_text():
    assert SpeakingOptions(per_letter=0.1, extra=1.0).limit("a" * 20, 0.04) == 75
    for name, value, rule in (
        ("stop", 1.0, "must lie between 0 and 1"),
        ("temperature", -1.0, "must be 0 or more"),
        ("extra", -1.0, "must be 0 or more seconds"),
    ):
        with pytest.raises(Mistake, match=f"{name}={value}: {rule}"):
            SpeakingOptions(**{name: value})
