"""WavLM: convolutions over samples and of positions, then blocks with a gated relative bias.

Chen et al. 2021 (arXiv 2110.13900); transformers' `WavLMModel`. Sound is [b w] at 16 kHz, scaled as
a checkpoint's preprocessor_config.json says (of the large each sound to mean 0 and variance 1); a
position t of the result is `WavLM.hop` samples.

Of padded rows the first `lengths_b` samples are real. A row is then what its sound is alone, but
where the stem has a group norm: that takes statistics of the row with its padding, as theirs does.
Positions beyond a row's length mean nothing.

The causal form has the same weights; `wavlm_stream` says what it sees, and hears it in pieces.
"""

from collections.abc import Callable
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from melllm_jax import sharding
from melllm_jax.config.encoders import WavLM
from melllm_jax.encoders.transformer_encoder import GeluMlp, SelfAttention
from melllm_jax.encoders.wavlm_convolutions import (
    CAUSAL,
    WHOLE,
    ExtendFn,
    PositionConvolution,
    Stem,
)
from melllm_jax.nn.attention import gather_time
from melllm_jax.nn.layers import LayerNorm, Sizes, weight
from melllm_jax.nn.relative_position import (
    DistanceGate,
    attend_gated,
    chunk_mask,
    distance_bias,
)
from melllm_jax.nn.remat import name_activation

GatedAttendFn = Callable[[Array, Array, Array, Array], Array]  # of q, k, v and the gate [b t n]


class GatedAttention(SelfAttention):
    """Self-attention with all four biases, and the gate of the relative bias."""

    def __init__(self, rngs: nnx.Rngs, size: Sizes):
        super().__init__(rngs, size, "qkvo")
        self.gate = DistanceGate(rngs, size)

    def __call__(
        self, x_btd: Float[Array, "b t d"], attend: GatedAttendFn
    ) -> Float[Array, "b t d"]:
        q, k, v = (self._projected(name, x_btd) for name in "qkv")
        y_btnh = name_activation(attend(q, k, v, self.gate(x_btd)), "attended")
        return self._output(y_btnh)


class PreNormBlock(nnx.Module):
    """One layer of the large: x + attention(norm x), then x + MLP(norm x)."""

    def __init__(self, rngs: nnx.Rngs, size: Sizes):
        self.attn_norm = LayerNorm(size)
        self.attn = GatedAttention(rngs, size)
        self.mlp_norm = LayerNorm(size)
        self.mlp = GeluMlp(rngs, size)

    def __call__(
        self, x_btd: Float[Array, "b t d"], attend: GatedAttendFn
    ) -> Float[Array, "b t d"]:
        x_btd = x_btd + self.attn(self.attn_norm(x_btd), attend)
        return x_btd + self.mlp(self.mlp_norm(x_btd))


class PostNormBlock(PreNormBlock):
    """One layer of the base: norm(x + attention x), then norm(x + MLP x)."""

    def __call__(
        self, x_btd: Float[Array, "b t d"], attend: GatedAttendFn
    ) -> Float[Array, "b t d"]:
        x_btd = self.attn_norm(x_btd + self.attn(x_btd, attend))
        return self.mlp_norm(x_btd + self.mlp(x_btd))


class WavLMEncoder(nnx.Module):
    """Stem, positions, blocks and a norm: after the last block, or, of the base, before the first.

    `table` is the bias of each bucket of distances, which all layers share.
    """

    def __init__(self, rngs: nnx.Rngs, cfg: WavLM):
        size = {name: getattr(cfg, name) for name in "dnhf"} | {"z": cfg.buckets}
        kind = PreNormBlock if cfg.stable else PostNormBlock
        self.cfg = cfg
        self.stem = Stem(rngs, cfg)
        self.positions = PositionConvolution(rngs, cfg)
        self.table = weight(rngs, size, "z n", fan_in="z")
        self.blocks = jax.vmap(lambda layer: kind(layer, size))(rngs.split(cfg.l))
        if cfg.last_norm:
            self.norm = LayerNorm(size)

    def __call__(
        self, waves_bw: Float[Array, "b w"], lengths_b: Int[Array, "b"] | None = None
    ) -> Float[Array, "b t d"]:
        """The output of the last block, of the large normed where it has `last_norm`."""
        x_btd, attend = self._stack_inputs(waves_bw, lengths_b)
        layer = lambda x_btd, block: (block(x_btd, attend), None)
        x_btd = jax.lax.scan(layer, x_btd, self.blocks)[0]
        return self.norm(x_btd) if self.cfg.stable and self.cfg.last_norm else x_btd

    def hidden(
        self, waves_bw: Float[Array, "b w"], lengths_b: Int[Array, "b"] | None = None
    ) -> Float[Array, "layers b t d"]:
        """What enters the first block, then the output of each: l + 1, as transformers 5 has them.

        The norm that the large has after the last block is the output's alone.
        """
        x_btd, attend = self._stack_inputs(waves_bw, lengths_b)

        def apply(x_btd: Array, block: PreNormBlock) -> tuple[Array, Array]:
            y_btd = block(x_btd, attend)
            return y_btd, y_btd

        return jnp.concatenate([x_btd[None], jax.lax.scan(apply, x_btd, self.blocks)[1]])

    def embed(self, x_btd: Float[Array, "b t d"], extend: ExtendFn) -> Float[Array, "b t d"]:
        """What enters the first block, of what the stem gives."""
        x_btd = self.positions(x_btd, extend)
        return x_btd if self.cfg.stable else self.norm(x_btd)

    def attention_bias(self, q_t: Int[Array, "t"], k_s: Int[Array, "s"]) -> Float[Array, "n t s"]:
        """The bias of queries and keys at these positions, before a layer's gate."""
        return distance_bias(self.table[...], k_s[None] - q_t[:, None], self.cfg.distance)

    def _stack_inputs(
        self, waves_bw: Array, lengths_b: Array | None
    ) -> tuple[Float[Array, "b t d"], GatedAttendFn]:
        """The input of the first block, and attention among the real positions of each row."""
        edges = CAUSAL if self.cfg.causal else WHOLE
        x_btd = self.stem(waves_bw, edges.stem)
        real_bt = real_positions(self.cfg, x_btd.shape, lengths_b)
        x_btd = self.embed(jnp.where(real_bt[..., None], x_btd, 0), edges.positions)
        return x_btd, self._attend_fn(real_bt)

    def _attend_fn(self, real_bt: Bool[Array, "b t"]) -> GatedAttendFn:
        index = jnp.arange(real_bt.shape[1], dtype=jnp.int32)
        bias_nts = self.attention_bias(index, index)
        visible_bts = jnp.broadcast_to(
            gather_time(real_bt)[:, None], (len(real_bt), *bias_nts.shape[1:])
        )
        if self.cfg.causal:
            chunks = chunk_mask(index, index, self.cfg.chunk, self.cfg.window)
            visible_bts = visible_bts & chunks[None]
        visible_bts = jax.reshard(visible_bts, sharding.a("b t s"))
        return lambda q, k, v, gate: attend_gated(q, k, v, gate, bias_nts, visible_bts)


def positions_heard(cfg: WavLM, samples: Any) -> Any:
    """Positions that are made of so many samples: a number, or an array of numbers."""
    for taps, stride in zip(cfg.kernels, cfg.strides, strict=True):
        samples = -(-samples // stride) if cfg.causal else (samples - taps) // stride + 1
    return samples


def real_positions(
    cfg: WavLM, shape: tuple[int, ...], lengths_b: Int[Array, "b"] | None
) -> Bool[Array, "b t"]:
    """Which positions of an array [b t …] are of the first `lengths_b` samples; None: all."""
    if lengths_b is None:
        return jnp.ones(shape[:2], bool, out_sharding=sharding.a("b t"))
    index = jnp.arange(shape[1], dtype=jnp.int32)[None]
    real_bt = index < positions_heard(cfg, jax.reshard(lengths_b, sharding.a("b")))[:, None]
    return jax.reshard(real_bt, sharding.a("b t"))
