"""Whisper's front end in packed rows: each clip alone, in windows where it is long."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from melllm_jax import sharding
from melllm_jax.config.encoders import Whisper
from melllm_jax.config.features import Mel
from melllm_jax.encoders.whisper import clip_sequences
from melllm_jax.errors import Mistake
from tests.support import models
from tests.support.models import Clip

MEL = Mel(kind="plain", m=8, r=4)
CFG = Whisper(d=16, n=2, f=24, l=2, positions=12)  # windows of 24 mel frames: 6 patches
MODEL = dataclasses.replace(models.MODEL, front="whisper", whisper=CFG)
RUN = models.run(MODEL, mel=MEL)
CONVOLUTIONS = models.run(dataclasses.replace(MODEL, front="whisper_conv"), mel=MEL)
# Every count of frames modulo 4; one clip of a window and more, one of two and an odd frame; two
# clips side by side; the first clip of a segment beside that of the one before.
PIECES = [
    [2, Clip(17), 1, Clip(1), Clip(8), 2],
    [1, Clip(10), Clip(3), Clip(26), 1],
    [Clip(24)],
    [Clip(14), Clip(49), 1],
]


@pytest.fixture(scope="module", params=[RUN, CONVOLUTIONS], ids=lambda run: run.model.front)
def front(request):
    with models.one_device():
        return models.made(request.param)


def packed():
    parts = [models.segment(*pieces, seed=i, mel=MEL) for i, pieces in enumerate(PIECES)]
    return models.pack([parts[:2], parts[2:]], 28, mel=MEL)


def rows():
    """`packed` four times over, for eight devices: rows of 28 positions."""
    return jax.tree.map(lambda x: np.concatenate([x] * 4), packed())


def heard(skeleton):
    return models.jitted(lambda weights, batch: skeleton.model(weights).front(batch))


def clips_of(batch):
    """(row, positions, mel frames) of each clip of a batch."""
    for i in range(len(batch.tokens)):
        names = list(zip(batch.segments[i], batch.clips[i], strict=True))
        for name in dict.fromkeys(n for n in names if n[1]):
            here = [at for at, n in enumerate(names) if n == name]
            mels = batch.patches[i, here].reshape(-1, MEL.m)
            yield i, here, mels[: batch.frames[i, here].sum()]


encode = models.jitted(lambda front, x, segments: front.encoder(x, segments))
embed = models.jitted(lambda front, x, segments: front.encoder.embed(x, segments))


def alone(skeleton, values, mels):
    """The front end of one clip, window by window through the encoder alone: [t d].

    Each in a row as long as a window, one program for all; tests/parity hears them in their own.
    """
    front, states = skeleton.model(values).front, []
    through = embed if "front.kernel" in values else encode
    for start in range(0, len(mels), 2 * CFG.positions):
        window = mels[start : start + 2 * CFG.positions]
        room, count = 2 * CFG.positions - len(window), -(-len(window) // 2)
        real = np.pad(np.ones((1, len(window)), np.int32), ((0, 0), (0, room)))
        window = np.pad(window, ((0, room), (0, 0)))
        states.append(np.asarray(through(front, window[None], real))[0, :count])
    x = np.concatenate(states)
    x = np.pad(x, ((0, -len(x) % (MEL.r // 2)), (0, 0))).reshape(-1, MEL.r // 2 * CFG.d)
    if "front.kernel" in values:
        return x @ np.asarray(values["front.kernel"]) + np.asarray(values["front.bias"])[None]
    up, up_bias, down, bias = (
        np.asarray(values[f"front.{name}"]) for name in ("up", "up_bias", "down", "down_bias")
    )
    return jax.nn.gelu(x @ up + up_bias[None], approximate=False) @ down + bias[None]


def test_a_packed_clip_equals_its_windows_alone(front):
    skeleton, values = front
    batch = packed()
    with models.one_device():
        y = np.asarray(heard(skeleton)(values, sharding.shard_batch(batch)))
        found = list(clips_of(batch))
        assert [len(mels) for _, _, mels in found] == [17, 1, 8, 10, 3, 26, 24, 14, 49]
        for i, here, mels in found:
            np.testing.assert_allclose(
                y[i, here], alone(skeleton, values, mels), rtol=0, atol=2e-5 * np.abs(y).max()
            )


def test_sequences_are_clips_and_their_windows():
    """Patches of 2 frames, windows of 4; two segments side by side have a clip 1 each."""
    batch = packed()._replace(
        segments=np.array([[1, 1, 1, 1, 2, 2, 0]]),
        clips=np.array([[0, 1, 1, 1, 1, 0, 0]]),
        frames=np.array([[0, 2, 2, 1, 2, 0, 0]]),
    )
    with models.one_device():
        found = clip_sequences(jax.tree.map(jnp.int32, batch), 2, 4)
    # Frames 2 to 5 are a window, 6 the next; the other segment's clip begins at frame 8.
    np.testing.assert_array_equal(found, [[0, 0, 3, 3, 3, 3, 7, 0, 9, 9, 0, 0, 0, 0]])


@pytest.mark.parametrize(
    ("run", "kernel"),
    [
        pytest.param(RUN, "whole", marks=pytest.mark.slow),
        (RUN, "blocks"),
        (CONVOLUTIONS, "auto"),
    ],
    ids=["whole", "blocks", "convolutions"],
)
def test_a_front_end_split_over_time_equals_one_device(run, kernel):
    run = dataclasses.replace(run, model=dataclasses.replace(run.model, attention=kernel))
    with models.one_device():
        whole = models.graded_front(run, rows())
    with models.split_as("fsdp2-seq2-tp2"):
        parts = models.graded_front(run, rows())
    for name, grad in whole.items():
        if name != "front.encoder.positions":
            assert np.abs(grad).max() > 0, name
        np.testing.assert_allclose(parts[name], grad, rtol=0, atol=1e-4 * np.abs(grad).max())


def test_fields_that_no_encoder_has_are_refused():
    for changes, rule in (
        ({"n": 3}, "model.whisper.n=3: heads cannot share d=16 evenly"),
        ({"d": 2}, "model.whisper.d=2: must be an even number of 4 or more"),
        ({"positions": 0}, "model.whisper.positions=0: must be positive"),
    ):
        with pytest.raises(Mistake, match=rule):
            dataclasses.replace(CFG, **changes)
    with pytest.raises(Mistake, match="mel.r=1: must be 2 or more for the whisper front end"):
        models.run(MODEL, mel=dataclasses.replace(MEL, r=1))
