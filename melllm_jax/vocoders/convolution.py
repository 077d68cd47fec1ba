"""Convolutions over time of a vocoder, and what they see beyond a clip's edges.

Time is `s`, whole: a vocoder's rows are split over devices, and its time is not. Inputs have c
channels and outputs u.
"""

from typing import Protocol, runtime_checkable

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from melllm_jax.features.stft import reshape_rows
from melllm_jax.nn.layers import constant, einsum, weight


@runtime_checkable
class Edges(Protocol):
    """Puts what lies around a clip on its sides."""

    def extend(self, x_bsc: Float[Array, "b s c"], left: int, right: int) -> Array:
        """`x` between `left` steps before it and `right` after it."""


class Silence:
    """Zeros around each clip, whose first `lengths_b` frames of `frames` are real."""

    def __init__(self, frames: int, lengths_b: Int[Array, "b"] | None = None) -> None:
        self._frames, self._lengths_b = frames, lengths_b

    def extend(self, x_bsc: Float[Array, "b s c"], left: int, right: int) -> Array:
        """`x`, of some steps a frame, between zeros, which also lie beyond each row's length."""
        if self._lengths_b is not None:
            ends_b = self._lengths_b * (x_bsc.shape[1] // self._frames)
            real_bs = jnp.arange(x_bsc.shape[1])[None] < ends_b[:, None]
            x_bsc = jnp.where(real_bs[..., None], x_bsc, 0)
        return jnp.pad(x_bsc, ((0, 0), (left, right), (0, 0)))


class Convolution(nnx.Module):
    """A convolution of stride 1 that keeps the number of steps."""

    def __init__(
        self, rngs: nnx.Rngs, c: int, u: int, taps: int, dilation: int = 1, causal: bool = False
    ):
        size = {"x": taps, "c": c, "u": u}
        self.dilation, self.causal = dilation, causal
        self.kernel = weight(rngs, size, "x c u", fan_in="x c")
        self.bias = constant(size, "u", 0.0)

    def __call__(self, x_bsc: Float[Array, "b s c"], edges: Edges) -> Float[Array, "b s u"]:
        kernel = self.kernel[...]
        reach = (len(kernel) - 1) * self.dilation
        right = 0 if self.causal else reach // 2
        seen = edges.extend(x_bsc, reach - right, right)
        y_bsu = jax.lax.conv_general_dilated(
            seen,
            kernel,
            window_strides=(1,),
            padding="VALID",
            rhs_dilation=(self.dilation,),
            dimension_numbers=("NWC", "WIO", "NWC"),
        )
        return y_bsu + self.bias[...][None, None]


class Upsampling(nnx.Module):
    """A transposed convolution that makes `rate` steps of one.

    A step of the output is the sum of what few inputs put there: as many as the taps hold rates.
    So it is a product with a matrix whose rows are these inputs, as PyTorch's ConvTranspose1d with
    padding (taps - rate) / 2; causal, with none, and what comes after the last input is cut off.
    """

    def __init__(self, rngs: nnx.Rngs, c: int, u: int, taps: int, rate: int, causal: bool = False):
        size = {"x": taps, "c": c, "u": u}
        self.rate, self.causal = rate, causal
        self.kernel = weight(rngs, size, "x c u", fan_in="x c", scale=rate**0.5)
        self.bias = constant(size, "u", 0.0)

    def __call__(self, x_bsc: Float[Array, "b s c"], edges: Edges) -> Float[Array, "b q u"]:
        kernel, rate = self.kernel[...], self.rate
        taps, c, u = kernel.shape
        cut = 0 if self.causal else (taps - rate) // 2
        inputs = -(-taps // rate)
        left, right = inputs - 1 - cut // rate, -(-cut // rate)
        seen = edges.extend(x_bsc, left, right)
        count = seen.shape[1] - inputs + 1
        around = [seen[:, i : i + count] for i in reversed(range(inputs))]
        kernel = jnp.pad(kernel, ((0, inputs * rate - taps), (0, 0), (0, 0)))
        kernel = kernel.reshape(inputs, rate, c, u).transpose(0, 2, 1, 3)
        kernel = kernel.reshape(inputs * c, rate * u)
        y = einsum("bsc,cu->bsu", jnp.concatenate(around, axis=2), kernel)
        y_bqu = reshape_rows(y, (count * rate, u))
        start = cut % rate
        return y_bqu[:, start : start + x_bsc.shape[1] * rate] + self.bias[...][None, None]
