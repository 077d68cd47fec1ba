"""A Whisper's decoder over what its encoder gave, keys and values kept.

Those of the encoder's positions are made once, those of the tokens as they come. All rows write the
same slot of the cache.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from melllm_jax import sharding
from melllm_jax.inference.decoding_weights import blocks_are_faster, layer_in_blocks
from melllm_jax.inference.kv_cache import CacheLayout, LayerCache
from melllm_jax.models.whisper import DecoderBlock, WhisperModel
from melllm_jax.nn.blocked_weight import BLOCK, BlockedWeight, has_blocks, to_blocks
from melllm_jax.nn.layers import einsum


class WhisperWeights(NamedTuple):
    """The decoder's weights in the order in which the loop over tokens reads them fastest.

    See `decoding_weights`.
    """

    layers: list[DecoderBlock]
    head: BlockedWeight | None  # with more columns than tokens; None where the model's is as good


def make_ready(model: WhisperModel) -> WhisperWeights:
    """The weights of a model on the mesh in force."""
    return _make_ready(model, blocks_are_faster())


@functools.partial(jax.jit, static_argnums=1)
def _make_ready(model: WhisperModel, in_blocks: bool) -> WhisperWeights:
    layers = [model.decoder.layer(i) for i in range(model.spec.decoder.l)]
    if not in_blocks:
        return WhisperWeights(layers, None)
    layers, table = list(map(layer_in_blocks, layers)), model.decoder.embed[...]
    if not has_blocks(BLOCK, table.dtype):
        return WhisperWeights(layers, None)
    # The vocabularies of tiny.en to large-v3 are no multiples of the width of a block.
    table = jnp.pad(table, ((0, -len(table) % BLOCK), (0, 0)))
    return WhisperWeights(layers, to_blocks(table.T, 1))


class CachedDecoder:
    """The decoder over rows of what the encoder gave [b s d], with room for `slots` tokens each."""

    def __init__(
        self,
        model: WhisperModel,
        weights: WhisperWeights,
        states_bsd: Float[Array, "b s d"],
        slots: int,
    ):
        self._decoder, self._weights = model.decoder, weights
        (self._b, s), n, h = states_bsd.shape[:2], model.spec.decoder.n, model.spec.h
        self._own = CacheLayout.on_mesh(self._b, slots, n, h)
        self._cross = CacheLayout.on_mesh(self._b, s, n, h)
        self._dtype = states_bsd.dtype
        self._heard = [self._keys_values(layer, states_bsd) for layer in weights.layers]

    def empty(self) -> list[LayerCache]:
        """The cache before the first token."""
        return [self._own.empty(self._dtype) for _ in self._weights.layers]

    def __call__(
        self, tokens_bt: Int[Array, "b t"], slot: Array | int, cache: list[LayerCache]
    ) -> tuple[Float[Array, "b v"], list[LayerCache]]:
        """Scores of what follows the last of the tokens, at places from `slot` on, and the cache.

        Those before are in `cache`, and the tokens in the new one.
        """
        t = tokens_bt.shape[1]
        x = self._decoder.inputs(tokens_bt, slot)
        places = jnp.arange(self._own.slots)[None] <= slot + jnp.arange(t)[:, None]
        seen = self._own.expand_mask(_for_rows(places, self._b))
        heard = self._cross.expand_mask(_for_rows(jnp.ones((t, self._cross.slots), bool), self._b))
        new_cache = []
        layers = zip(self._weights.layers, cache, self._heard, strict=True)
        for layer, layer_cache, keys_values in layers:
            kept: list[LayerCache] = []

            def attend(
                q: Array, k: Array, v: Array, old: LayerCache = layer_cache, kept: list = kept
            ) -> Array:
                y, new = self._own.attend((q, k, v), old, slot, seen)
                kept.append(new)
                return y

            x = layer(x, attend, lambda q, kv=keys_values: self._cross.read(q, kv, heard))
            new_cache += kept
        return self._scores(x), new_cache

    def _keys_values(self, layer: DecoderBlock, states_bsd: Array) -> LayerCache:
        k, v = layer.cross.keys_values(states_bsd)
        return self._cross.filled(k, v)

    def _scores(self, x_btd: Float[Array, "b t d"]) -> Float[Array, "b v"]:
        """Scores of the token after the last position."""
        x_btd = self._decoder.norm(x_btd[:, -1:])
        if self._weights.head is None:
            return self._decoder.logits(x_btd)[:, 0]
        scores = einsum("btd,dv->btv", x_btd, self._weights.head, jnp.float32)
        return scores[:, 0, : self._decoder.embed.shape[0]]


def _for_rows(seen_ts: Array, b: int) -> Array:
    """A mask [t s] for each of b rows."""
    seen_bts = jnp.broadcast_to(seen_ts[None], (b, *seen_ts.shape))
    return jax.reshard(seen_bts, sharding.a("b t s"))
