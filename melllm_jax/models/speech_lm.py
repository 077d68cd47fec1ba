"""The speech language model: a front end, a stack of decoder blocks, a head.

Shapes: [b t d] inside.
"""

from collections.abc import Callable, Mapping, Sequence

from flax import nnx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from melllm_jax.batch import Batch
from melllm_jax.config.features import Mel
from melllm_jax.config.model import Lora, Model
from melllm_jax.encoders import frontends
from melllm_jax.encoders.conformer import ConformerFrontend
from melllm_jax.encoders.whisper import WhisperConvFrontend, WhisperFrontend
from melllm_jax.models.decoder_stack import Angles, LayerContext, Stack
from melllm_jax.nn import attention, attention_kernels
from melllm_jax.nn.layers import RMSNorm, Sizes, dimension_sizes, einsum, rotary, weight
from melllm_jax.nn.noise import Draw, batch_draw
from melllm_jax.nn.remat import name_activation
from melllm_jax.nn.vocab_parallel import embed_tokens

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
        self.cfg, self.lora = cfg, lora
        self.embed = weight(rngs, size, "v d", fan_in="d")
        if cfg.front != "none":
            self.front = FRONTS[cfg.front](rngs, size, cfg)
        self.stack = Stack(rngs, size, cfg, lora)
        self.norm = RMSNorm(size, cfg.eps)
        if not cfg.tied:
            self.head = weight(rngs, size, "d v", fan_in="d")

    def __call__(self, batch: Batch, key: Array | None = None) -> Float[Array, "b t d"]:
        """Hidden states after the last norm, [b t d]; `key` turns dropout on."""
        return self.norm(self.stack(*self._stack_inputs(batch, key), key))

    def with_layers(
        self, batch: Batch, layers: Sequence[int], key: Array | None = None
    ) -> tuple[Float[Array, "b t d"], Float[Array, "n b t d"]]:
        """What `__call__` gives, and the outputs of some `layers`, counted from 0."""
        x_btd, outputs = self.stack.with_layers(*self._stack_inputs(batch, key), layers, key)
        return self.norm(x_btd), outputs

    def hidden(self, batch: Batch) -> Float[Array, "l b t d"]:
        """The output of each layer, before the last norm."""
        return self.stack.layer_outputs(*self._stack_inputs(batch))

    def _stack_inputs(
        self, batch: Batch, key: Array | None = None
    ) -> tuple[Float[Array, "b t d"], LayerContext]:
        """The stack's arguments for a batch."""
        draw = None if key is None else batch_draw(key)
        inputs, ids = self.inputs(batch, draw), attention.position_ids(batch)
        kernel = attention_kernels.choose_kernel(self.cfg.attention, inputs.shape[1], inputs.dtype)
        if kernel == "whole":
            seen = self.visibility_mask(ids, ids)
            attend: attention_kernels.AttendFn = lambda q, k, v: name_activation(
                attention.attend(q, k, v, seen), "attended"
            )
        else:
            attend = attention_kernels.make_attend_fn(
                kernel, attention_kernels.visible_ranges(ids, **self._rules), **self._rules
            )
        return inputs, LayerContext(self.angles(batch), attend, self.lora_at(batch))

    def lora_at(self, batch: Batch) -> Bool[Array, "b t"] | None:
        """The positions at which LoRA adds to the projections; None where it does at all."""
        at: Bool[Array, "b t"] = batch.is_speech
        return at if self.lora.at == "speech" else None

    def inputs(self, batch: Batch, draw: Draw | None = None) -> Float[Array, "b t d"]:
        """The input of the first layer: the front end's output at speech, embeddings at text.

        Without a front end every position is text. Nothing is drawn.
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
