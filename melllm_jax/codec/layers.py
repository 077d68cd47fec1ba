"""What the codec's networks are made of besides norms and MLPs.

All are causal: a convolution sees what `extend` puts before its steps, and nothing later (see
`encoders.wavlm_convolutions.ExtendFn`). Where the mesh splits time, convolutions see all of it.
"""

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from melllm_jax import sharding
from melllm_jax.encoders.wavlm_convolutions import ExtendFn
from melllm_jax.nn.attention import gather_time
from melllm_jax.nn.layers import Sizes, constant, einsum, weight


def silence_first(x_bsc: Float[Array, "b s c"], taps: int) -> Float[Array, "b q c"]:
    """Zeros before the first step: the last tap is at the step."""
    return jnp.pad(x_bsc, ((0, 0), (taps - 1, 0), (0, 0)))


class Linear(nnx.Module):
    """A matrix of the two letters `dims`, in and out, and a bias."""

    def __init__(self, rngs: nnx.Rngs, size: Sizes, dims: str):
        self.given, self.made = dims.split()
        self.kernel = weight(rngs, size, dims, fan_in=self.given)
        self.bias = constant(size, self.made, 0.0)

    def __call__(self, x: Float[Array, "b t x"]) -> Float[Array, "b t y"]:
        equation = f"bt{self.given},{self.given}{self.made}->bt{self.made}"
        return einsum(equation, x, self.kernel[...]) + self.bias[...][None, None]


class DynamicTanh(nnx.Module):
    """tanh(scale · x), one scale for all, in place of a norm (Zhu et al. 2025, 2503.10622)."""

    def __init__(self, slope: float):
        self.scale = constant({"i": 1}, "i", slope)

    def __call__(self, x_btd: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
        return jnp.tanh(self.scale[...][None, None] * x_btd)


class Snake(nnx.Module):
    """x + sin²(scale · x) / scale of each channel (Ziyin et al. 2020, arXiv 2006.08195)."""

    def __init__(self, d: int):
        self.scale = constant({"d": d}, "d", 1.0)

    def __call__(self, x_btd: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
        scale = self.scale[...][None, None]
        return x_btd + jnp.square(jnp.sin(scale * x_btd)) / (scale + 1e-9)


class DepthConvolution(nnx.Module):
    """A convolution of each channel by itself.

    Tap by tap, in float32: for ten seconds of sound, 512 taps and 1,024 channels two laden cores
    took 0.2 s, and 4.3 s by XLA's own convolution in groups.
    """

    def __init__(self, rngs: nnx.Rngs, taps: int, d: int):
        size = {"x": taps, "d": d}
        self.kernel = weight(rngs, size, "x d", fan_in="x")
        self.bias = constant(size, "d", 0.0)

    def __call__(self, x_btd: Float[Array, "b t d"], extend: ExtendFn) -> Float[Array, "b t d"]:
        kernel_xd = jax.reshard(self.kernel[...], jax.P(None, None))
        x_bsd = gather_time(x_btd)
        seen_bsd = extend(x_bsd, len(kernel_xd))

        # Else its backward pass would keep what each tap sees: as many arrays as there are taps.
        @jax.checkpoint
        def add(i: Array, total_bsd: Array) -> Array:
            tap_d = jax.lax.dynamic_index_in_dim(kernel_xd, i, keepdims=False)
            here_bsd = jax.lax.dynamic_slice_in_dim(seen_bsd, i, x_bsd.shape[1], axis=1)
            return total_bsd + (here_bsd * tap_d[None, None]).astype(jnp.float32)

        start = jnp.zeros_like(x_bsd, jnp.float32)
        y_bsd = jax.lax.fori_loop(0, len(kernel_xd), add, start).astype(x_bsd.dtype)
        return jax.reshard(y_bsd + self.bias[...][None, None], sharding.a("b t d"))


class TimeConvolution(nnx.Module):
    """A convolution of c channels to d: a product with the steps that a tap sees, side by side."""

    def __init__(self, rngs: nnx.Rngs, taps: int, c: int, d: int):
        size = {"x": taps, "c": c, "d": d}
        self.kernel = weight(rngs, size, "x c d", fan_in="x c")
        self.bias = constant(size, "d", 0.0)

    def __call__(self, x_btc: Float[Array, "b t c"], extend: ExtendFn) -> Float[Array, "b t d"]:
        kernel = self.kernel[...]
        taps, _, d = kernel.shape
        s = x_btc.shape[1]
        seen = extend(gather_time(x_btc), taps)
        around = jnp.concatenate([seen[:, i : i + s] for i in range(taps)], axis=2)
        around = jax.reshard(around, sharding.a("b t c"))
        return einsum("btc,cd->btd", around, kernel.reshape(-1, d)) + self.bias[...][None, None]
