import dataclasses

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from melllm_jax import sharding
from melllm_jax.config.features import Mel
from melllm_jax.encoders import frontends
from melllm_jax.nn.layers import dimension_sizes
from tests.support import models
from tests.support.models import Clip

# Every count of frames modulo 8, two clips side by side, and the first clip of a segment, filled
# to its last frame, beside the first of the next.
PIECES = [
    [2, Clip(17), 1, Clip(1), Clip(8), 2],
    [1, Clip(10), Clip(3), Clip(20), 1],
    [Clip(16)],
    [Clip(14), Clip(23), Clip(13), 1],
]
MEL = Mel(kind="plain", m=10)  # three halvings: 10, 5, 3, 2


@pytest.fixture(scope="module")
def conv():
    """A conv front end with none of its weights at rest, as numbers by name."""
    run = models.run(dataclasses.replace(models.MODEL, front="conv", c=4), mel=MEL)
    with models.one_device():
        skeleton, values = models.made(run)
    front = {name[6:]: np.asarray(x) for name, x in values.items() if name.startswith("front.")}
    return run, skeleton, values, front


def forward(skeleton):
    return models.jitted(lambda weights, batch: skeleton.model(weights).front(batch))


def packed():
    """All clips in one batch of two rows of two segments, and the clips alone in order."""
    parts = [models.segment(*pieces, seed=i, mel=MEL) for i, pieces in enumerate(PIECES)]
    return models.pack([parts[:2], parts[2:]], 20, mel=MEL)


def clips_of(batch):
    """(row, positions, frames [frames m]) of each clip of a batch."""
    for i in range(len(batch.tokens)):
        names = list(zip(batch.segments[i], batch.clips[i], strict=True))
        for name in dict.fromkeys(n for n in names if n[1]):
            here = [at for at, n in enumerate(names) if n == name]
            mels = batch.patches[i, here].reshape(-1, MEL.m)
            yield i, here, mels[: batch.frames[i, here].sum()]


def alone(mels, w):
    """Phi-4-MM's stem and projector over one clip by XLA's own convolution: [t d]."""
    x = ((mels - w["mean"][None]) * w["invstd"][None])[None, ..., None]

    def convolved(x, kernel, groups):
        kernel = jnp.asarray(kernel)[:, :, None]
        pads = [(1, 1), (1, 1)]
        return jax.lax.conv_general_dilated(
            x,
            kernel,
            (2, 2),
            pads,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=groups,
        )

    x = jax.nn.relu(convolved(x, w["first"], 1) + w["first_bias"][None, None, None])
    for i in (0, 1):
        x = convolved(x, w[f"depth.{i}"], x.shape[-1]) + w[f"depth_bias.{i}"][None, None, None]
        x = jax.nn.relu(x @ w[f"point.{i}"] + w[f"point_bias.{i}"][None, None, None])
    x = jnp.einsum("tjc,jcu->tu", x[0], w["out"]) + w["out_bias"][None]
    x = jax.nn.gelu(x @ w["up"] + w["up_bias"][None], approximate=False)
    return x @ w["down"] + w["down_bias"][None]


def test_a_packed_clip_equals_the_clip_alone_through_plain_convolutions(conv):
    run, skeleton, values, front = conv
    batch = packed()
    with models.one_device():
        y = np.asarray(forward(skeleton)(values, sharding.shard_batch(batch)))
        found = list(clips_of(batch))
        by_itself = models.jitted(alone)
        assert [len(mels) for _, _, mels in found] == [17, 1, 8, 10, 3, 20, 16, 14, 23, 13]
        for i, here, mels in found:
            expected = by_itself(mels, front)
            assert len(expected) == len(here)
            # Sums of 9 c and u products, in another order: 1e-6 of the largest.
            np.testing.assert_allclose(y[i, here], expected, rtol=0, atol=2e-5)


def test_a_linear_front_end_is_one_matrix_and_a_bias():
    size = dimension_sizes(models.MODEL, MEL, models.LORA)
    batch = packed()
    with models.one_device():
        linear = frontends.LinearFrontend(nnx.Rngs(0), size)
        linear.bias.set_value(jnp.arange(32.0))
        y = linear(sharding.shard_batch(batch))
    expected = batch.patches @ np.asarray(linear.kernel[...]) + np.arange(32.0)
    np.testing.assert_allclose(y, expected, rtol=0, atol=1e-4)


def test_a_conv_front_end_split_over_time_equals_one_device(conv):
    run, skeleton, values, _ = conv
    with models.one_device():
        whole = forward(skeleton)(values, sharding.shard_batch(packed()))
    with models.split_as("fsdp2-seq2-tp2"):
        _, values = models.made(run)
        split = forward(skeleton)(values, sharding.shard_batch(packed()))
    np.testing.assert_allclose(split, whole, rtol=0, atol=1e-5)


@pytest.mark.parametrize("split", [pytest.param("fsdp8", marks=pytest.mark.slow), "fsdp2-seq2-tp2"])
def test_a_stem_of_parts_of_time_equals_the_whole_one(split, monkeypatch):
    """Clips lie across the borders of parts and of devices; sums of gradients in another order."""
    run = models.run(dataclasses.replace(models.MODEL, front="conv"))
    with models.one_device():
        grads = models.graded_front(run, models.speech_rows(8, 32))
    monkeypatch.setattr(frontends, "STEM_CHUNK", 4)
    with models.split_as(split):
        parts = models.graded_front(run, models.speech_rows(8, 32))
    for name, grad in grads.items():
        if not name.endswith(("mean", "invstd")):  # of which it is asked, though none is learnt
            assert np.abs(grad).max() > 0, name
        np.testing.assert_allclose(parts[name], grad, rtol=0, atol=1e-4 * np.abs(grad).max())
