import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from melllm_jax import sharding
from melllm_jax.config.model import Lora, Rope
from melllm_jax.errors import Mistake
from melllm_jax.inference.generate import Decoder, prompt_batch
from melllm_jax.inference.sampling import DecodingOptions
from tests.support import models
from tests.support.models import Clip

# Long enough that LongRoPE's long factors hold for the longest prompt and not for the shortest.
LONG = Rope(
    theta=100.0, partial=0.75, short=(1.0, 1.5, 2.0), long=(3.0, 4.0, 8.0), original=24, longest=64
)
RUN = models.run(
    dataclasses.replace(
        models.MODEL,
        front="conv",
        speech="bidirectional",
        rope=LONG,
        remat="none",
        qkv_bias=True,
        qk_norm=True,
    )
)
PROMPTS = [[3, Clip(43), 2], [1, Clip(8), 1], [12], [2, Clip(13), Clip(30), 6]]
LIMITS = np.array([12, 7, 12, 12])
END = 5


def rows():
    return [models.segment(*pieces, seed=i) for i, pieces in enumerate(PROMPTS)]


def attentive(run=RUN):
    """A small model that listens to attention most, so that a wrong mask or angle is heard."""
    skeleton, values = models.made(run)
    return skeleton, values | {
        name: 8 * values[name] for name in ("stack.blocks.attn.o", "stack.blocks.attn.q")
    }


class Tiny:
    """A small model on one device with its decoders, each compiled once."""

    def __init__(self, run=RUN):
        self.skeleton, self.values = attentive(run)
        self.model = self.skeleton.model(self.values)
        self.logits = models.jitted(lambda w, b: (lambda m: m.logits(m(b)))(self.skeleton.model(w)))

    def uncached(self, row, limit):
        """The likeliest tokens after a prompt, the whole sequence computed anew for each."""
        tokens = []
        t = len(row["tokens"])
        for _ in range(limit):
            grown = {
                name: np.concatenate([x, np.zeros((limit, *x.shape[1:]), x.dtype)])
                for name, x in row.items()
            }
            grown["tokens"][t : t + len(tokens)] = tokens
            grown["positions"] = np.arange(t + limit)
            scores = self.logits(self.values, sharding.shard_batch(models.pack([[grown]], 32)))
            tokens.append(int(np.argmax(np.asarray(scores)[0, t + len(tokens) - 1])))
        return tokens


@pytest.fixture(scope="module")
def tiny():
    with models.one_device():
        yield Tiny()


@pytest.fixture(scope="module")
def greedy(tiny):
    """The four prompts in one batch of eight, four of them padding."""
    limits = np.concatenate([LIMITS, np.zeros(4, int)])
    with models.one_device():
        decoder = Decoder(tiny.model, END, DecodingOptions(guard=False))
        found = jax.device_get(decoder(prompt_batch(rows(), 8), limits))
        return found, decoder


def test_cached_tokens_equal_those_of_whole_sequences(tiny, greedy):
    found, _ = greedy
    with models.one_device():
        for i, row in enumerate(rows()):
            expected = tiny.uncached(row, LIMITS[i])
            ended = END in expected
            expected = expected[: expected.index(END)] if ended else expected
            assert found.lengths[i] == len(expected)
            np.testing.assert_array_equal(found.tokens[i, : len(expected)], expected)
            assert found.ended[i] == ended
            assert not found.tokens[i, len(expected) :].any()
    assert not found.lengths[4:].any()
    assert len(np.unique(found.tokens)) > 8  # the model says something


def test_prompts_alone_give_the_tokens_of_the_batch(tiny, greedy):
    """The longest prompt sets the batch's padding; the others stand behind up to 24 of it."""
    found, decoder = greedy
    limits = np.zeros(8, int)
    with models.one_device():
        for i, row in enumerate(rows()):
            limits[:] = 0
            limits[0] = LIMITS[i]
            alone = jax.device_get(decoder(prompt_batch([row], 8), limits))
            np.testing.assert_array_equal(alone.tokens[0], found.tokens[i])
            assert alone.lengths[0] == found.lengths[i]


def test_decoding_on_eight_devices_equals_one(greedy):
    found, _ = greedy
    limits = np.concatenate([LIMITS, np.zeros(4, int)])
    with models.split_as("fsdp4-tp2"):
        skeleton, values = attentive()
        decoder = Decoder(skeleton.model(values), END, DecodingOptions(guard=False))
        split = jax.device_get(decoder(prompt_batch(rows(), 8), limits))
    jax.tree.map(np.testing.assert_array_equal, split, found)


def test_what_is_streamed_grows_to_what_is_given_at_once(tiny, greedy):
    found, decoder = greedy
    limits = np.concatenate([LIMITS, np.zeros(4, int)])
    with models.one_device():
        for every, due in ((1, 12), (5, 3)):
            parts = [
                jax.device_get(part)
                for part in decoder.stream(prompt_batch(rows(), 8), limits, every=every)
            ]
            jax.tree.map(np.testing.assert_array_equal, parts[-1], found)
            assert len(parts) <= due
            for i, part in enumerate(parts):
                longest = min((i + 1) * every, 12)
                np.testing.assert_array_equal(part.lengths, np.minimum(found.lengths, longest))
                np.testing.assert_array_equal(part.tokens[:, :longest], found.tokens[:, :longest])


def test_lora_at_speech_is_in_the_clips_of_prompts_and_in_no_token_after_them(tiny):
    """Cached tokens equal those of whole sequences; of text they are those without LoRA."""
    lora = dataclasses.replace(models.LORA, at="speech")
    prompts, limits = [rows()[i] for i in (0, 2)], np.array([5, 5])
    with models.one_device():
        heard = Tiny(dataclasses.replace(RUN, lora=lora))
        bare = models.made(dataclasses.replace(RUN, lora=Lora()))[0].model(heard.values)
        make = lambda model: Decoder(model, 64, DecodingOptions(guard=False))
        decoder = make(heard.model)
        assert decoder.weights.layers[0].attn.lora is False
        both, text, due = (
            np.asarray(decode(prompt_batch(given, 2), limits).tokens[:, :5])
            for decode, given in (
                (decoder, prompts),
                (decoder, prompts[1:] * 2),
                (make(bare), prompts[1:] * 2),
            )
        )
        np.testing.assert_array_equal(both, [heard.uncached(row, 5) for row in prompts])
        everywhere = tiny.uncached(prompts[1], 5)
    np.testing.assert_array_equal(text, due)
    np.testing.assert_array_equal(both[1], due[1])
    assert due[1].tolist() != everywhere


def test_each_of_several_ends_ends_a_row(tiny, greedy):
    found, _ = greedy
    limits = np.concatenate([LIMITS, np.zeros(4, int)])
    ends = (int(found.tokens[0, 3]), int(found.tokens[2, 1]))
    with models.one_device():
        decoder = Decoder(tiny.model, ends, DecodingOptions(guard=False))
        out = jax.device_get(decoder(prompt_batch(rows(), 8), limits))
    for i in range(4):
        said = found.tokens[i, : found.lengths[i]].tolist()
        due = next((n for n, token in enumerate(said) if token in ends), len(said))
        assert out.lengths[i] == due
        assert out.ended[i] == (due < len(said) or found.ended[i] and END in ends)


def test_a_loop_is_stopped_and_flagged_and_kept():
    """All scores are equal, so the likeliest token is 0, a real one: 12 of it are a loop."""
    run = models.run(dataclasses.replace(models.MODEL, l=1), lora=Lora())
    row = models.segment(4, seed=0)
    limits = np.array([32, 5])
    with models.one_device():
        skeleton, values = models.made(run)
        model = skeleton.model(values | {"embed": jnp.zeros_like(values["embed"])})
        guarded = Decoder(model, END)(prompt_batch([row, row], 2), limits)
        free = Decoder(model, END, DecodingOptions(guard=False))(
            prompt_batch([row, row], 2), limits
        )
        ending = Decoder(model, end=0)(prompt_batch([row, row], 2), limits)
    np.testing.assert_array_equal(guarded.lengths, [12, 5])
    np.testing.assert_array_equal(guarded.looped, [True, False])
    np.testing.assert_array_equal(free.lengths, [32, 5])
    assert not free.looped.any() and not free.ended.any()
    np.testing.assert_array_equal(ending.lengths, [0, 0])
    assert ending.ended.all() and not ending.looped.any()


def test_draws_follow_temperature_and_nucleus_and_repeat_with_their_key():
    """1,024 first tokens after one prompt: a share p of them errs by √(p / 1024), at most 0.03."""
    run = models.run(dataclasses.replace(models.MODEL, l=1), lora=Lora())
    row = models.segment(4, seed=0)
    how = DecodingOptions(temperature=0.5, top_p=0.8, guard=False)
    with models.one_device():
        skeleton, values = models.made(run)
        model = skeleton.model(values)
        decoder, prompt = Decoder(model, 64, how), prompt_batch([row] * 1024, 1024)
        ones = np.ones(1024, int)
        first, again, other = (
            np.asarray(decoder(prompt, ones, jax.random.key(seed)).tokens[:, 0])
            for seed in (0, 0, 1)
        )
        batch = sharding.shard_batch(models.pack([[row]], 4))
        said = models.jitted(lambda model, batch: model.logits(model(batch)))
        scores = np.asarray(said(model, batch), np.float64)[0, 3]
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    share = np.exp(scores / 0.5) / np.exp(scores / 0.5).sum()
    order = np.argsort(-share)
    kept = order[: np.searchsorted(np.cumsum(share[order]), 0.8) + 1]
    assert 3 < len(kept) < 60
    expected = np.zeros(64)
    expected[kept] = share[kept] / share[kept].sum()
    drawn = np.bincount(first, minlength=64) / 1024
    assert not drawn[expected == 0].any()
    np.testing.assert_allclose(drawn, expected, rtol=0, atol=0.05)


@pytest.mark.parametrize(
    ("field", "value", "rule"),
    [("temperature", -0.5, "must be 0 or more"), ("top_p", 0.0, r"must lie in \(0, 1\]")],
)
def test_a_decoding_that_cannot_be_is_refused(field, value, rule):
    with pytest.raises(Mistake, match=f"{field}={value}: {rule}"):
        DecodingOptions(**{field: value})


def test_a_limit_grows_with_the_audio():
    how = DecodingOptions(per_second=10.0, extra=4)
    assert [how.limit(seconds) for seconds in (0.0, 1.0, 1.01)] == [4, 14, 15]


def test_prompts_end_together_behind_padding():
    batch = prompt_batch(rows()[:2], 3)
    assert batch.tokens.shape == (3, 32)
    np.testing.assert_array_equal(batch.segments.sum(axis=1), [11, 3, 0])
    np.testing.assert_array_equal(batch.positions[1, -3:], [0, 1, 2])
    np.testing.assert_array_equal(batch.clips[1, -4:], [0, 0, 1, 0])
    np.testing.assert_array_equal(batch.patches[0, -11:], rows()[0]["patches"])
    assert prompt_batch([models.segment(33, seed=0)], 1).tokens.shape == (1, 48)
    assert prompt_batch([models.segment(49, seed=0)], 1).tokens.shape == (1, 64)
