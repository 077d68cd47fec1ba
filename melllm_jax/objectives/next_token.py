"""Cross-entropy of the next token, of speech and text on one time axis."""

from collections.abc import Mapping
import dataclasses

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from melllm_jax import sharding
from melllm_jax.batch import Batch
from melllm_jax.config.run import Run
from melllm_jax.errors import Mistake
from melllm_jax.models.parameters import Kinds
from melllm_jax.models.speech_lm import SpeechLM
from melllm_jax.nn import attention
from melllm_jax.nn.vocab_parallel import cross_entropy
from melllm_jax.objectives.objective import Companion, LossSums, Term, trainable_names


@dataclasses.dataclass(frozen=True)
class NextToken:
    """Mel-LLM's objective: the model reads speech and text, and learns its transcript.

    Raises Mistake for a run without a front end.
    """

    run: Run

    def __post_init__(self) -> None:
        if self.run.model.front == "none":
            raise Mistake('model.front="none": reads no speech: choose linear or conv')

    def build(self, rngs: nnx.Rngs) -> SpeechLM:
        """The model of the run's sizes."""
        return SpeechLM(self.run.model, self.run.mel, self.run.lora, rngs=rngs)

    def loss(
        self,
        model: SpeechLM,
        batch: Batch,
        key: Array | None = None,
        companions: Mapping[str, nnx.Module] | None = None,
    ) -> LossSums:
        """Summed cross-entropy of every target; `accuracy` counts those that were the likeliest."""
        return next_token_loss(model, batch, key if self.run.lora.dropout else None)

    def target_weights(self, batch: Batch) -> Float[Array, "b t"]:
        """The weight of the token after each position."""
        return next_token_targets(batch)[1]

    def terms(self, batch: Batch, step: Array) -> Mapping[str, Term]:
        """None."""
        return {}

    def trained(self, kinds: Kinds) -> frozenset[str]:
        """What optim.train says: all, or LoRA and the front end."""
        return trainable_names(self.run.optim, kinds)

    def companions(self) -> Mapping[str, Companion]:
        """None."""
        return {}


def next_token_loss(model: SpeechLM, batch: Batch, key: Array | None = None) -> LossSums:
    """Summed cross-entropy of every target, predicted at the position before it."""
    return token_loss(model, model(batch, key), batch)


def token_loss(model: SpeechLM, hidden_btd: Float[Array, "b t d"], batch: Batch) -> LossSums:
    """`next_token_loss` of the hidden states that the model made of the batch."""
    found = cross_entropy(hidden_btd, *model.table, *next_token_targets(batch))
    return LossSums(found.loss, found.weight, {"accuracy": found.hits})


def next_token_targets(batch: Batch) -> tuple[Int[Array, "b t"], Float[Array, "b t"]]:
    """The token after each position and its weight: 0 where the next starts another segment."""
    tokens, segments, weights = (
        jnp.pad(attention.gather_time(x)[:, 1:], ((0, 0), (0, 1)))
        for x in (batch.tokens, batch.segments, batch.loss_weight)
    )
    weights = jnp.where(segments == attention.gather_time(batch.segments), weights, 0.0)
    return jax.reshard(tokens, sharding.a("b t")), jax.reshard(weights, sharding.a("b t"))
