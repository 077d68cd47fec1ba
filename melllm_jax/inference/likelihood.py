"""The log-probability that a model gives the targets of packed rows, as of options to choose."""

import time
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32, Int, Int32
import numpy as np

from melllm_jax import sharding
from melllm_jax.batch import Batch
from melllm_jax.models.speech_lm import SpeechLM
from melllm_jax.nn import attention


class TargetScorer:
    """A model that scores what its rows say, compiled once a shape."""

    def __init__(self, model: SpeechLM) -> None:
        self.model = model  # another one of the same shape may take its place
        self.compile_seconds = 0.0  # seconds spent on it so far
        self._compiled: dict[tuple[tuple[int, ...], int], Any] = {}

    def __call__(self, batch: Batch) -> Float32[np.ndarray, "b t"]:
        """Nats of each weighted token of a NumPy batch, told from those before; else 0.

        Rows are split over the mesh in force. Scores of the vocabulary are made of the targets'
        positions alone, of which rows have few, and in float32.
        """
        weighted = batch.loss_weight > 0
        weighted[:, 0] = False  # nothing is before it
        most = int(weighted.sum(axis=1).max(initial=1))
        k = 1 << (most - 1).bit_length()  # so that few shapes are compiled
        at = np.ones((len(weighted), k), np.int32)
        for row, mask in enumerate(weighted):
            at[row, : mask.sum()] = np.flatnonzero(mask)
        arguments = self.model, sharding.shard_batch(batch), jax.device_put(at, sharding.a("b x"))
        shape = batch.tokens.shape, k
        if shape not in self._compiled:
            began = time.perf_counter()
            self._compiled[shape] = jax.jit(_target_scores).lower(*arguments).compile()
            self.compile_seconds += time.perf_counter() - began
        found = jax.device_get(self._compiled[shape](*arguments))
        scores = np.zeros(weighted.shape, np.float32)
        for row, mask in enumerate(weighted):
            scores[row, mask] = found[row, : mask.sum()]
        return scores


def _target_scores(model: SpeechLM, batch: Batch, at_bk: Int[Array, "b x"]) -> Array:
    """Log-probabilities of the tokens at places `at_bk`, float32 [b x]."""
    x_btd = attention.gather_time(model(batch))
    tokens_bt = attention.gather_time(batch.tokens)
    rows, whole = sharding.a("b x"), sharding.a("b x x")
    pick = jax.shard_map(
        lambda x, at: jnp.take_along_axis(x, at[..., None] - 1, axis=1),
        in_specs=(whole, rows),
        out_specs=whole,
    )
    scores = jax.reshard(model.logits(pick(jax.reshard(x_btd, whole), at_bk)), whole)
    told: Int32[Array, "b x"] = jax.shard_map(
        lambda tokens, at: jnp.take_along_axis(tokens, at, axis=1),
        in_specs=(rows, rows),
        out_specs=rows,
    )(tokens_bt, at_bk)
    own = jax.shard_map(
        lambda scores, told: jnp.take_along_axis(scores, told[..., None], axis=2)[..., 0],
        in_specs=(whole, rows),
        out_specs=rows,
    )(scores, told)
    return own - jax.nn.logsumexp(scores, axis=-1)
