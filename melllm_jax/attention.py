"""Attention among the positions of packed rows, and who may see whom.

`visible` is the one rule; every implementation equals `attend`, the reference.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from melllm_jax import layout
from melllm_jax.batch import Batch


class Place(NamedTuple):
    """Where positions stand: all int32 [b t], as in `Batch`."""

    segments: Int[Array, "b t"]
    positions: Int[Array, "b t"]
    clips: Int[Array, "b t"]


def places(batch: Batch) -> Place:
    """The places of a batch's own positions."""
    return Place(batch.segments, batch.positions, batch.clips)


def visible(q: Place, kv: Place, *, window: int, both_ways: bool) -> Bool[Array, "b t s"]:
    """Which of the positions `kv` [b s] each position of `q` [b t] may attend to.

    Those of its own segment, itself and earlier; at most `window` of them where that is not 0;
    and, `both_ways`, later ones of its own clip of speech. Padding sees itself and is not seen.
    """
    q_segment, q_position, q_clip = (x[..., None] for x in q)
    segment, position, clip = (whole_time(x)[:, None] for x in kv)
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
    b, t, n, h = q_btnh.shape
    k_bskh, v_bskh = (whole_time(x) for x in (k_bskh, v_bskh))
    q_btkgh = q_btnh.reshape(b, t, k_bskh.shape[2], -1, h) * (1 / math.sqrt(h))
    split = layout.a("b k g t s")
    logits = jnp.einsum(  # bfloat16 rounds a score of 128.5 to 128, so none is ever rounded
        "btkgh,bskh->bkgts", q_btkgh, k_bskh, preferred_element_type=jnp.float32, out_sharding=split
    )
    hidden = jnp.float32(-1e30)  # finite, so that a row that sees nothing is no NaN
    logits = jnp.where(visible_bts[:, None, None], logits, hidden)
    share = jax.nn.softmax(logits, axis=-1).astype(v_bskh.dtype)
    split = layout.a("b t k g h")
    y_btkgh = jnp.einsum("bkgts,bskh->btkgh", share, v_bskh, out_sharding=split)
    return y_btkgh.reshape(b, t, n, h)


def whole_time(x: Array) -> Array:
    """`x` [b s …] with its time gathered from every device."""
    spec = jax.typeof(x).sharding.spec
    return jax.reshard(x, jax.P(spec[0], None, *spec[2:])) if spec[1] is not None else x
