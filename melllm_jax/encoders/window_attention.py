"""Attention within the windows of clips, with a bias for each distance between two positions.

The bias is T5's (Raffel et al. 2020, arXiv 1910.10683) with a bucket for each distance, as
transformers' `Phi4MultimodalAudioRelativeAttentionBias` has it. Letters are the encoder's own, as
in `conformer`; inside, c counts blocks of a row, q and k positions of one and of what it reads.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from melllm_jax import sharding
from melllm_jax.config.encoders import Conformer
from melllm_jax.encoders.clip_windows import WINDOW, ClipWindows


def attend_in_windows(
    q_bsnh: Float[Array, "b s n h"],
    k_bsnh: Float[Array, "b s n h"],
    v_bsnh: Float[Array, "b s n h"],
    *,
    distances: Float[Array, "z n"],
    windows: ClipWindows,
    cfg: Conformer,
) -> Float[Array, "b s n h"]:
    """Attention within windows, with a bias for each distance and head; softmax in float32.

    Positions of other chunks than its own and the `left` before are not hidden from a position:
    theirs adds the mask to the scores as the numbers 0 and 1, and so e times the weight of what is
    seen. A row is cut into blocks of `WINDOW`: a window lies in two of them at most, so a block
    reads its own keys, and those of the block before and after.
    """
    local = functools.partial(_attend, cfg)
    heads, ids = sharding.a("b s n h"), sharding.a("b s")
    specs = (heads, heads, heads, sharding.w("z n"), ids, ids)
    return jax.shard_map(local, in_specs=specs, out_specs=heads)(
        q_bsnh, k_bsnh, v_bsnh, jax.reshard(distances, sharding.w("z n")), *windows
    )


def _attend(
    cfg: Conformer, q: Array, k: Array, v: Array, distances: Array, ids: Array, places: Array
) -> Array:
    """`attend_in_windows` on one device's rows and heads."""
    b, s, n, h = q.shape
    length = min(s, WINDOW)
    blocks = -(-s // length)
    pad = lambda x: jnp.pad(x, [(0, 0), (0, blocks * length - s)] + [(0, 0)] * (x.ndim - 2))
    cut = lambda x: pad(x).reshape(b, blocks, length, *x.shape[2:])
    around = cut if blocks == 1 else lambda x: _with_neighbours(cut(x))
    scores = jnp.einsum(
        "bcqnh,bcknh->bcnqk",
        cut(q) * (h**-0.5),
        around(k),
        preferred_element_type=jnp.float32,
    )
    scores += _distance_bias(distances, length, 0 if blocks == 1 else length)[None, None]
    own, others = cut(ids)[..., None], around(ids)[:, :, None]
    added = jnp.where(own == others, 0.0, -1e30)
    if cfg.chunk:
        back = cut(places)[..., None] // cfg.chunk - around(places)[:, :, None] // cfg.chunk
        added += (back >= 0) & (back <= cfg.left)
    scores += added[:, :, None]
    share = jnp.exp(scores - jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True)))
    whole = jnp.sum(share, axis=-1)
    y = jnp.einsum(
        "bcnqk,bcknh->bcqnh",
        share.astype(v.dtype),
        around(v),
        preferred_element_type=jnp.float32,
    )
    y = (y / jnp.swapaxes(whole, -1, -2)[..., None]).astype(v.dtype)
    return y.reshape(b, blocks * length, n, h)[:, :s]


def _with_neighbours(x: Array) -> Array:
    """[b c q …] as [b c 3q …]: each block between the one before and the one after, else zeros."""
    padded = jnp.pad(x, [(0, 0), (1, 1)] + [(0, 0)] * (x.ndim - 2))
    return jnp.concatenate([padded[:, :-2], x, padded[:, 2:]], axis=2)


def _distance_bias(distances_zn: Array, length: int, before: int) -> Float[Array, "n q k"]:
    """The bias of each query of a block and each key, of which `before` lie before the block.

    Along a diagonal all are the same: a row is the one above, a position later.
    """
    most, n = len(distances_zn) // 2, distances_zn.shape[1]
    keys = length + 2 * before
    later = jnp.arange(keys)  # distance from key to query, plus `before`, of the first row
    earlier = jnp.arange(1 - length, 0)
    reach = jnp.concatenate([later, jnp.zeros(1, later.dtype), earlier]) - before
    line = distances_zn[jnp.clip(reach, -most, most - 1) + most].astype(jnp.float32).T
    rows = jnp.broadcast_to(line[:, None], (n, length, keys + length)).reshape(n, -1)
    period = keys + length - 1
    return rows[:, : length * period].reshape(n, length, period)[..., :keys]
