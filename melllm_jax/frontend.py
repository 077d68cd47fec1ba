"""From mel patches to the model's width: one linear map, or Phi-4-MM's conv stem and projector.

Both read patches [b t p] whose p = r · m cells are r mel frames, frame-major, and both keep every
clip to itself: a patch of one clip never reaches a position of another.
"""

import functools

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from melllm_jax import attention
from melllm_jax.batch import Batch
from melllm_jax.layers import Fixed, Sizes, constant, einsum, weight


class Linear(nnx.Module):
    """One matrix and a bias from a patch to the model's width."""

    def __init__(self, rngs: nnx.Rngs, size: Sizes):
        self.kernel = weight(rngs, size, "p d", fan_in="p")
        self.bias = constant(size, "d", 0.0)

    def __call__(self, batch: Batch) -> Float[Array, "b t d"]:
        kernel = self.kernel[...]
        patches = batch.patches.astype(kernel.dtype)
        return einsum("btp,pd->btd", patches, kernel) + self.bias[None, None]


class Conv(nnx.Module):
    """NeMo's depth-wise striding stem (8× in time) and the speech projector of Phi-4-MM.

    The stem is three 3×3 convolutions of stride 2 over (time, bands), the last two depth-wise
    with a point-wise 1×1 each, ReLU after each; then channels × bands → u → GELU(d) → d. Source:
    transformers' `Phi4MultimodalAudioNemoConvSubsampling` and the technical report (arXiv
    2503.01743). Every stage sees zeros beyond a clip's real frames, so a packed clip equals the
    clip alone.
    """

    def __init__(self, rngs: nnx.Rngs, size: Sizes):
        taps = dict(size) | {"x": 3, "y": 3}
        self.mean = constant(size, "m", 0.0, Fixed)
        self.invstd = constant(size, "m", 1.0, Fixed)
        self.first = weight(rngs, taps, "x y c", fan_in="x y", scale=2**0.5)
        self.first_bias = constant(size, "c", 0.0)
        self.depth = nnx.List([weight(rngs, taps, "x y c", fan_in="x y") for _ in range(2)])
        self.depth_bias = nnx.List([constant(size, "c", 0.0) for _ in range(2)])
        self.point = nnx.List(
            [weight(rngs, size, "c u", fan_in="c", scale=2**0.5) for _ in range(2)]
        )
        self.point_bias = nnx.List([constant(size, "u", 0.0) for _ in range(2)])
        self.out = weight(rngs, size, "j c u", fan_in="j c")
        self.out_bias = constant(size, "u", 0.0)
        self.up = weight(rngs, size, "u d", fan_in="u")
        self.up_bias = constant(size, "d", 0.0)
        self.down = weight(rngs, size, "e d", fan_in="e")
        self.down_bias = constant(size, "d", 0.0)

    def __call__(self, batch: Batch) -> Float[Array, "b t d"]:
        b, t, p = batch.patches.shape
        m = self.mean.shape[0]
        frames_bt, follows_bt = batch.frames, _follows(batch)
        x = batch.patches.reshape(b, t, p // m, m).astype(jnp.float32)
        x = (x - self.mean[None, None, None]) * self.invstd[None, None, None]
        x = x.astype(self.first.dtype)
        x = _zero_beyond(x[..., None], frames_bt)  # b t frames bands channels
        x = _taps(x, self.first[...], follows_bt) + self.first_bias[None, None, None, None]
        x = _zero_beyond(jax.nn.relu(x), (frames_bt + 1) // 2)
        for stage, halving in enumerate((4, 8)):
            x = (
                _taps(x, self.depth[stage][...], follows_bt)
                + self.depth_bias[stage][None, None, None, None]
            )
            x = einsum("btxyc,cu->btxyu", x, self.point[stage][...])
            x = jax.nn.relu(x + self.point_bias[stage][None, None, None, None])
            x = _zero_beyond(x, (frames_bt + halving - 1) // halving)
        x = einsum("btjc,jcu->btu", x[:, :, 0], self.out[...]) + self.out_bias[None, None]
        x = einsum("btu,ud->btd", x, self.up[...]) + self.up_bias[None, None]
        x = jax.nn.gelu(x, approximate=False)
        return einsum("bte,ed->btd", x, self.down[...]) + self.down_bias[None, None]


def _follows(batch: Batch) -> Array:
    """Bool [b t]: whether the position before is of the same clip."""
    before = [_shift(attention.whole_time(x)) for x in (batch.segments, batch.clips)]
    same = (before[0] == batch.segments) & (before[1] == batch.clips)
    return same & (batch.clips > 0)


def _shift(x: Array) -> Array:
    """`x` [b t …] one position later, zeros first."""
    pads = [(0, 0), (1, 0)] + [(0, 0)] * (x.ndim - 2)
    return jnp.pad(x, pads)[:, :-1]


def _zero_beyond(x: Array, frames_bt: Array) -> Array:
    """`x` [b t frames bands channels], zero from each position's frame count on."""
    real = jnp.arange(x.shape[2])[None, None] < frames_bt[..., None]
    return jnp.where(real[..., None, None], x, 0)


def _taps(x: Array, kernel: Array, follows_bt: Array) -> Array:
    """A 3×3 convolution of stride 2 and padding 1 over (frames, bands), each channel its own.

    x is [b t frames bands c], c 1 or the kernel's. Since every patch starts on an even frame, only
    its first output looks across the patch's border, to the last frame of the one before.
    """
    last = jnp.where(follows_bt[..., None, None], _shift(attention.whole_time(x[:, :, -1])), 0)
    x = jnp.concatenate([last[:, :, None], x], axis=2)
    x = jnp.pad(x, [(0, 0)] * 3 + [(1, 1), (0, 0)])
    frames, bands = (x.shape[2] - 1) // 2, (x.shape[3] - 1) // 2
    tap = lambda i, j: x[:, :, i : i + 2 * frames : 2, j : j + 2 * bands - 1 : 2]
    weights = kernel.astype(jnp.float32)
    products = [
        tap(i, j).astype(jnp.float32) * weights[i, j][None, None, None, None]
        for i in range(3)
        for j in range(3)
    ]
    # Nine sums rounded to bfloat16 each have twice the error of one rounding, as torch's have.
    return functools.reduce(jnp.add, products).astype(x.dtype)
