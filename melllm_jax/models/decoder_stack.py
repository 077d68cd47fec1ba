"""The decoder's layers: a block is x + attention(norm x), then x + MLP(norm x), as in Llama.

Abdin et al. 2024 (arXiv 2404.14219). Shapes: [b t d] between the layers. Weights of all layers are
stacked on a leading axis l, so that one compiled layer serves all.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from melllm_jax.config.model import Lora, Model
from melllm_jax.nn import remat
from melllm_jax.nn.attention_kernels import AttendFn
from melllm_jax.nn.layers import LowRank, RMSNorm, Sizes, einsum, head_bias, rotate, weight
from melllm_jax.nn.remat import name_activation

Angles = tuple[Float[Array, "b t x"], Float[Array, "b t x"]]


class LayerContext(NamedTuple):
    """What every layer is told of the positions, beside their states."""

    angles: Angles  # rotary
    attend: AttendFn  # given q, k and v; it may keep k and v
    lora_at: Bool[Array, "b t"] | None = None  # where LoRA adds to the projections; None: all


class Attention(nnx.Module):
    """Self-attention in which n query heads share k key/value heads."""

    def __init__(self, rngs: nnx.Rngs, size: Sizes, cfg: Model, lora: Lora):
        self.q = weight(rngs, size, "d n h", fan_in="d")
        self.k = weight(rngs, size, "d k h", fan_in="d")
        self.v = weight(rngs, size, "d k h", fan_in="d")
        self.o = weight(rngs, size, "n h d", fan_in="n h")
        if cfg.qkv_bias:
            self.q_bias = head_bias(size, "n h")
            self.k_bias = head_bias(size, "k h")
            self.v_bias = head_bias(size, "k h")
        if cfg.qk_norm:
            self.q_norm = RMSNorm(size, cfg.eps, "h")
            self.k_norm = RMSNorm(size, cfg.eps, "h")
        if lora.r:
            self.qkv_lora = LowRank(rngs, size, lora, "d", ["n h", "k h", "k h"])
            self.o_lora = LowRank(rngs, size, lora, "n h", ["d"])
        self.qkv_bias, self.qk_norm, self.lora = cfg.qkv_bias, cfg.qk_norm, lora.r > 0

    def __call__(
        self,
        x_btd: Float[Array, "b t d"],
        context: LayerContext,
        key: Array | None = None,
    ) -> Float[Array, "b t d"]:
        angles, attend, lora_at = context
        keys = (None, None) if key is None else jax.random.split(key)
        q = einsum("btd,dnh->btnh", x_btd, self.q[...])
        k = einsum("btd,dkh->btkh", x_btd, self.k[...])
        v = einsum("btd,dkh->btkh", x_btd, self.v[...])
        if self.qkv_bias:
            biases = (self.q_bias, self.k_bias, self.v_bias)
            q, k, v = (x + b[None, None] for x, b in zip((q, k, v), biases, strict=True))
        if self.lora:
            dq, dk, dv = self.qkv_lora(x_btd, keys[0], lora_at)
            q, k, v = q + dq, k + dk, v + dv
        if self.qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        y_btnh = attend(
            *(name_activation(x, "qkv") for x in (rotate(q, angles), rotate(k, angles), v))
        )
        y_btd = einsum("btnh,nhd->btd", y_btnh, self.o[...])
        if self.lora:
            y_btd = y_btd + self.o_lora(y_btnh, keys[1], lora_at)[0]
        return name_activation(y_btd, "out")


class Mlp(nnx.Module):
    """down(silu(gate x) · up x) (Shazeer 2020, arXiv 2002.05202)."""

    def __init__(self, rngs: nnx.Rngs, size: Sizes, cfg: Lora):
        self.gate = weight(rngs, size, "d f", fan_in="d")
        self.up = weight(rngs, size, "d f", fan_in="d")
        self.down = weight(rngs, size, "f d", fan_in="f")
        if cfg.r:
            self.gate_up_lora = LowRank(rngs, size, cfg, "d", ["f", "f"])
            self.down_lora = LowRank(rngs, size, cfg, "f", ["d"])
        self.lora = cfg.r > 0

    def __call__(
        self,
        x_btd: Float[Array, "b t d"],
        lora_at: Bool[Array, "b t"] | None = None,
        key: Array | None = None,
    ) -> Float[Array, "b t d"]:
        keys = (None, None) if key is None else jax.random.split(key)
        gate = einsum("btd,df->btf", x_btd, self.gate[...])
        up = einsum("btd,df->btf", x_btd, self.up[...])
        if self.lora:
            d_gate, d_up = self.gate_up_lora(x_btd, keys[0], lora_at)
            gate, up = gate + d_gate, up + d_up
        y_btf = jax.nn.silu(name_activation(gate, "gate_up")) * name_activation(up, "gate_up")
        y_btd = einsum("btf,fd->btd", y_btf, self.down[...])
        return y_btd + self.down_lora(y_btf, keys[1], lora_at)[0] if self.lora else y_btd


class Block(nnx.Module):
    """One layer."""

    def __init__(self, rngs: nnx.Rngs, size: Sizes, cfg: Model, lora: Lora):
        self.attn_norm = RMSNorm(size, cfg.eps)
        self.attn = Attention(rngs, size, cfg, lora)
        self.mlp_norm = RMSNorm(size, cfg.eps)
        self.mlp = Mlp(rngs, size, lora)

    def __call__(
        self,
        x_btd: Float[Array, "b t d"],
        context: LayerContext,
        key: Array | None = None,
    ) -> Float[Array, "b t d"]:
        keys = (None, None) if key is None else jax.random.split(key)
        x_btd = x_btd + self.attn(self.attn_norm(x_btd), context, keys[0])
        return x_btd + self.mlp(self.mlp_norm(x_btd), context.lora_at, keys[1])


class Stack(nnx.Module):
    """`cfg.l` blocks, their weights stacked."""

    def __init__(self, rngs: nnx.Rngs, size: Sizes, cfg: Model, lora: Lora):
        self.cfg = cfg
        self.blocks = jax.vmap(lambda layer: Block(layer, size, cfg, lora))(rngs.split(cfg.l))

    def __call__(
        self,
        x_btd: Float[Array, "b t d"],
        context: LayerContext,
        key: Array | None = None,
    ) -> Float[Array, "b t d"]:
        layer = lambda x, layer: (layer[0](x, context, layer[1]), None)
        return self._scan(layer, x_btd, key)[0]

    def with_layers(
        self,
        x_btd: Float[Array, "b t d"],
        context: LayerContext,
        layers: Sequence[int],
        key: Array | None = None,
    ) -> tuple[Float[Array, "b t d"], Float[Array, "n b t d"]]:
        """What the stack gives, and the outputs of some `layers`, counted from 0."""

        def apply(x_btd: Array, layer: tuple[Block, Array | None]) -> tuple[Array, Array]:
            y_btd = layer[0](x_btd, context, layer[1])
            return y_btd, y_btd

        y_btd, outputs = self._scan(apply, x_btd, key)
        return y_btd, jnp.stack([outputs[i] for i in layers])

    def _scan(
        self, layer: Callable[..., Any], x_btd: Array, key: Array | None
    ) -> tuple[Array, Any]:
        keys = None if key is None else jax.random.split(key, self.cfg.l)
        unroll = 1 if self.cfg.scan else self.cfg.l
        wrapped = remat.wrap_layer(layer, self.cfg)
        return jax.lax.scan(wrapped, x_btd, (self.blocks, keys), unroll=unroll)

    def layer_outputs(
        self, x_btd: Float[Array, "b t d"], context: LayerContext
    ) -> Float[Array, "l b t d"]:
        """The output of each block."""

        def apply(x_btd: Array, block: Block) -> tuple[Array, Array]:
            y_btd = block(x_btd, context)
            return y_btd, y_btd

        return jax.lax.scan(apply, x_btd, self.blocks)[1]

    def layer(self, i: int) -> Block:
        """Layer `i` alone."""
        return jax.tree.map(lambda x: x[i], self.blocks)
