"""WavLM's convolutions: over samples, of positions, and what both see beyond their first and last.

As transformers' `WavLMFeatureEncoder`, `WavLMFeatureProjection` and `WavLMPositionalConvEmbedding`.
The kernel of positions is a plain one: theirs is stored as directions and lengths (weight
normalisation), which conversion multiplies. Norms are float32.

Time is `s`, whole: where the mesh splits it, every part computes all of it.
"""

from collections.abc import Callable
import dataclasses
import functools

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from melllm_jax import sharding
from melllm_jax.config.encoders import WavLM
from melllm_jax.nn.attention import gather_time
from melllm_jax.nn.layers import LayerNorm, Sizes, constant, einsum, weight

ExtendFn = Callable[[Array, int], Array]  # x [b s c], taps → x and what the first and last see


@dataclasses.dataclass(frozen=True)
class ConvolutionEdges:
    """What the convolutions see beyond the steps that they are given."""

    stem: ExtendFn
    positions: ExtendFn


def centred(x_bsc: Float[Array, "b s c"], taps: int) -> Float[Array, "b q c"]:
    """Zeros on both sides: the middle tap, of an even number the later one, is at the step."""
    return jnp.pad(x_bsc, ((0, 0), (taps // 2, (taps - 1) // 2), (0, 0)))


def repeat_first(x_bsc: Float[Array, "b s c"], taps: int) -> Float[Array, "b q c"]:
    """The first step repeated before itself: the last tap is at the step."""
    b, _, c = x_bsc.shape
    return jnp.concatenate([jnp.broadcast_to(x_bsc[:, :1], (b, taps - 1, c)), x_bsc], axis=1)


WHOLE = ConvolutionEdges(lambda x_bsc, taps: x_bsc, centred)
CAUSAL = ConvolutionEdges(repeat_first, repeat_first)


class ChannelNorm(nnx.Module):
    """Each channel of each row over its steps: a group norm (arXiv 1803.08494) of one channel each.

    In float32 and rounded once.
    """

    def __init__(self, size: Sizes, eps: float = 1e-5):
        self.eps = eps
        self.scale = constant(size, "d", 1.0)
        self.bias = constant(size, "d", 0.0)

    def __call__(self, x_bsc: Float[Array, "b s c"]) -> Float[Array, "b s c"]:
        x32 = x_bsc.astype(jnp.float32)
        x32 = x32 - jnp.mean(x32, axis=1, keepdims=True)
        x32 = x32 * jax.lax.rsqrt(jnp.mean(jnp.square(x32), axis=1, keepdims=True) + self.eps)
        scale, bias = (x[...].astype(jnp.float32)[None, None] for x in (self.scale, self.bias))
        return (x32 * scale + bias).astype(x_bsc.dtype)


class StemConvolution(nnx.Module):
    """A strided convolution of c channels, with u, taps and stride of layer `i`; norm; GELU."""

    def __init__(self, rngs: nnx.Rngs, cfg: WavLM, i: int, norm: nnx.Module | None):
        c, u = (1, *cfg.channels)[i : i + 2]
        size = {"x": cfg.kernels[i], "c": c, "u": u}
        self.taps, self.stride, self.norm = cfg.kernels[i], cfg.strides[i], norm
        self.kernel = weight(rngs, size, "x c u", fan_in="x c")
        if cfg.bias:
            self.bias = constant(size, "u", 0.0)

    def __call__(self, x_bsc: Float[Array, "b s c"], extend: ExtendFn) -> Float[Array, "b q u"]:
        y_bqu = _convolve(extend(x_bsc, self.taps), self.kernel[...], self.stride)
        if hasattr(self, "bias"):
            y_bqu = y_bqu + self.bias[...][None, None]
        if self.norm is not None:
            y_bqu = self.norm(y_bqu)
        return jax.nn.gelu(y_bqu, approximate=False)


class Stem(nnx.Module):
    """The convolutions over samples, and a projection to the width: a position each `hop`."""

    def __init__(self, rngs: nnx.Rngs, cfg: WavLM):
        norms: list[nnx.Module | None] = [LayerNorm({"d": u}) for u in cfg.channels]
        if cfg.norm == "group":
            norms = [ChannelNorm({"d": cfg.channels[0]}), *[None] * (len(norms) - 1)]
        convolutions = [StemConvolution(rngs, cfg, i, norm) for i, norm in enumerate(norms)]
        self.convolutions = nnx.List(convolutions)
        size = {"c": cfg.channels[-1], "d": cfg.d}
        self.norm = LayerNorm({"d": size["c"]})
        self.project = weight(rngs, size, "c d", fan_in="c")
        self.project_bias = constant(size, "d", 0.0)

    def __call__(self, waves_bw: Float[Array, "b w"], extend: ExtendFn) -> Float[Array, "b t d"]:
        x = jax.reshard(waves_bw, sharding.a("b w")).astype(self.project.dtype)[..., None]
        for convolution in self.convolutions:
            x = convolution(x, extend)
        x_btc = jax.reshard(self.norm(x), sharding.a("b t c"))
        return einsum("btc,cd->btd", x_btc, self.project[...]) + self.project_bias[...][None, None]


class PositionConvolution(nnx.Module):
    """x + gelu(a convolution of x in groups): the only absolute positions that there are."""

    def __init__(self, rngs: nnx.Rngs, cfg: WavLM):
        size = {"x": cfg.taps, "c": cfg.d // cfg.groups, "d": cfg.d}
        self.groups = cfg.groups
        self.kernel = weight(rngs, size, "x c d", fan_in="x c")
        self.bias = constant(size, "d", 0.0)

    def __call__(self, x_btd: Float[Array, "b t d"], extend: ExtendFn) -> Float[Array, "b t d"]:
        kernel = self.kernel[...]
        y = _convolve(extend(gather_time(x_btd), len(kernel)), kernel, groups=self.groups)
        y = jax.nn.gelu(y + self.bias[...][None, None], approximate=False)
        return x_btd + jax.reshard(y, sharding.a("b t d"))


def _convolve(
    x_bsc: Array, kernel_xcu: Array, stride: int = 1, groups: int = 1
) -> Float[Array, "b q u"]:
    """A convolution of each device's own rows, its time and its kernel whole.

    Left to explicit axes, JAX 0.10 gives a kernel in groups its gradient as many times as axes that
    split nothing have devices.
    """
    convolve = functools.partial(
        jax.lax.conv_general_dilated,
        window_strides=(stride,),
        padding="VALID",
        dimension_numbers=("NWC", "WIO", "NWC"),
        feature_group_count=groups,
    )
    rows, whole = sharding.a("b s c"), jax.P(None, None, None)
    by_rows = jax.shard_map(convolve, in_specs=(rows, whole), out_specs=rows)
    return by_rows(x_bsc, jax.reshard(kernel_xcu, whole))
