"""What a run learns: the network that it builds, the loss of a batch, and which weights change.

`training.train_step.Update` makes an update of any objective. A new one is a class with the five
methods below; `text_next_token` is the shortest.
"""

from collections.abc import Callable, Mapping
import dataclasses
from typing import NamedTuple, Protocol, runtime_checkable

from flax import nnx
import jax
from jaxtyping import Array, Float

from melllm_jax.batch import Batch
from melllm_jax.config.run import Optim, Run
from melllm_jax.models.parameters import Kinds, Net, Weights
from melllm_jax.nn.layers import LoraParam, NonTrainable


class LossSums(NamedTuple):
    """Float32 scalars, each a sum over the weighted targets of a batch.

    Sums, so that any split of a batch over devices or micro-batches adds up to the same loss.
    """

    loss: Array  # what is minimised, after division by `weight`
    weight: Array  # of all targets
    metrics: dict[str, Array]  # further figures of a target, divided by `weight` when reported


@dataclasses.dataclass(frozen=True)
class Companion:
    """A frozen network beside the one that learns, such as a teacher.

    Its weights are bfloat16, have no gradient and no optimiser state, and are in no checkpoint of
    the run: every start loads them again.
    """

    build: Callable[[nnx.Rngs], nnx.Module]
    # Given shapes, dtypes and layouts by name, the weights themselves.
    load: Callable[[Mapping[str, jax.ShapeDtypeStruct]], Weights]


@runtime_checkable
class Objective(Protocol[Net]):
    """What a run learns."""

    @property
    def run(self) -> Run:
        """The run that this is the objective of."""

    def build(self, rngs: nnx.Rngs) -> Net:
        """The network that learns."""

    def loss(
        self,
        model: Net,
        batch: Batch,
        key: Array | None,
        companions: Mapping[str, nnx.Module],
    ) -> LossSums:
        """The loss of a batch; `key` draws dropout, None draws none."""

    def target_weights(self, batch: Batch) -> Float[Array, "b t"]:
        """The weight of the target at each position: their sum is `LossSums.weight`."""

    def trained(self, kinds: Kinds) -> frozenset[str]:
        """The names of the weights that change."""

    def companions(self) -> Mapping[str, Companion]:
        """Frozen networks that the loss asks, by name."""


PROJECTOR = tuple(f"front.{name}" for name in ("up", "up_bias", "down", "down_bias"))


def trainable_names(cfg: Optim, kinds: Kinds) -> frozenset[str]:
    """The weights that change: all but fixed statistics, or LoRA and the front end alone.

    Of a front end whose encoder is frozen, the projector alone.
    """

    def chosen(name: str, kind: nnx.Param) -> bool:
        if name.startswith("front."):
            return cfg.encoder == "trained" or name in PROJECTOR
        return cfg.train == "all" or isinstance(kind, LoraParam)

    return frozenset(
        name
        for name, kind in kinds.items()
        if not isinstance(kind, NonTrainable) and chosen(name, kind)
    )
