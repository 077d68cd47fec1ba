"""Layouts of the KV cache: heads as rows and back, and new keys and values put into their slot."""

import jax
import jax.numpy as jnp
from jaxtyping import Array

from melllm_jax import sharding
from melllm_jax.nn import attention


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


def update_cache(held: Array, more_btkh: Array, slot: Array) -> Array:
    """The cache with new keys or values written from `slot` on."""
    more = attention.heads_first(more_btkh).astype(held.dtype)
    more = more.reshape(*held.shape[:-2], -1, held.shape[-1])
    return jax.lax.dynamic_update_slice_in_dim(held, more, slot, axis=held.ndim - 2)
