"""Parts of every module: weights, contractions, norm, rotary positions, low-rank additions.

A contraction's letters are its layout: `einsum("btd,dnh->btnh", x, w)` splits its result as
`sharding.a("b t n h")` says, so a layout is said where a weight is made and nowhere else.
"""

from collections.abc import Iterator, Mapping
import contextlib
import contextvars
import math

from flax import nnx
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from melllm_jax import sharding
from melllm_jax.config.features import Mel
from melllm_jax.config.model import Lora, Model, Rope
from melllm_jax.nn.blocked_weight import BlockedWeight

Sizes = Mapping[str, int]


_shapes_alone = contextvars.ContextVar("_shapes_alone", default=False)


@contextlib.contextmanager
def shapes_alone() -> Iterator[None]:
    """Random matrices made inside are zeros: for who needs their shapes, not what they draw.

    Tracing the draws of a model takes several times as long as the rest of it.
    """
    token = _shapes_alone.set(True)
    try:
        yield
    finally:
        _shapes_alone.reset(token)


class LoraParam(nnx.Param):
    """A weight of a low-rank addition."""


class NonTrainable(nnx.Param):
    """A number that no optimiser touches, such as a corpus mean."""


def dimension_sizes(model: Model, mel: Mel, lora: Lora) -> Sizes:
    """The length of every dimension that a weight may have, by its letter."""
    own = {letter: getattr(model, letter) for letter in "dnkhflvc"}
    return own | {
        "m": mel.m,
        "p": mel.p,
        "r": lora.r,
        "e": model.d,
        "u": model.c,
        "j": stem_bands(mel.m),
    }


def einsum(
    equation: str,
    x: Float[Array, "..."],
    w: Float[Array, "..."] | BlockedWeight,
    dtype: DTypeLike | None = None,
) -> Float[Array, "..."]:
    """`jnp.einsum`, its result laid out as the equation's letters say; `dtype` is the result's.

    The letters that `x` and `w` share and the result lacks come last in x, and first or last in w.
    """
    out = sharding.a(" ".join(equation.split("->")[1]))
    if isinstance(w, BlockedWeight):
        x = jax.reshard(x, jax.P(*[None] * x.ndim))
        return jax.reshard(w.product(x, x.shape[:2], dtype), out)
    if jax.sharding.get_abstract_mesh().size > 1:
        return jnp.einsum(equation, x, w, preferred_element_type=dtype, out_sharding=out)
    return jax.reshard(product(equation, x, w, dtype), out)


def product(equation: str, x: Array, w: Array, dtype: DTypeLike | None = None) -> Array:
    """Computes the einsum as a product of two matrices, on one device.

    Its gradient by w is then a product of two matrices as well. Contracting [b t] at once, XLA on
    a CPU first writes one side transposed: a third of a training step's time.
    """
    terms, result = equation.split("->")
    _, w_letters = terms.split(",")
    inner = "".join(letter for letter in w_letters if letter not in result)
    outer_axes = x.ndim - len(inner)
    x, w = (jax.reshard(a, jax.P(*[None] * a.ndim)) for a in (x, w))
    width = math.prod(x.shape[outer_axes:])
    x_rows = x.reshape(-1, width)
    if w_letters.startswith(inner):
        outer, sides = w.shape[len(inner) :], ((1,), (0,))
        w_matrix = w.reshape(width, -1)
    else:
        outer, sides = w.shape[: -len(inner)], ((1,), (1,))
        w_matrix = w.reshape(-1, width)
    y = jax.lax.dot_general(x_rows, w_matrix, (sides, ((), ())), preferred_element_type=dtype)
    return y.reshape(*x.shape[:outer_axes], *outer)


def weight(
    rngs: nnx.Rngs,
    size: Sizes,
    dims: str,
    *,
    fan_in: str,
    kind: type[nnx.Param] = nnx.Param,
    scale: float = 1.0,
) -> nnx.Param:
    """A random matrix of the sizes that `dims` names, already split over the mesh.

    The standard deviation is scale / √fan-in. The fan-in is given by name: the default
    initialisers count the last two axes, which is wrong for a kernel like "d n h".
    """
    if _shapes_alone.get():
        return _filled(size, dims, 0.0, sharding.w(dims), kind, fan_in)
    shape, fans = ([size[letter] for letter in s.split()] for s in (dims, fan_in))
    init = nnx.initializers.normal(scale / math.sqrt(math.prod(fans)))
    value = init(rngs.params(), shape, jnp.float32, out_sharding=sharding.w(dims))
    return kind(value, dims=dims, fan_in=fan_in)


def constant(size: Sizes, dims: str, number: float, kind: type[nnx.Param] = nnx.Param) -> nnx.Param:
    """A vector of norms or biases, the same on every device: it is small and read everywhere."""
    layout = jax.P(*[None] * len(dims.split()))
    return _filled(size, dims, number, layout, kind)


def head_bias(size: Sizes, dims: str) -> nnx.Param:
    """Biases of heads, zero, split as the heads that they are added to."""
    return _filled(size, dims, 0.0, sharding.w(dims), nnx.Param)


def _filled(
    size: Sizes,
    dims: str,
    number: float,
    layout: jax.P,
    kind: type[nnx.Param],
    fan_in: str = "",
) -> nnx.Param:
    shape = [size[letter] for letter in dims.split()]
    value = jnp.full(shape, number, jnp.float32, out_sharding=layout)
    return kind(value, dims=dims, fan_in=fan_in)


class RMSNorm(nnx.Module):
    """x / rms(x) · scale, in float32 since squares of bfloat16 lose the small ones.

    Zhang and Sennrich 2019 (arXiv 1910.07467); the scale multiplies after the cast, as in Phi-3.
    """

    def __init__(self, size: Sizes, eps: float, dim: str = "d"):
        self.eps = eps
        self.scale = constant(size, dim, 1.0)

    def __call__(self, x: Float[Array, "b t *n d"]) -> Float[Array, "b t *n d"]:
        x32 = x.astype(jnp.float32)
        mean = jnp.mean(jnp.square(x32), axis=-1, keepdims=True)
        scale = self.scale[(None,) * (x.ndim - 1)]
        return (x32 * jax.lax.rsqrt(mean + self.eps)).astype(x.dtype) * scale


class LayerNorm(nnx.Module):
    """(x - mean) / deviation · scale + bias, in float32 and rounded once (arXiv 1607.06450)."""

    def __init__(self, size: Sizes, eps: float = 1e-5):
        self.eps = eps
        self.scale = constant(size, "d", 1.0)
        self.bias = constant(size, "d", 0.0)

    def __call__(self, x_btd: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
        x32 = x_btd.astype(jnp.float32)
        x32 = x32 - jnp.mean(x32, axis=-1, keepdims=True)
        x32 = x32 * jax.lax.rsqrt(jnp.mean(jnp.square(x32), axis=-1, keepdims=True) + self.eps)
        scale, bias = (x[...].astype(jnp.float32)[None, None] for x in (self.scale, self.bias))
        return (x32 * scale + bias).astype(x_btd.dtype)


class LowRank(nnx.Module):
    """What LoRA adds to one projection: x · A · B_i · alpha / r, for each output i.

    Hu et al. 2021 (arXiv 2106.09685). Outputs that share their input (q, k and v; gate and up)
    share A, as the fused projections of Phi checkpoints do. B starts at zero.
    """

    def __init__(self, rngs: nnx.Rngs, size: Sizes, cfg: Lora, dims: str, outs: list[str]):
        self.dims, self.outs, self.dropout = dims, outs, cfg.dropout
        self.scale = cfg.alpha / cfg.r
        self.a = weight(rngs, size, f"{dims} r", fan_in=dims, kind=LoraParam)
        self.b = nnx.List(
            [weight(rngs, size, f"r {o}", fan_in="r", kind=LoraParam, scale=0.0) for o in outs]
        )

    def __call__(
        self, x: Float[Array, "b t ..."], key: Array | None, at: Bool[Array, "b t"] | None = None
    ) -> list[Float[Array, "b t ..."]]:
        """One addition an output; `key` drops inputs in training, None drops nothing.

        It is 0 where `at` does not hold; None is everywhere.
        """
        if key is not None and self.dropout:
            x = jnp.where(uniform_like(key, x) < 1 - self.dropout, x / (1 - self.dropout), 0)
        dims = self.dims.replace(" ", "")
        x_btr = einsum(f"bt{dims},{dims}r->btr", x, self.a[...]) * self.scale
        if at is not None:
            x_btr = jnp.where(at[..., None], x_btr, 0)
        return [
            einsum(f"btr,r{o.replace(' ', '')}->bt{o.replace(' ', '')}", x_btr, b[...])
            for o, b in zip(self.outs, self.b, strict=True)
        ]


def uniform_like(key: Array, x: Float[Array, "..."]) -> Float[Array, "..."]:
    """A number in [0, 1) for each of `x`, laid out as `x` is, the same on every mesh.

    Threefry's hundred operations an element are more than dropout needs: with them a step of 32
    layers compiled for a TPU in five minutes and not in two. Indices are mixed axis by axis by the
    finaliser of MurmurHash3 (Appleby 2011).
    """
    spec = jax.typeof(x).sharding.spec
    bits = jax.random.bits(key, (), jnp.uint32)
    for axis, (size, split) in enumerate(zip(x.shape, spec, strict=True)):
        index = jnp.arange(size, dtype=jnp.uint32, out_sharding=jax.P(split))
        index = jnp.expand_dims(index, [other for other in range(x.ndim) if other != axis])
        bits = mix_bits(bits + (index + 1) * jnp.uint32(0x9E3779B9))
    return (bits >> 8).astype(jnp.float32) * 2.0**-24


def mix_bits(bits: Array) -> Array:
    """MurmurHash3's finaliser of each 32-bit number."""
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35), (16, 1)):
        bits = (bits ^ (bits >> shift)) * jnp.uint32(factor)
    return bits


def rotary(
    cfg: Rope, rotated: int, positions_bt: Int[Array, "b t"], lengths_bt: Int[Array, "b t"]
) -> tuple[Float[Array, "b t x"], Float[Array, "b t x"]]:
    """Cosine and sine of every position's angles, float32 [b t rotated/2].

    `lengths_bt` is the length of the sequence that each position belongs to: LongRoPE (Ding et
    al. 2024, arXiv 2402.13753) takes its long factors beyond `cfg.original` positions. Angles are
    float32: bfloat16 rounds position 257 to 256.
    """
    exponent = jnp.arange(0, rotated, 2, dtype=jnp.float32) / rotated
    rate_x = _scaled_rates(cfg, 1.0 / cfg.theta**exponent)
    scale = 1.0
    if cfg.short:
        stretch = cfg.longest / cfg.original
        scale = math.sqrt(1 + math.log(stretch) / math.log(cfg.original)) if stretch > 1 else 1.0
        far = (lengths_bt > cfg.original)[..., None]
        factor = jnp.where(
            far, jnp.asarray(cfg.long)[None, None], jnp.asarray(cfg.short)[None, None]
        )
        angle = positions_bt[..., None].astype(jnp.float32) * (rate_x[None, None] / factor)
    else:
        angle = positions_bt[..., None].astype(jnp.float32) * rate_x[None, None]
    return jnp.cos(angle) * scale, jnp.sin(angle) * scale


def _scaled_rates(cfg: Rope, rate_x: Float[Array, "x"]) -> Float[Array, "x"]:
    """Radians a position, divided by `cfg.factor` as far as the scaling asks for it.

    Linear (Chen et al. 2023, arXiv 2306.15595): all. Llama 3.1's: waves shorter than original /
    high positions keep their rate, those longer than original / low have it divided, and between
    the two the share that is kept grows with the waves in `original` positions
    (`_compute_llama3_parameters` in transformers' modeling_rope_utils.py).
    """
    if not cfg.high:
        return rate_x / cfg.factor if cfg.factor != 1 else rate_x
    waves = cfg.original * rate_x / (2 * math.pi)
    kept = jnp.clip((waves - cfg.low) / (cfg.high - cfg.low), 0, 1)
    return (1 - kept) * rate_x / cfg.factor + kept * rate_x


def rotate(
    x_btnh: Float[Array, "b t n h"],
    angles: tuple[Float[Array, "b t x"], Float[Array, "b t x"]],
) -> Float[Array, "b t n h"]:
    """Turn the leading dimensions of each head by `angles`; the rest passes through.

    Dimension i turns with i + rotated/2 (Su et al. 2021, arXiv 2104.09864, in the half-split
    order of Phi and Llama checkpoints).
    """
    cos, sin = (part[:, :, None].astype(x_btnh.dtype) for part in angles)
    half = cos.shape[-1]
    x, y, rest = x_btnh[..., :half], x_btnh[..., half : 2 * half], x_btnh[..., 2 * half :]
    return jnp.concatenate([x * cos - y * sin, y * cos + x * sin, rest], axis=-1)


def stem_bands(m: int) -> int:
    """Bands left after three convolutions of stride 2 and padding 1."""
    for _ in range(3):
        m = (m + 1) // 2
    return m
