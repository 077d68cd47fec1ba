"""Transcripts with a cache: alone or in a batch, on one device or several, and what never comes."""

import dataclasses

import jax
import numpy as np
import pytest

from melllm_jax.convert.hf_config.whisper_config import whisper_spec
from melllm_jax.inference.sampling import GREEDY_UNGUARDED
from melllm_jax.inference.whisper_generate import WhisperGenerator
from melllm_jax.models.whisper import WhisperModel
from tests.support import models
from tests.support.whisper_files import EN, GENERATION, POSITIONS, TREE, M

LAYERS = {"encoder_layers": 1, "decoder_layers": 2}
SPEC = whisper_spec(TREE | LAYERS, GENERATION, "config.json")
ROOM = SPEC.rules.longest - SPEC.rules.prompt_length
MELS = 3 * np.random.default_rng(0).normal(size=(4, 2 * POSITIONS, M)).astype(np.float32)


def made(spec=SPEC):
    """A small model on the mesh in force, its weights the same on each and none at rest.

    It hears more than it remembers, so that rows and places differ.
    """
    skeleton, weights = models.drawn(lambda rngs: WhisperModel(rngs, spec))
    for name in ("decoder.positions", "decoder.blocks.cross.o", "decoder.blocks.cross.q"):
        weights[name] = 8 * weights[name]
    return skeleton.model(weights)


def said(generator, mels, limits=None):
    limits = np.full(len(mels), ROOM) if limits is None else np.array(limits)
    out = jax.device_get(generator(mels, limits))
    return [row[:n].tolist() for row, n in zip(out.tokens, out.lengths, strict=True)], out


@pytest.fixture(scope="module")
def alone():
    """What generates on one device, and what it says of all windows."""
    with models.one_device():
        generator = WhisperGenerator(made(), GREEDY_UNGUARDED)
        return generator, said(generator, MELS)[0]


def uncached(model, mel):
    """The likeliest tokens after a prompt in English, all computed anew for each."""
    rules = model.spec.rules
    logits = models.jitted(lambda model, mels, tokens: model(mels, tokens))
    start, *rest = rules.prompt
    tokens = [start, EN, *rest]
    length = len(tokens)
    for _ in range(ROOM):
        padded = np.pad(tokens, (0, rules.longest - len(tokens)))[None].astype(np.int32)
        scores = np.array(logits(model, mel[None], padded))[0, len(tokens) - 1]
        scores[list(rules.suppressed)] = -np.inf
        if len(tokens) == length:
            scores[list(rules.suppressed_first)] = -np.inf
        token = int(scores.argmax())
        if token in rules.ends:
            break
        tokens.append(token)
    return tokens[length:]


@pytest.mark.slow  # transformers' own generate, in tests/parity, is held against it by default
def test_cached_tokens_are_those_of_the_whole_sequence_computed_anew():
    rules = dataclasses.replace(SPEC.rules, languages=(EN,))
    with models.one_device():
        model = made(dataclasses.replace(SPEC, rules=rules))
        generator = WhisperGenerator(model, GREEDY_UNGUARDED)
        assert said(generator, MELS[:1])[0] == [uncached(model, MELS[0])]


def test_a_batch_says_what_each_row_says_alone(alone):
    """Alone it is the only row that has a limit, beside windows that say something else."""
    generator, every = alone
    assert len(set(map(tuple, every))) > 1
    with models.one_device():
        for i, (mel, tokens) in enumerate(zip(MELS, every, strict=True)):
            others = -MELS
            others[i] = mel
            found, _ = said(generator, others, np.where(np.arange(len(MELS)) == i, ROOM, 0))
            assert found[i] == tokens
            assert not any(found[:i] + found[i + 1 :])


def test_several_devices_say_what_one_says(alone, mesh):
    assert said(WhisperGenerator(made(), GREEDY_UNGUARDED), MELS)[0] == alone[1]


def test_limits_are_kept_row_by_row_and_none_is_padding(alone):
    generator, every = alone
    with models.one_device():
        found, out = said(generator, MELS, [2, 0, 3, 1000])
    assert [len(row) for row in found] == [2, 0, 3, len(every[3])]
    assert found[3] == every[3]
    assert [row[: len(x)] for row, x in zip(every, found, strict=True)] == found
    assert not out.ended[:3].any()


def test_tokens_that_are_suppressed_never_come(alone):
    generator, every = alone
    likely = tuple({token for row in every for token in row})
    rules = dataclasses.replace(SPEC.rules, suppressed=likely[:-1], suppressed_first=())
    with models.one_device():
        model = made(dataclasses.replace(SPEC, rules=rules))
        heard, limits = generator.encode(MELS), np.full(len(MELS), ROOM)
        out = jax.device_get(WhisperGenerator(model, GREEDY_UNGUARDED).decode(heard, limits))
    found = {
        token for row, n in zip(out.tokens, out.lengths, strict=True) for token in row[:n].tolist()
    }
    assert not set(likely[:-1]) & found
