"""A stack of pre-norm Transformer encoder blocks: LayerNorm, attention, MLP, each with biases.

Shapes are [b t d], d the encoder's own width. Who sees whom, and any bias of the scores, is the
function `attend` of q, k and v, which whoever calls passes in: nothing here knows of packed rows.
Weights of all layers are stacked on a leading axis l.
"""

from collections.abc import Callable, Collection

from flax import nnx
import jax
from jaxtyping import Array, Float

from melllm_jax.nn.attention_kernels import AttendFn
from melllm_jax.nn.layers import LayerNorm, Sizes, constant, einsum, weight
from melllm_jax.nn.remat import Layer, name_activation

WrapFn = Callable[[Layer], Layer]  # a layer, and how its backward pass finds its activations


class SelfAttention(nnx.Module):
    """Self-attention of n heads, with biases on those of its four projections that `biases` names.

    Whisper's key has none, since softmax would not see it; WavLM's has one all the same.
    """

    def __init__(self, rngs: nnx.Rngs, size: Sizes, biases: Collection[str] = "qvo"):
        self.q = weight(rngs, size, "d n h", fan_in="d")
        self.k = weight(rngs, size, "d n h", fan_in="d")
        self.v = weight(rngs, size, "d n h", fan_in="d")
        self.o = weight(rngs, size, "n h d", fan_in="n h")
        for name in sorted(biases):
            setattr(self, f"{name}_bias", constant(size, "d" if name == "o" else "n h", 0.0))

    def __call__(self, x_btd: Float[Array, "b t d"], attend: AttendFn) -> Float[Array, "b t d"]:
        """`attend` is given q, k and v [b t n h]."""
        q, k, v = (self._projected(name, x_btd) for name in "qkv")
        return self._output(attend(q, k, v))

    def _output(self, y_btnh: Array) -> Float[Array, "b t d"]:
        y_btd = einsum("btnh,nhd->btd", y_btnh, self.o[...])
        if hasattr(self, "o_bias"):
            y_btd = y_btd + self.o_bias[...][None, None]
        return name_activation(y_btd, "out")

    def _projected(self, name: str, x_btd: Array) -> Float[Array, "b t n h"]:
        x_btnh = einsum("btd,dnh->btnh", x_btd, getattr(self, name)[...])
        if hasattr(self, f"{name}_bias"):
            x_btnh = x_btnh + getattr(self, f"{name}_bias")[...][None, None]
        return name_activation(x_btnh, "qkv")


class GeluMlp(nnx.Module):
    """down(gelu(up x)), with biases; GELU is the exact one of Hendrycks and Gimpel (1606.08415)."""

    def __init__(self, rngs: nnx.Rngs, size: Sizes):
        self.up = weight(rngs, size, "d f", fan_in="d")
        self.up_bias = constant(size, "f", 0.0)
        self.down = weight(rngs, size, "f d", fan_in="f")
        self.down_bias = constant(size, "d", 0.0)

    def __call__(self, x_btd: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
        x_btf = einsum("btd,df->btf", x_btd, self.up[...]) + self.up_bias[...][None, None]
        x_btf = jax.nn.gelu(name_activation(x_btf, "gate_up"), approximate=False)
        return einsum("btf,fd->btd", x_btf, self.down[...]) + self.down_bias[...][None, None]


class EncoderBlock(nnx.Module):
    """One layer: x + attention(norm x), then x + MLP(norm x)."""

    def __init__(self, rngs: nnx.Rngs, size: Sizes, biases: Collection[str] = "qvo"):
        self.attn_norm = LayerNorm(size)
        self.attn = SelfAttention(rngs, size, biases)
        self.mlp_norm = LayerNorm(size)
        self.mlp = GeluMlp(rngs, size)

    def __call__(self, x_btd: Float[Array, "b t d"], attend: AttendFn) -> Float[Array, "b t d"]:
        x_btd = x_btd + self.attn(self.attn_norm(x_btd), attend)
        return x_btd + self.mlp(self.mlp_norm(x_btd))


class TransformerEncoder(nnx.Module):
    """`layers` blocks, their weights stacked, and the norm after the last."""

    def __init__(
        self, rngs: nnx.Rngs, size: Sizes, layers: int, biases: Collection[str] = "qvo"
    ) -> None:
        make = lambda layer: EncoderBlock(layer, size, biases)
        self.blocks = jax.vmap(make)(rngs.split(layers))
        self.norm = LayerNorm(size)

    def __call__(
        self,
        x_btd: Float[Array, "b t d"],
        attend: AttendFn,
        wrap: WrapFn = lambda layer: layer,
        unroll: int = 1,
    ) -> Float[Array, "b t d"]:
        """The normed output of the last block; `wrap` is remat's, `unroll` that of `lax.scan`."""
        layer = wrap(lambda x, block: (block(x, attend), None))
        return self.norm(jax.lax.scan(layer, x_btd, self.blocks, unroll=unroll)[0])

    def layer_outputs(
        self, x_btd: Float[Array, "b t d"], attend: AttendFn
    ) -> Float[Array, "l b t d"]:
        """The output of each block, before the last norm."""

        def apply(x_btd: Array, block: EncoderBlock) -> tuple[Array, Array]:
            y_btd = block(x_btd, attend)
            return y_btd, y_btd

        return jax.lax.scan(apply, x_btd, self.blocks)[1]
