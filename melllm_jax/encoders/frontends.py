"""Front ends from mel patches to the model's width: linear, or Phi-4-MM's conv stem and projector.

Both read patches [b t p] whose p = r · m cells are r mel frames, frame-major, and both keep every
clip to itself: a patch of one clip never reaches a position of another.
"""

import functools
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from melllm_jax import sharding
from melllm_jax.batch import Batch
from melllm_jax.nn import attention
from melllm_jax.nn.layers import NonTrainable, Sizes, constant, einsum, product, weight

STEM_CHUNK = 256  # positions of a device's rows that are in the stem at once


class LinearFrontend(nnx.Module):
    """One matrix and a bias from a patch to the model's width."""

    def __init__(self, rngs: nnx.Rngs, size: Sizes):
        self.kernel = weight(rngs, size, "p d", fan_in="p")
        self.bias = constant(size, "d", 0.0)

    def __call__(self, batch: Batch) -> Float[Array, "b t d"]:
        kernel = self.kernel[...]
        patches = batch.patches.astype(kernel.dtype)
        return einsum("btp,pd->btd", patches, kernel) + self.bias[None, None]


class ConvStem(nnx.Module):
    """NeMo's depth-wise striding stem (8× in time), as Phi-4-MM has it.

    It is three 3×3 convolutions of stride 2 over (time, bands), the last two depth-wise with a
    point-wise 1×1 each, ReLU after each; then channels × bands → u. Source: transformers'
    `Phi4MultimodalAudioNemoConvSubsampling` and the technical report (arXiv 2503.01743). Every
    stage sees zeros beyond a clip's real frames, so a packed clip equals the clip alone.
    """

    def __init__(self, rngs: nnx.Rngs, size: Sizes):
        taps = dict(size) | {"x": 3, "y": 3}
        self.mean = constant(size, "m", 0.0, NonTrainable)
        self.invstd = constant(size, "m", 1.0, NonTrainable)
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

    def stem(self, batch: Batch) -> Float[Array, "b t u"]:
        """The three convolutions and what makes one vector of the bands that are left."""
        patches = batch.patches.astype(jnp.float32)
        cells = (patches, batch.frames, continues_clip(batch))
        edges = tuple(_edges(x) for x in (patches, batch.frames))
        split = [sharding.a("b t p"), sharding.a("b t"), sharding.a("b t")]
        stem = jax.shard_map(
            self._stem,
            in_specs=(jax.P(), *split, *split[:2]),
            out_specs=sharding.a("b t u"),
        )
        return stem(self._weights(), *cells, *edges)

    def _weights(self) -> dict[str, Any]:
        """The stem's weights, which every device holds whole."""
        lists = {"depth", "depth_bias", "point", "point_bias"}
        names = {"mean", "invstd", "first", "first_bias", "out", "out_bias"} | lists
        whole = lambda x: jax.reshard(x[...], jax.P(*[None] * x[...].ndim))
        kept = {name: getattr(self, name) for name in sorted(names)}
        return {k: [whole(x) for x in v] if k in lists else whole(v) for k, v in kept.items()}

    def _stem(
        self,
        weights: dict[str, Any],
        patches: Array,
        frames: Array,
        follows: Array,
        edge_patch: Array,
        edge_frames: Array,
    ) -> Float[Array, "b t u"]:
        """The stem on one device's rows and time; `edge_…` is the position before them.

        A position reads itself and the one before, so that time may be cut anywhere: STEM_CHUNK
        positions of 164,000 numbers each are computed at once, and again in the backward pass.
        """
        t = patches.shape[1]
        before = lambda edge, x: jnp.concatenate([edge, x], axis=1)
        whole = (
            before(edge_patch, patches),
            before(edge_frames, frames),
            before(jnp.zeros_like(follows[:, :1]), follows),
        )
        part = functools.partial(_stem, weights)
        if t <= STEM_CHUNK or t % STEM_CHUNK:
            return part(*whole)
        recomputed = jax.checkpoint(part, prevent_cse=False)

        def at(start: Array) -> Array:
            cut = lambda x: jax.lax.dynamic_slice_in_dim(x, start, STEM_CHUNK + 1, axis=1)
            return recomputed(cut(whole[0]), cut(whole[1]), cut(whole[2]))

        parts = jax.lax.map(at, jnp.arange(0, t, STEM_CHUNK))
        return jnp.moveaxis(parts, 0, 1).reshape(parts.shape[1], t, -1)


class ConvFrontend(ConvStem):
    """The stem and the speech projector of Phi-4-MM: u → GELU(d) → d."""

    def __init__(self, rngs: nnx.Rngs, size: Sizes):
        super().__init__(rngs, size)
        self.up = weight(rngs, size, "u d", fan_in="u")
        self.up_bias = constant(size, "d", 0.0)
        self.down = weight(rngs, size, "e d", fan_in="e")
        self.down_bias = constant(size, "d", 0.0)

    def __call__(self, batch: Batch) -> Float[Array, "b t d"]:
        return self.project(self.stem(batch))

    def project(self, x: Float[Array, "b t u"]) -> Float[Array, "b t d"]:
        """The projector to the model's width."""
        x = einsum("btu,ud->btd", x, self.up[...]) + self.up_bias[None, None]
        x = jax.nn.gelu(x, approximate=False)
        return einsum("bte,ed->btd", x, self.down[...]) + self.down_bias[None, None]


def _stem(
    weights: dict[str, Any], patches: Array, frames_bt: Array, follows_bt: Array
) -> Float[Array, "b t u"]:
    """The three stages and the projection of what is left, of all positions but the first."""
    b, t, p = patches.shape
    m, dtype = weights["mean"].shape[0], weights["first"].dtype
    wide = lambda bias: bias[None, None, None, None]
    x = patches.reshape(b, t, p // m, m)
    x = (x - weights["mean"][None, None, None]) * weights["invstd"][None, None, None]
    x = _zero_beyond(x.astype(dtype)[..., None], frames_bt)  # b t frames bands channels
    x = _taps(x, weights["first"], follows_bt) + wide(weights["first_bias"])
    x = _zero_beyond(jax.nn.relu(x), (frames_bt + 1) // 2)
    for stage, halving in enumerate((4, 8)):
        x = _taps(x, weights["depth"][stage], follows_bt) + wide(weights["depth_bias"][stage])
        x = product("btxyc,cu->btxyu", x, weights["point"][stage])
        x = jax.nn.relu(x + wide(weights["point_bias"][stage]))
        x = _zero_beyond(x, (frames_bt + halving - 1) // halving)
    return product("btjc,jcu->btu", x[:, 1:, 0], weights["out"]) + weights["out_bias"][None, None]


def continues_clip(batch: Batch) -> Array:
    """Bool [b t]: whether the position before is of the same clip."""
    before = [_shift(attention.gather_time(x)) for x in (batch.segments, batch.clips)]
    same = (before[0] == batch.segments) & (before[1] == batch.clips)
    return same & (batch.clips > 0)


def _edges(x: Array) -> Array:
    """[b t …] as [b 1 …] on each device: the position before its own first one, zeros before all.

    Laid out as `x` is: every part of time has one.
    """
    local = x.shape[1] // sharding.parts_of_time()
    spec = jax.typeof(x).sharding.spec
    return jax.reshard(_shift(attention.gather_time(x))[:, ::local], spec)


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
    last = jnp.where(follows_bt[..., None, None], _shift(x[:, :, -1]), 0)
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
