"""A model over prompts and what follows them, keys and values of earlier positions kept."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from melllm_jax.batch import Batch
from melllm_jax.inference.decoding_weights import DecodingWeights
from melllm_jax.inference.kv_cache import CacheLayout, LayerCache
from melllm_jax.inference.sampling import fill_rows
from melllm_jax.models.decoder_stack import Block, LayerContext
from melllm_jax.models.speech_lm import SpeechLM
from melllm_jax.nn import attention
from melllm_jax.nn.attention import PositionIds
from melllm_jax.nn.layers import rotary


class CachedModel:
    """The model over a batch of prompts [b t] and up to `steps` positions after each, cached.

    `limits` are the most tokens after each prompt.
    """

    def __init__(
        self,
        model: SpeechLM,
        weights: DecodingWeights,
        prompt: Batch,
        limits: Int[Array, "b"],
        steps: int,
    ):
        b, t = prompt.tokens.shape
        self._model, self._weights = model, weights
        self.prompt_lengths = jnp.sum(prompt.segments, axis=1)  # the segment of prompts is 1
        later = self.prompt_lengths[:, None] + jnp.arange(steps, dtype=jnp.int32)[None]
        append = lambda x, more: jnp.concatenate([attention.gather_time(x), more], axis=1)
        self._slot_ids = PositionIds(
            append(prompt.segments, fill_rows(b, steps, 1)),
            append(prompt.positions, later),
            append(prompt.clips, fill_rows(b, steps, 0)),
        )
        # One length for the whole row: LongRoPE must not change midway.
        self._row_lengths = (self.prompt_lengths + limits)[:, None]
        self._prompt_slots = t
        self._layout = CacheLayout.on_mesh(b, t + steps, model.cfg.k, model.cfg.h)

    def prefill(self, prompt: Batch) -> tuple[Float[Array, "b v"], list[LayerCache]]:
        """Scores of the first token after each prompt, and the cache that holds the prompts."""
        x, cache = self.prefill_inputs(self._model.inputs(prompt), prompt)
        return self.scores(x), cache

    def prefill_inputs(
        self, x: Float[Array, "b t d"], prompt: Batch
    ) -> tuple[Float[Array, "b 1 d"], list[LayerCache]]:
        """The last hidden state of each prompt whose inputs are `x`, and the cache that holds them.

        One compiled layer serves all: slicing it out of the stack is little beside many positions.
        """
        empty = self._layout.empty(x.dtype)
        ids, lora_at = attention.position_ids(prompt), self._model.lora_at(prompt)
        through = self._layer_function(ids, jnp.int32(0), lora_at)
        blocks, count = self._model.stack.blocks, self._model.cfg.l
        x, stacked = jax.lax.scan(lambda x, layer: through(layer, x, empty), x, blocks)
        cache = [(stacked[0][i], stacked[1][i]) for i in range(count)]
        return self._model.norm(x[:, -1:]), cache

    def decode(
        self, tokens: Int[Array, "b"], i: Array, cache: list[LayerCache]
    ) -> tuple[Float[Array, "b v"], list[LayerCache]]:
        """Scores of what follows token `i` after each prompt, and the cache with that token."""
        x, cache = self.decode_inputs(self._model.embed_text(tokens[:, None]), i, cache)
        return self.scores(x), cache

    def decode_inputs(
        self, x: Float[Array, "b 1 d"], i: Array, cache: list[LayerCache]
    ) -> tuple[Float[Array, "b 1 d"], list[LayerCache]]:
        """The hidden state of position `i` after each prompt, of input `x`, and the cache with it.

        What comes after a prompt is of no clip that is heard.
        """
        b = len(x)
        ids = PositionIds(
            fill_rows(b, 1, 1), (self.prompt_lengths + i)[:, None], fill_rows(b, 1, 0)
        )
        through = self._layer_function(ids, self._prompt_slots + i)
        new_cache = []
        for layer, layer_cache in zip(self._weights.layers, cache, strict=True):
            x, new = through(layer, x, layer_cache)
            new_cache.append(new)
        return self._model.norm(x), new_cache

    def _layer_function(
        self, ids: PositionIds, slot: Array, lora_at: Bool[Array, "b t"] | None = None
    ) -> Callable[[Block, Array, LayerCache], tuple[Array, LayerCache]]:
        """A layer over positions `ids`, whose keys and values fill its cache from `slot` on."""
        model, layout = self._model, self._layout
        seen = layout.expand_mask(model.visibility_mask(ids, self._slot_ids))
        lengths = jnp.broadcast_to(self._row_lengths, ids.positions.shape)
        angles = rotary(model.cfg.rope, model.cfg.rotary_dims, ids.positions, lengths)

        def through(layer: Block, x: Array, cache: LayerCache) -> tuple[Array, LayerCache]:
            kept = []

            def attend(q: Array, k: Array, v: Array) -> Array:
                y, new = layout.attend((q, k, v), cache, slot, seen)
                kept.append(new)
                return y

            return layer(x, LayerContext(angles, attend, lora_at)), kept[0]

        return through

    def scores(self, x: Float[Array, "b 1 d"]) -> Float[Array, "b v"]:
        """Scores of the token after a hidden state."""
        return self._weights.logits(self._model, x)[:, 0]
