"""The loss: cross-entropy of the next token, in sums that any split of the batch adds up to."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from melllm_jax import sharding
from melllm_jax.batch import Batch
from melllm_jax.models.speech_lm import SpeechLM
from melllm_jax.nn import attention
from melllm_jax.nn.vocab_parallel import Sums, cross_entropy


def next_token_loss(model: SpeechLM, batch: Batch, key: Array | None = None) -> Sums:
    """Summed cross-entropy of every target, told from the position before it."""
    return cross_entropy(model(batch, key), *model.table, *next_token_targets(batch))


def next_token_targets(batch: Batch) -> tuple[Int[Array, "b t"], Float[Array, "b t"]]:
    """The token after each position and its weight: 0 where the next starts another segment."""
    tokens, segments, weights = (
        jnp.pad(attention.gather_time(x)[:, 1:], ((0, 0), (0, 1)))
        for x in (batch.tokens, batch.segments, batch.loss_weight)
    )
    weights = jnp.where(segments == attention.gather_time(batch.segments), weights, 0.0)
    return jax.reshard(tokens, sharding.a("b t")), jax.reshard(weights, sharding.a("b t"))
