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
    # The vocabulary is split over the mesh: picking the target's score and the sum of exponents
    # are two small all-reduces, which explicit axes cannot spell.
    spread = jax.sharding.auto_axes(_cross_entropy, out_sharding=(layout.a("b t"),) * 2)
    loss_bt, hit_bt = spread(logits_btv, targets_bt)
    total = lambda x: jnp.sum(x * weights_bt)
    return Sums(total(loss_bt), total(hit_bt), jnp.sum(weights_bt))


def _cross_entropy(logits_btv: Array, targets_bt: Array) -> tuple[Array, Array]:
    picked = jnp.take_along_axis(logits_btv, targets_bt[..., None], axis=-1)[..., 0]
    hit = jnp.argmax(logits_btv, axis=-1) == targets_bt
    return jax.nn.logsumexp(logits_btv, axis=-1) - picked, hit.astype(jnp.float32)
