"""The loss on batches that are not trained on."""

from collections.abc import Iterable, Mapping
import dataclasses

import jax

from melllm_jax import sharding
from melllm_jax.batch import Batch
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
    loss = weight = 0.0
    metrics: dict[str, float] = {}
    with jax.set_mesh(mesh):
        sums = jax.jit(update.loss_sums)
        for batch in batches:
            found = jax.device_get(sums(state, sharding.shard_batch(batch)))
            loss, weight = loss + float(found.loss), weight + float(found.weight)
            for name, total in found.metrics.items():
                metrics[name] = metrics.get(name, 0.0) + float(total)
    divisor = max(weight, 1e-9)
    means = {name: total / divisor for name, total in metrics.items()}
    return HeldOutLoss(loss / divisor, means, weight)
