"""Train on an objective of your own: cross-entropy with label smoothing.

    python examples/custom_objective.py digits corpora/digits runs/smooth optim.steps=200

An objective says which network is built, which weights change, and what a batch costs. `NextToken`
is Mel-LLM's; here only its loss is another one.
"""

import dataclasses
import json
import sys

from flax import nnx
import jax
import jax.numpy as jnp

from launch import api
from melllm_jax.nn.vocab_parallel import cross_entropy
from melllm_jax.objectives.next_token import next_token_targets

SMOOTHING = 0.1  # share of each target that is spread evenly over the vocabulary


@dataclasses.dataclass(frozen=True)
class SmoothedNextToken(api.NextToken):
    """The next token, told with some doubt (Szegedy et al. 2016, arXiv 1512.00567)."""

    def loss(self, model: nnx.Module, batch: api.Batch, key=None, companions=None) -> api.LossSums:
        """Sums over the targets of a batch [b t]; further figures go into metrics.jsonl."""
        hidden = model(batch, key)  # [b t d]
        targets, weights = next_token_targets(batch)  # [b t] each
        plain = cross_entropy(hidden, *model.table, targets, weights)
        doubt = -jnp.mean(jax.nn.log_softmax(model.logits(hidden)), axis=-1)  # [b t]
        loss = (1 - SMOOTHING) * plain.loss + SMOOTHING * jnp.sum(doubt * weights)
        figures = {"accuracy": plain.hits, "cross_entropy": plain.loss}
        return api.LossSums(loss, plain.weight, figures)


if __name__ == "__main__":
    preset, data, workdir, *changes = sys.argv[1:]
    overrides = {name: json.loads(value) for name, value in (x.split("=", 1) for x in changes)}
    done = api.train(preset, data, workdir, overrides, objective=SmoothedNextToken)
    print(f"{done.steps} updates in {done.folder}, loss {done.loss:.3f}")
