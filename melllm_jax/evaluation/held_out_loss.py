"""The loss on batches that are not trained on."""

from collections.abc import Callable, Iterable, Mapping
import dataclasses

import jax

from melllm_jax import sharding
from melllm_jax.batch import Batch
from melllm_jax.models.speech_lm import SpeechLM
from melllm_jax.objectives.next_token import next_token_loss
from melllm_jax.objectives.objective import LossSums
from melllm_jax.training.train_step import State, Update


@dataclasses.dataclass(frozen=True)
class HeldOutLoss:
    """Means over the weighted targets of all batches."""

    loss: float  # a target, as the objective has it: nats of a token
    metrics: Mapping[str, float]  # the objective's further figures of a target: accuracy
    targets: float  # their number


def measure_loss(
    update: Update, state: State, batches: Iterable[Batch], mesh: jax.sharding.Mesh
) -> HeldOutLoss:
    """The loss of a state's weights, in the run's compute dtype and without dropout.

    `batches` are NumPy batches of this host's rows, the same number on every host.
    """
    with jax.set_mesh(mesh):
        sums = jax.jit(update.loss_sums)
        return mean_over_batches(lambda batch: sums(state, batch), batches)


def measure_next_token_loss(model: SpeechLM, batches: Iterable[Batch]) -> HeldOutLoss:
    """The cross-entropy of the next token that a model has; the mesh in force is its own.

    `batches` are as those of `measure_loss`.
    """
    sums = jax.jit(next_token_loss)
    return mean_over_batches(lambda batch: sums(model, batch), batches)


def mean_over_batches(sums: Callable[[Batch], LossSums], batches: Iterable[Batch]) -> HeldOutLoss:
    """The means of what `sums` gives for each batch, once it lies on the mesh in force."""
    loss = weight = 0.0
    metrics: dict[str, float] = {}
    for batch in batches:
        found = jax.device_get(sums(sharding.shard_batch(batch)))
        loss, weight = loss + float(found.loss), weight + float(found.weight)
        for name, total in found.metrics.items():
            metrics[name] = metrics.get(name, 0.0) + float(total)
    divisor = max(weight, 1e-9)
    means = {name: total / divisor for name, total in metrics.items()}
    return HeldOutLoss(loss / divisor, means, weight)
