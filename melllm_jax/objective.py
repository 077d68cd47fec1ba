"""The loss: cross-entropy of the next token, in sums that any split of the batch adds up to.

Logits are made chunk by chunk over time and made again in the backward pass, so [t, v] never
stands whole.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from melllm_jax import attention, layout
from melllm_jax.batch import Batch
from melllm_jax.model import SpeechLM

CHUNK = 512  # positions whose logits stand at once


class Sums(NamedTuple):
    """Float32 scalars, each a sum over the weighted targets of a batch."""

    loss: Array  # nats
    hits: Array  # targets that were the likeliest token
    weight: Array  # weights


def next_token(model: SpeechLM, batch: Batch, key: Array | None = None) -> Sums:
    """Summed cross-entropy of every target, told from the position before it."""
    x_btd = model(batch, key)
    targets, weights = targets_of(batch)
    t = x_btd.shape[1]
    size = CHUNK if t % CHUNK == 0 else t
    score = lambda x, y, w: _sums(model.logits(x), y, w)
    if t == size:
        return score(x_btd, targets, weights)
    sums = Sums(*[jnp.zeros(()) for _ in Sums._fields])
    for start in range(0, t, size):
        part = slice(start, start + size)
        more = jax.checkpoint(score)(x_btd[:, part], targets[:, part], weights[:, part])
        sums = jax.tree.map(jnp.add, sums, more)
    return sums


def targets_of(batch: Batch) -> tuple[Int[Array, "b t"], Float[Array, "b t"]]:
    """The token after each position and its weight: 0 where the next starts another segment."""
    tokens, segments, weights = (
        jnp.pad(attention.whole_time(x)[:, 1:], ((0, 0), (0, 1)))
        for x in (batch.tokens, batch.segments, batch.loss_weight)
    )
    weights = jnp.where(segments == attention.whole_time(batch.segments), weights, 0.0)
    return jax.reshard(tokens, layout.a("b t")), jax.reshard(weights, layout.a("b t"))


def _sums(logits_btv: Array, targets_bt: Array, weights_bt: Array) -> Sums:
    # A comparison with every id, not a look-up: it fuses, its gradient is no scatter into [b t v],
    # and where the vocabulary is split over the mesh its sum is one small all-reduce.
    ids = jnp.arange(logits_btv.shape[-1], dtype=jnp.int32, out_sharding=layout.a("v"))
    own = ids[None, None] == targets_bt[..., None]
    picked_bt = jnp.sum(jnp.where(own, logits_btv, 0.0), axis=-1)
    top_bt = jax.lax.stop_gradient(jnp.max(logits_btv, axis=-1))
    loss_bt = (
        top_bt + jnp.log(jnp.sum(jnp.exp(logits_btv - top_bt[..., None]), axis=-1)) - picked_bt
    )
    total = lambda x: jnp.sum(x * weights_bt)
    hit_bt = (picked_bt >= top_bt).astype(jnp.float32)
    return Sums(total(loss_bt), total(hit_bt), jnp.sum(weights_bt))
