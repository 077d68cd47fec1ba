"""A teacher's states of clips in packed rows: those of each clip alone, as the teacher hears it."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from melllm_jax import sharding
from melllm_jax.config.distillation import Distill
from melllm_jax.config.encoders import Conformer, Whisper
from melllm_jax.config.features import Mel
from melllm_jax.encoders import clip_windows, conformer, window_attention
from melllm_jax.encoders.teachers import TEACHERS, states_there
from tests.support import models
from tests.support.models import Clip

MEL = Mel(kind="whisper", r=4, normalize="none")
SIZES = Whisper(d=16, n=2, f=24, l=3, positions=12)  # windows of 24 mel frames: 6 patches
WHOLE = Distill(teacher="whisper", whisper=SIZES, windows=4)
LAYERS = (0, 2)
OTHER = Mel(normalize="none")  # of Phi-4-MM
BLOCKS = Distill(teacher="conformer", c=16, conformer=Conformer(l=3, n=2, f=24, distance=4))
# Rows of 28 positions: clips of 17, 1, 8 frames, then 10, 3 and 26 (two windows): seven windows;
# and clips of 24, 14 and 9.
PIECES = [
    [2, Clip(17), 1, Clip(1), Clip(8), 2],
    [1, Clip(10), Clip(3), Clip(26), 1],
    [Clip(24)],
    [Clip(14), Clip(9), 1],
]
SET_ANEW = ("segments", "sources")  # columns of a batch that are of no segment alone


def packed(mel=MEL):
    parts = [models.segment(*pieces, seed=i, mel=mel) for i, pieces in enumerate(PIECES)]
    return models.pack([parts[:2], parts[2:]], 28, mel=mel)


def made(cfg, mel):
    return models.drawn(lambda rngs: TEACHERS[cfg.teacher](rngs, cfg, mel), seed=3)


def taught(cfg, place, batch, mel=MEL):
    """The teacher's states of a batch, and which there are."""
    with place():
        skeleton, weights = made(cfg, mel)
        states = models.jitted(lambda w, batch: skeleton.model(w).states(batch, LAYERS))
        placed = sharding.shard_batch(batch)
        there = models.jitted(lambda batch: states_there(batch, cfg, mel.r))(placed)
        return np.asarray(states(weights, placed)), np.asarray(there)


@functools.cache
def windows_through():
    """What one of one device hears of windows each in a row of its own, and its weights."""
    skeleton, weights = made(WHOLE, MEL)
    return models.jitted(lambda w, m, x: skeleton.model(w).front.encoder.hidden(m, x)), weights


def alone(cfg, windows):
    """What the encoder makes of windows of clips, each in a row of its own: [n rows s e]."""
    frames = 2 * SIZES.positions
    mels = np.zeros((len(windows), frames, MEL.m), np.float32)
    real = np.zeros((len(windows), frames), np.int32)
    for row, window in enumerate(windows):
        # By hand: eight tenths of a decade below the peak, in Whisper's units, and 1e-10 at least.
        mels[row] = max(window.max() - 2.0, -1.5) if cfg.frame == "whole" else 0.0
        mels[row, : len(window)] = window
        real[row, : frames if cfg.frame == "whole" else len(window)] = 1
    with models.one_device():
        hidden, weights = windows_through()
        return np.asarray(hidden(weights, mels, real))[[1 + i for i in LAYERS]]


def windows_of(batch):
    """(row, its window, positions, mel frames) of each window of each clip of a batch."""
    for i in range(len(batch.tokens)):
        names = list(zip(batch.segments[i], batch.clips[i], strict=True))
        count = 0
        for name in dict.fromkeys(n for n in names if n[1]):
            here = [at for at, n in enumerate(names) if n == name]
            mels = batch.patches[i, here].reshape(-1, MEL.m)[: batch.frames[i, here].sum()]
            for start in range(0, len(mels), 2 * SIZES.positions):
                part = slice(start // MEL.r, start // MEL.r + 2 * SIZES.positions // MEL.r)
                yield i, count, here[part], mels[start : start + 2 * SIZES.positions]
                count += 1


@pytest.mark.parametrize(("frame", "windows"), [("whole", 4), ("whole", 8), ("clip", 4)])
def test_a_packed_clip_is_heard_as_alone_in_its_own_window(frame, windows):
    """The fullest row has seven windows: more than four, and one less than eight."""
    cfg = dataclasses.replace(WHOLE, frame=frame, windows=windows)
    batch = packed()
    states, there = taught(cfg, models.one_device, batch)
    found = list(windows_of(batch))
    assert [len(mels) for *_, mels in found] == [17, 1, 8, 10, 3, 24, 2, 24, 14, 9]
    expected_of = np.moveaxis(alone(cfg, [mels for *_, mels in found]), 1, 0)
    seen = np.zeros_like(there)
    for expected, (row, number, here, mels) in zip(expected_of, found, strict=True):
        if frame == "whole" and number >= cfg.windows:
            assert not there[row, here].any()
            continue
        count = -(-len(mels) // 2)  # a position of the teacher's holds two frames, the last one
        own = states[:, row, here].reshape(len(LAYERS), -1, SIZES.d)[:, :count]
        expected = expected[:, :count]
        np.testing.assert_allclose(own, expected, rtol=0, atol=2e-5 * np.abs(expected).max())
        seen[row, here] |= np.arange(len(here) * 2).reshape(-1, 2) < count
    np.testing.assert_array_equal(there, seen)


@pytest.mark.parametrize("length", [pytest.param(500, marks=pytest.mark.slow), 3])
def test_a_packed_clip_is_heard_by_a_conformer_as_alone(monkeypatch, length):
    """In windows of 500 positions, all of a clip here, or of three, of which some have two."""
    for module in (clip_windows, conformer, window_attention):
        monkeypatch.setattr(module, "WINDOW", length)
    batch = packed(OTHER)
    found = [
        (i, [at for at in range(28) if (batch.segments[i, at], batch.clips[i, at]) == name])
        for i in range(len(batch.tokens))
        for name in dict.fromkeys(zip(batch.segments[i], batch.clips[i], strict=True))
        if name[1]
    ]
    assert [len(here) for _, here in found] == [3, 1, 1, 2, 1, 4, 3, 2, 2]
    rows = []
    for row, here in found:
        columns = {x: getattr(batch, x)[row, here] for x in batch._fields if x not in SET_ANEW}
        rows.append([columns | {"clips": np.ones(len(here), int)}])
    more = models.pack(rows, 28, mel=OTHER)
    both = jax.tree.map(lambda *x: np.concatenate(x), batch, more)
    states, there = taught(BLOCKS, models.one_device, both, OTHER)
    np.testing.assert_array_equal(there, both.is_speech[..., None])
    assert states.shape == (len(LAYERS), *both.tokens.shape, 1, BLOCKS.c)
    alone = states[:, len(batch.tokens) :]
    for i, (row, here) in enumerate(found):
        # Sums of other lengths, in another order.
        np.testing.assert_allclose(states[:, row, here], alone[:, i, : len(here)], atol=2e-5)


@pytest.mark.parametrize(
    ("cfg", "mel"),
    [(WHOLE, MEL), (dataclasses.replace(WHOLE, frame="clip"), MEL), (BLOCKS, OTHER)],
    ids=["whole", "clip", "conformer"],
)
def test_states_on_eight_devices_equal_those_of_one(cfg, mel):
    batch = jax.tree.map(lambda x: np.concatenate([x] * 4), packed(mel))
    one, there = taught(cfg, models.one_device, batch, mel)
    split, also = taught(cfg, lambda: models.split_as("fsdp2-seq2-tp2"), batch, mel)
    np.testing.assert_array_equal(there, also)
    np.testing.assert_allclose(split[:, there], one[:, there], rtol=0, atol=1e-4)
