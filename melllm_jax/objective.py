"""The loss: cross-entropy of the next token, in sums that any split of the batch adds up to."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from melllm_jax import attention, layout
from melllm_jax.batch import Batch
from melllm_jax.ends import Sums, scored
from melllm_jax.model import SpeechLM


def next_token(model: SpeechLM, batch: Batch, key: Array | None = None) -> Sums:
    """Summed cross-entropy of every target, told from the position before it."""
    return scored(model(batch, key), *model.table, *targets_of(batch))


def targets_of(batch: Batch) -> tuple[Int[Array, "b t"], Float[Array, "b t"]]:
    """The token after each position and its weight: 0 where the next starts another segment."""
    tokens, segments, weights = (
        jnp.pad(attention.whole_time(x)[:, 1:], ((0, 0), (0, 1)))
        for x in (batch.tokens, batch.segments, batch.loss_weight)
    )
    weights = jnp.where(segments == attention.whole_time(batch.segments), weights, 0.0)
    return jax.reshard(tokens, layout.a("b t")), jax.reshard(weights, layout.a("b t"))
