"""Attention among the positions of packed rows, and who may see whom.

`visibility_mask` is the one rule; every implementation (`attention_kernels`) equals `attend`, the
reference.
"""

import math
from typing import NamedTuple, TypedDict

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from melllm_jax import sharding
from melllm_jax.batch import Batch

# At a time in `attend_all`: of 125 to 1,500 queries and 1 to 24 heads the fastest on two cores.
QUERIES, HEADS = 1500, 2


class PositionIds(NamedTuple):
    """What decides which positions see one another: all int32 [b t], as in `Batch`."""

    segments: Int[Array, "b t"]
    positions: Int[Array, "b t"]
    clips: Int[Array, "b t"]


class MaskRules(TypedDict):
    """What a model adds to the rule "earlier positions of its own segment"."""

    window: int  # positions seen back, itself included; 0 sees all
    both_ways: bool  # later positions of its own clip too


def position_ids(batch: Batch) -> PositionIds:
    """The ids of a batch's own positions."""
    return PositionIds(batch.segments, batch.positions, batch.clips)


def visibility_mask(
    q: PositionIds, kv: PositionIds, *, window: int, both_ways: bool
) -> Bool[Array, "b t s"]:
    """Which of the positions `kv` [b s] each position of `q` [b t] may attend to.

    Those of its own segment, itself and earlier; at most `window` of them where that is not 0;
    and, `both_ways`, later ones of its own clip of speech. Padding sees itself and is not seen.
    """
    q_segment, q_position, q_clip = (x[..., None] for x in q)
    segment, position, clip = (gather_time(x)[:, None] for x in kv)
    back = q_position - position
    near = (back < window) if window else True
    seen = (back >= 0) & near
    if both_ways:
        seen |= (q_clip == clip) & (clip > 0)
    return (q_segment == segment) & ((segment > 0) | (back == 0)) & seen


def attend(
    q_btnh: Float[Array, "b t n h"],
    k_bskh: Float[Array, "b s k h"],
    v_bskh: Float[Array, "b s k h"],
    visible_bts: Bool[Array, "b t s"],
) -> Float[Array, "b t n h"]:
    """Softmax attention in which n query heads share k key/value heads; softmax in float32.

    Where time is split over the mesh, keys and values are gathered and queries stay split.
    """
    return attend_cached(q_btnh, heads_first(k_bskh), heads_first(v_bskh), visible_bts)


def attend_cached(
    q_btnh: Float[Array, "b t n h"],
    k_bksh: Float[Array, "b k s h"],
    v_bksh: Float[Array, "b k s h"],
    visible_bts: Bool[Array, "b t s"],
) -> Float[Array, "b t n h"]:
    """`attend` for keys and values whose heads come first, as a cache keeps them.

    Products of matrices want them so: a cache kept as [b s k h] would be transposed every token.
    """
    splits = sharding.a("b k g t s"), sharding.a("b k g t h")
    return softmax_attention(q_btnh, k_bksh, v_bksh, visible_bts, splits)


def softmax_attention(
    q_btnh: Float[Array, "b t n h"],
    k_bksh: Float[Array, "b k s h"],
    v_bksh: Float[Array, "b k s h"],
    visible_bts: Bool[Array, "b t s"],
    splits: tuple[jax.P | None, jax.P | None] = (None, None),
    bias_bkgts: Float[Array, "b k g t s"] | None = None,
) -> Float[Array, "b t n h"]:
    """The softmax itself; `splits` lay out scores and sums, (None, None) inside one device.

    A bias, float32, is added to the scores.
    """
    b, t, n, h = q_btnh.shape
    q_btkgh = q_btnh.reshape(b, t, k_bksh.shape[1], -1, h) * (1 / math.sqrt(h))
    logits = jnp.einsum(  # bfloat16 rounds a score of 128.5 to 128, so none is ever rounded
        "btkgh,bksh->bkgts",
        q_btkgh,
        k_bksh,
        preferred_element_type=jnp.float32,
        out_sharding=splits[0],
    )
    # Finite, so that a row that sees nothing is no NaN; added, so that no gradient is masked again.
    logits += jnp.where(visible_bts, 0.0, -1e30)[:, None, None]
    if bias_bkgts is not None:
        logits += bias_bkgts
    share = jnp.exp(logits - jax.lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True)))
    whole = jnp.sum(share, axis=-1, keepdims=True)
    y_bkgth = jnp.einsum(
        "bkgts,bksh->bkgth",
        share.astype(v_bksh.dtype),
        v_bksh,
        preferred_element_type=jnp.float32,
        out_sharding=splits[1],
    )
    # Divided here, where it is [t, h], and not in [t, s]: one pass less over the largest array.
    y_bkgth = (y_bkgth / whole).astype(v_bksh.dtype)
    return jnp.transpose(y_bkgth, (0, 3, 1, 2, 4)).reshape(b, t, n, h)


def attend_all(
    q_btnh: Float[Array, "b t n h"],
    k_bsnh: Float[Array, "b s n h"],
    v_bsnh: Float[Array, "b s n h"],
) -> Float[Array, "b t n h"]:
    """`attend` where every position sees every one, on one CPU: a few heads at a time, no mask.

    Whisper tiny's encoder hears eight windows so in two thirds of the time that blocks of queries
    of all heads take.
    """
    (b, t, n, h), s = q_btnh.shape, k_bsnh.shape[1]
    size, g = largest_divisor(t, QUERIES), largest_divisor(b * n, HEADS)
    whole = jax.P(None, None, None, None)
    q, k, v = (jnp.swapaxes(jax.reshard(x, whole), 1, 2) for x in (q_btnh, k_bsnh, v_bsnh))
    q = (q * (1 / math.sqrt(h))).reshape(b * n // g, g, t // size, size, h)
    q = jnp.swapaxes(q, 1, 2).reshape(-1, g, size, h)
    k, v = (x.reshape(b * n // g, g, s, h) for x in (k, v))

    def one(i: Array) -> Array:
        heads = i // (t // size)
        scores = jnp.einsum("gth,gsh->gts", q[i], k[heads], preferred_element_type=jnp.float32)
        share = jnp.exp(scores - jnp.max(scores, axis=-1, keepdims=True))
        y_gth = jnp.einsum(
            "gts,gsh->gth", share.astype(v.dtype), v[heads], preferred_element_type=jnp.float32
        )
        return (y_gth / jnp.sum(share, axis=-1, keepdims=True)).astype(v.dtype)

    y = jax.lax.map(one, jnp.arange(len(q))).reshape(b * n // g, t // size, g, size, h)
    y_bnth = jnp.swapaxes(y, 1, 2).reshape(b, n, t, h)
    return jax.reshard(jnp.swapaxes(y_bnth, 1, 2), sharding.a("b t n h"))


def largest_divisor(number: int, most: int) -> int:
    """The largest divisor of a number that is `most` or less."""
    return next(x for x in range(min(number, most), 0, -1) if number % x == 0)


def heads_first(x_bskh: Float[Array, "b s k h"]) -> Float[Array, "b k s h"]:
    """Keys or values with their time gathered, in the order that `attend_cached` reads."""
    return jnp.swapaxes(gather_time(x_bskh), 1, 2)


def gather_time(x: Array) -> Array:
    """`x` [b s …] with its time gathered from every device."""
    spec = jax.typeof(x).sharding.spec
    return jax.reshard(x, jax.P(spec[0], None, *spec[2:])) if spec[1] is not None else x
