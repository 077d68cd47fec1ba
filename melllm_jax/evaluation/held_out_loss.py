"""The loss on batches that are not trained on."""

from collections.abc import Iterable
import dataclasses

import jax

from melllm_jax import sharding
from melllm_jax.batch import Batch
from melllm_jax.nn.vocab_parallel import Sums
from melllm_jax.objectives.next_token import next_token_loss
from melllm_jax.training.train_step import State, Update


@dataclasses.dataclass(frozen=True)
class HeldOutLoss:
    """Means over the weighted targets of all batches: the tokens of transcripts and their ends."""

    loss: float  # nats a target
    accuracy: float  # share of targets that were the likeliest token
    targets: float  # their number


def measure_loss(
    update: Update, state: State, batches: Iterable[Batch], mesh: jax.sharding.Mesh
) -> HeldOutLoss:
    """The loss of a state's weights, in the run's compute dtype and without dropout.

    `batches` are NumPy batches of this host's rows, the same number on every host.
    """

    def sums(state: State, batch: Batch) -> Sums:
        model = update.skeleton.model(state.trained | state.frozen, update.dtype)
        return next_token_loss(model, batch)

    loss = hits = weight = 0.0
    with jax.set_mesh(mesh):
        summed = jax.jit(sums)
        for batch in batches:
            found = jax.device_get(summed(state, sharding.shard_batch(batch)))
            loss, hits = loss + float(found.loss), hits + float(found.hits)
            weight += float(found.weight)
    least = max(weight, 1e-9)
    return HeldOutLoss(loss / least, hits / least, weight)
