"""What a run learns: the network that it builds, the loss of a batch, and which weights change.

`training.train_step.Update` makes an update of any objective. A new one is a class with the six
methods below; `text_next_token` is the shortest, `distillation` the one that uses all of them.
"""

from collections.abc import Callable, Mapping
import dataclasses
from typing import Any, NamedTuple, Protocol, runtime_checkable

from flax import nnx
import jax
from jaxtyping import Array, Float

from melllm_jax.batch import Batch
from melllm_jax.config.run import BaseRun, Optim
from melllm_jax.models.parameters import Kinds, Net, Weights, is_encoder, is_front
from melllm_jax.nn.layers import LoraParam, NonTrainable


class LossSums(NamedTuple):
    """Float32 scalars, each a sum over the weighted targets of a batch.

    Sums, so that any split of a batch over devices or micro-batches adds up to the same loss.
    """

    loss: Array  # what is minimised, after division by `weight`
    weight: Array  # of all targets
    metrics: dict[str, Array]  # further figures of a target, divided by `weight` when reported
    terms: Mapping[str, Array] = {}  # totals of further terms, by the names of `Objective.terms`


class Term(NamedTuple):
    """How a further term of the loss counts: scale · total / weight is minimised as well.

    Its metric, total / weight, is not scaled: a term of scale 0 is a figure with a weight of its
    own. Float32 scalars.
    """

    weight: Array  # of all that the total adds up, in the batch asked about
    scale: Array


@dataclasses.dataclass(frozen=True)
class Companion:
    """A frozen network beside the one that learns, such as a teacher.

    Its weights are kept in bfloat16, but for those of `exact`, and computed with in the run's
    dtype. They have no gradient and no optimiser state, and are in no checkpoint of the run: every
    start loads them again.
    """

    build: Callable[[nnx.Rngs], nnx.Module]
    # Given shapes, dtypes and layouts by name, the weights themselves.
    load: Callable[[Mapping[str, jax.ShapeDtypeStruct]], Weights]
    exact: frozenset[str] = frozenset()  # names of weights that stay in float32
    # What the loss is given in the network's place at an update, counted from 0.
    at: Callable[[Any, Array], nnx.Module] = lambda network, step: network


@runtime_checkable
class Objective(Protocol[Net]):
    """What a run learns."""

    @property
    def run(self) -> BaseRun:
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

    def terms(self, batch: Batch, step: Array) -> Mapping[str, Term]:
        """Terms of the loss beside that of the targets, by name, at an update counted from 0."""

    def trained(self, kinds: Kinds) -> frozenset[str]:
        """The names of the weights that change."""

    def companions(self) -> Mapping[str, Companion]:
        """Frozen networks that the loss asks, by name."""


def trainable_names(cfg: Optim, kinds: Kinds) -> frozenset[str]:
    """The weights that change: all but fixed statistics, LoRA and the front end, or this alone.

    A frozen encoder leaves of the front end its projector.
    """
    kept: Mapping[str, tuple[type[nnx.Param], ...]] = {
        "all": (nnx.Param,),
        "lora": (LoraParam,),
        "front": (),
    }
    chosen = lambda name, kind: (
        (isinstance(kind, kept[cfg.train]) or is_front(name))
        and not (cfg.encoder == "frozen" and is_encoder(name))
    )
    return frozenset(
        name
        for name, kind in kinds.items()
        if not isinstance(kind, NonTrainable) and chosen(name, kind)
    )
