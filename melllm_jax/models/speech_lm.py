"""The speech language model: a front end, a stack of decoder blocks, a head.

Shapes: [b t d] inside. A block is x + attention(norm x), then x + MLP(norm x) (Abdin et al. 2024,
arXiv 2404.14219), as in Llama. Weights of all layers are stacked on a leading axis l, so that one
compiled layer serves all.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from melllm_jax.batch import Batch
from melllm_jax.config.features import Mel
from melllm_jax.config.model import Lora, Model
from melllm_jax.encoders import frontends
from melllm_jax.encoders.conformer import ConformerFrontend
from melllm_jax.encoders.whisper import WhisperConvFrontend, WhisperFrontend
from melllm_jax.nn import attention, attention_kernels, remat
from melllm_jax.nn.layers import (
    LowRank,
    RMSNorm,
    Sizes,
    dimension_sizes,
    einsum,
    head_bias,
    rotary,
    rotate,
    weight,
)
from melllm_jax.nn.remat import name_activation
from melllm_jax.nn.vocab_parallel import embed_tokens

AttendFn = attention_kernels.AttendFn
Angles = tuple[Float[Array, "b t x"], Float[Array, "b t x"]]


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
        angles: Angles,
        attend: AttendFn,
        key: Array | None = None,
    ) -> Float[Array, "b t d"]:
        """`attend` is given q, k and v, and may keep k and v."""
        keys = (None, None) if key is None else jax.random.split(key)
        q = einsum("btd,dnh->btnh", x_btd, self.q[...])
        k = einsum("btd,dkh->btkh", x_btd, self.k[...])
        v = einsum("btd,dkh->btkh", x_btd, self.v[...])
        if self.qkv_bias:
            biases = (self.q_bias, self.k_bias, self.v_bias)
            q, k, v = (x + b[None, None] for x, b in zip((q, k, v), biases, strict=True))
        if self.lora:
            dq, dk, dv = self.qkv_lora(x_btd, keys[0])
            q, k, v = q + dq, k + dk, v + dv
        if self.qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        y_btnh = attend(
            *(name_activation(x, "qkv") for x in (rotate(q, angles), rotate(k, angles), v))
        )
        y_btd = einsum("btnh,nhd->btd", y_btnh, self.o[...])
        return name_activation(
            y_btd + self.o_lora(y_btnh, keys[1])[0] if self.lora else y_btd, "out"
        )


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
        self, x_btd: Float[Array, "b t d"], key: Array | None = None
    ) -> Float[Array, "b t d"]:
        keys = (None, None) if key is None else jax.random.split(key)
        gate = einsum("btd,df->btf", x_btd, self.gate[...])
        up = einsum("btd,df->btf", x_btd, self.up[...])
        if self.lora:
            d_gate, d_up = self.gate_up_lora(x_btd, keys[0])
            gate, up = gate + d_gate, up + d_up
        y_btf = jax.nn.silu(name_activation(gate, "gate_up")) * name_activation(up, "gate_up")
        y_btd = einsum("btf,fd->btd", y_btf, self.down[...])
        return y_btd + self.down_lora(y_btf, keys[1])[0] if self.lora else y_btd


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
        angles: Angles,
        attend: AttendFn,
        key: Array | None = None,
    ) -> Float[Array, "b t d"]:
        keys = (None, None) if key is None else jax.random.split(key)
        x_btd = x_btd + self.attn(self.attn_norm(x_btd), angles, attend, keys[0])
        return x_btd + self.mlp(self.mlp_norm(x_btd), keys[1])


class Stack(nnx.Module):
    """`cfg.l` blocks, their weights stacked."""

    def __init__(self, rngs: nnx.Rngs, size: Sizes, cfg: Model, lora: Lora):
        self.cfg = cfg
        self.blocks = jax.vmap(lambda layer: Block(layer, size, cfg, lora))(rngs.split(cfg.l))

    def __call__(
        self,
        x_btd: Float[Array, "b t d"],
        angles: Angles,
        attend: AttendFn,
        key: Array | None = None,
    ) -> Float[Array, "b t d"]:
        layer = lambda x, layer: (layer[0](x, angles, attend, layer[1]), None)
        return self._scan(layer, x_btd, key)[0]

    def with_layers(
        self,
        x_btd: Float[Array, "b t d"],
        angles: Angles,
        attend: AttendFn,
        layers: Sequence[int],
        key: Array | None = None,
    ) -> tuple[Float[Array, "b t d"], Float[Array, "n b t d"]]:
        """What the stack gives, and the outputs of some `layers`, counted from 0."""

        def apply(x_btd: Array, layer: tuple[Block, Array | None]) -> tuple[Array, Array]:
            y_btd = layer[0](x_btd, angles, attend, layer[1])
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
        self, x_btd: Float[Array, "b t d"], angles: Angles, attend: AttendFn
    ) -> Float[Array, "l b t d"]:
        """The output of each block."""

        def apply(x_btd: Array, block: Block) -> tuple[Array, Array]:
            y_btd = block(x_btd, angles, attend)
            return y_btd, y_btd

        return jax.lax.scan(apply, x_btd, self.blocks)[1]

    def layer(self, i: int) -> Block:
        """Layer `i` alone."""
        return jax.tree.map(lambda x: x[i], self.blocks)


FRONTS: Mapping[str, Callable[[nnx.Rngs, Sizes, Model], nnx.Module]] = {
    "linear": lambda rngs, size, _: frontends.LinearFrontend(rngs, size),
    "conv": lambda rngs, size, _: frontends.ConvFrontend(rngs, size),
    "conformer": ConformerFrontend,
    "whisper": WhisperFrontend,
    "whisper_conv": WhisperConvFrontend,
}


class SpeechLM(nnx.Module):
    """Tokens and mel patches in, hidden states out; `logits` reads them."""

    def __init__(
        self,
        cfg: Model,
        mel: Mel,
        lora: Lora,
        *,
        rngs: nnx.Rngs,
    ):
        size = dimension_sizes(cfg, mel, lora)
        self.cfg = cfg
        self.embed = weight(rngs, size, "v d", fan_in="d")
        if cfg.front != "none":
            self.front = FRONTS[cfg.front](rngs, size, cfg)
        self.stack = Stack(rngs, size, cfg, lora)
        self.norm = RMSNorm(size, cfg.eps)
        if not cfg.tied:
            self.head = weight(rngs, size, "d v", fan_in="d")

    def __call__(self, batch: Batch, key: Array | None = None) -> Float[Array, "b t d"]:
        """Hidden states after the last norm, [b t d]; `key` turns dropout on."""
        inputs, angles, attend = self._stack_inputs(batch)
        return self.norm(self.stack(inputs, angles, attend, key))

    def with_layers(
        self, batch: Batch, layers: Sequence[int], key: Array | None = None
    ) -> tuple[Float[Array, "b t d"], Float[Array, "n b t d"]]:
        """What `__call__` gives, and the outputs of some `layers`, counted from 0."""
        inputs, angles, attend = self._stack_inputs(batch)
        x_btd, outputs = self.stack.with_layers(inputs, angles, attend, layers, key)
        return self.norm(x_btd), outputs

    def hidden(self, batch: Batch) -> Float[Array, "l b t d"]:
        """The output of each layer, before the last norm."""
        return self.stack.layer_outputs(*self._stack_inputs(batch))

    def _stack_inputs(self, batch: Batch) -> tuple[Float[Array, "b t d"], Angles, AttendFn]:
        """The stack's arguments for a batch: inputs, rotary angles and attention."""
        inputs, ids = self.inputs(batch), attention.position_ids(batch)
        kernel = attention_kernels.choose_kernel(self.cfg.attention, inputs.shape[1], inputs.dtype)
        if kernel == "whole":
            seen = self.visibility_mask(ids, ids)
            attend: AttendFn = lambda q, k, v: name_activation(
                attention.attend(q, k, v, seen), "attended"
            )
        else:
            attend = attention_kernels.make_attend_fn(
                kernel, attention_kernels.visible_ranges(ids, **self._rules), **self._rules
            )
        return inputs, self.angles(batch), attend

    def inputs(self, batch: Batch) -> Float[Array, "b t d"]:
        """The input of the first layer: the front end's output at speech, embeddings at text.

        Without a front end every position is text.
        """
        text = self.embed_text(batch.tokens)
        if self.cfg.front == "none":
            return text
        return jnp.where(batch.is_speech[..., None], self.front(batch), text)

    def embed_text(self, tokens_bt: Int[Array, "b t"]) -> Float[Array, "b t d"]:
        """Embeddings of tokens."""
        return embed_tokens(self.embed[...], tokens_bt)

    def angles(self, batch: Batch) -> Angles:
        """Rotary cosine and sine of a batch's positions."""
        return rotary(self.cfg.rope, self.cfg.rotary_dims, batch.positions, self.lengths(batch))

    def lengths(self, batch: Batch) -> Array:
        """Length of each position's segment, int32 [b t]; counted only where rotary asks for it."""
        if batch.positions.shape[1] <= self.cfg.rope.original:
            return batch.positions + 1  # none can be longer than `original`
        all_segments = attention.gather_time(batch.segments)
        return jnp.sum(batch.segments[..., None] == all_segments[:, None], axis=-1, dtype=jnp.int32)

    def visibility_mask(self, q: attention.PositionIds, kv: attention.PositionIds) -> Array:
        """Bool [b t s]: which positions see which under this model's rules."""
        return attention.visibility_mask(q, kv, **self._rules)

    @property
    def table(self) -> tuple[Array, str]:
        """The weights that score tokens, and their dimensions."""
        return (self.embed[...], "v d") if self.cfg.tied else (self.head[...], "d v")

    @property
    def _rules(self) -> attention.MaskRules:
        both_ways = self.cfg.speech == "bidirectional"
        return {"window": self.cfg.window, "both_ways": both_ways}

    def logits(self, x_btd: Float[Array, "b t d"]) -> Float[Array, "b t v"]:
        """Scores of the next token, float32 [b t v]: bfloat16 would round 20.06 to 20."""
        if self.cfg.tied:
            return einsum("btd,vd->btv", x_btd, self.embed[...], jnp.float32)
        return einsum("btd,dv->btv", x_btd, self.head[...], jnp.float32)
