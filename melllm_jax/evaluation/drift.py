"""How far a model has moved from another, its start say: KL divergence a token, on the same text.

Both have the same tokens. One may have rows more for what is no text, such as sound: the two are
compared over the rows that both have.
"""

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from melllm_jax.batch import Batch
from melllm_jax.evaluation.held_out_loss import HeldOutLoss, mean_over_batches
from melllm_jax.models.speech_lm import SpeechLM
from melllm_jax.nn import attention
from melllm_jax.nn.layers import einsum
from melllm_jax.nn.vocab_parallel import cross_entropy
from melllm_jax.objectives.next_token import next_token_targets, token_loss
from melllm_jax.objectives.objective import LossSums

POSITIONS = 512  # of a batch, whose scores of all tokens are in memory at once


def measure_drift(model: SpeechLM, base: SpeechLM, batches: Iterable[Batch]) -> HeldOutLoss:
    """The loss of `model` as `measure_next_token_loss` has it, and three metrics of a target.

    `kl` is KL(base ‖ model), `base_loss` and `model_loss` are the cross-entropies of the two, all
    in nats over the tokens that both have. Where the models say the same bit for bit, `kl` is 0.
    The mesh in force is that of both, and splits neither time nor tokens.
    """
    sums = jax.jit(_drift_sums)
    return mean_over_batches(lambda batch: sums(model, base, batch), batches)


def kl_divergence(log_p: Any, log_q: Any) -> Any:
    """KL(p ‖ q) in nats, [...], of log-probabilities [... v] of NumPy or JAX."""
    xp = log_p.__array_namespace__()
    return xp.sum(xp.exp(log_p) * (log_p - log_q), axis=-1)


def _drift_sums(model: SpeechLM, base: SpeechLM, batch: Batch) -> LossSums:
    v = min(model.cfg.v, base.cfg.v)
    targets, weights = next_token_targets(batch)
    hidden = {"model": model(batch), "base": base(batch)}
    tables = {name: _rows(net, v) for name, net in (("model", model), ("base", base))}
    losses = {
        f"{name}_loss": cross_entropy(x, *tables[name], targets, weights).loss
        for name, x in hidden.items()
    }
    kl = _kl_sum([(hidden[name], *tables[name]) for name in ("base", "model")], weights)
    found = token_loss(model, hidden["model"], batch)
    return found._replace(metrics={**found.metrics, **losses, "kl": kl})


def _rows(model: SpeechLM, v: int) -> tuple[Array, str]:
    """The first `v` tokens of what scores them, and its dimensions."""
    table, dims = model.table
    return (table[:v] if dims == "v d" else table[:, :v]), dims


def _kl_sum(
    pair: list[tuple[Float[Array, "b t d"], Array, str]], weights_bt: Float[Array, "b t"]
) -> Float[Array, ""]:
    """KL of the first's next token from the second's, summed over the weighted positions.

    A few positions at a time: the scores of all would be the largest arrays by far.
    """
    b, t = weights_bt.shape
    length = attention.largest_divisor(t, max(POSITIONS // b, 1))

    def in_parts(x: Array) -> Array:
        x = attention.gather_time(x)
        return jnp.moveaxis(x.reshape(b, t // length, length, *x.shape[2:]), 1, 0)

    def add_part(total: Array, part: tuple[list[Array], Array]) -> tuple[Array, None]:
        logs = [
            jax.nn.log_softmax(einsum(f"btd,{dims.replace(' ', '')}->btv", x, table, jnp.float32))
            for x, (_, table, dims) in zip(part[0], pair, strict=True)
        ]
        return total + jnp.sum(kl_divergence(*logs) * part[1]), None

    parts = [in_parts(x) for x, _, _ in pair], in_parts(weights_bt)
    return jax.lax.scan(add_part, jnp.float32(0), parts)[0]
