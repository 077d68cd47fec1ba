"""The KV cache of a layer: its layout, attention over it, and how keys and values enter it."""

from collections.abc import Sequence
import dataclasses

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array

from melllm_jax import sharding
from melllm_jax.nn import attention

LayerCache = tuple[Array, Array]  # keys and values of one layer, in the layout of its `CacheLayout`


@dataclasses.dataclass(frozen=True)
class CacheLayout:
    """Shape of the keys, and of the values, of one layer over `b` rows of `slots` positions.

    On one device every KV head is a row of its own, and the cache is [b k, s, h]: just what the
    product with it reads. From any other shape XLA on a CPU copies the cache for every token. On
    several devices it is [b k s h].
    """

    b: int
    slots: int
    k: int  # KV heads
    h: int
    split_heads: int  # KV heads that are rows: k or 1

    @classmethod
    def on_mesh(cls, b: int, slots: int, k: int, h: int) -> "CacheLayout":
        """The layout for the mesh in force."""
        alone = jax.sharding.get_abstract_mesh().size == 1
        return cls(b, slots, k, h, split_heads=k if alone else 1)

    def empty(self, dtype: DTypeLike) -> LayerCache:
        """A cache of zeros."""
        if self.split_heads > 1:
            zeros = jnp.zeros((self.b * self.split_heads, self.slots, self.h), dtype)
        else:
            shape = (self.b, self.k, self.slots, self.h)
            zeros = jnp.zeros(shape, dtype, out_sharding=sharding.a("b k s h"))
        return zeros, zeros

    def expand_mask(self, seen_bts: Array) -> Array:
        """The mask of a batch's rows [b t s] as that of the cache's rows."""
        spec = sharding.a("b t s")
        return jnp.repeat(seen_bts, self.split_heads, axis=0, out_sharding=spec)

    def attend(
        self, qkv: Sequence[Array], cache: LayerCache, slot: Array | int, seen: Array
    ) -> tuple[Array, LayerCache]:
        """Attention over a layer's cache once new keys and values are in it from `slot` on.

        `qkv` are queries [b t n h], keys and values [b t k h]; `seen` is the mask of the cache's
        rows. Gives what the queries read, [b t n h], and the new cache.
        """
        q, k, v = qkv
        new_k, new_v = (
            update_cache(old, heads_as_rows(x, self.split_heads), slot)
            for old, x in zip(cache, (k, v), strict=True)
        )
        return self.read(q, (new_k, new_v), seen), (new_k, new_v)

    def filled(self, k_bskh: Array, v_bskh: Array) -> LayerCache:
        """A cache of these keys and values, of all slots."""
        rows = (heads_as_rows(x, self.split_heads) for x in (k_bskh, v_bskh))
        k, v = (attention.heads_first(x) for x in rows)
        if self.split_heads > 1:
            k, v = (x[:, 0] for x in (k, v))
        return k, v

    def read(self, q_btnh: Array, cache: LayerCache, seen: Array) -> Array:
        """Attention of queries [b t n h] over a layer's cache as it is."""
        shape = (self.b * self.split_heads, self.k // self.split_heads, self.slots, self.h)
        k, v = (x.reshape(shape) for x in cache)
        q = heads_as_rows(q_btnh, self.split_heads)
        return rows_as_heads(attention.attend_cached(q, k, v, seen), self.split_heads)


def heads_as_rows(x_btnh: Array, heads: int) -> Array:
    """[b t n h] as [b·heads t n/heads h]: heads that share keys and values become rows."""
    if heads == 1:
        return x_btnh
    b, t, n, h = x_btnh.shape
    x = jax.reshard(x_btnh, jax.P(None, None, None, None)).reshape(b, t, heads, n // heads, h)
    return jnp.moveaxis(x, 2, 1).reshape(b * heads, t, n // heads, h)


def rows_as_heads(x_btnh: Array, heads: int) -> Array:
    """The inverse of `heads_as_rows`."""
    if heads == 1:
        return x_btnh
    b, t, n, h = x_btnh.shape
    x = jax.reshard(x_btnh, jax.P(None, None, None, None)).reshape(b // heads, heads, t, n, h)
    x = jnp.moveaxis(x, 1, 2).reshape(b // heads, t, heads * n, h)
    return jax.reshard(x, sharding.a("b t n h"))


def update_cache(cache: Array, new_btkh: Array, slot: Array | int) -> Array:
    """The cache with new keys or values written from `slot` on."""
    new = attention.heads_first(new_btkh).astype(cache.dtype)
    new = new.reshape(*cache.shape[:-2], -1, cache.shape[-1])
    return jax.lax.dynamic_update_slice_in_dim(cache, new, slot, axis=cache.ndim - 2)
