"""Generates tokens from prompts with a KV cache, compiled once a shape.

Prompts of a batch end at the same position (they are padded on the left), so that every row writes
the same slot of the cache. `decoding_weights` says in what order the weights are read.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int
import numpy as np

from melllm_jax import sharding
from melllm_jax.batch import Batch
from melllm_jax.inference import decoding_weights
from melllm_jax.inference.cached_model import CachedModel
from melllm_jax.inference.compiled import CompiledFunctions, bucket_length
from melllm_jax.inference.decoding_weights import DecodingWeights
from melllm_jax.inference.sampling import GREEDY, DecodingOptions
from melllm_jax.inference.token_loop import Generation, LoopState
from melllm_jax.models.parameters import text_model
from melllm_jax.models.speech_lm import SpeechLM


class Decoder:
    """A model ready to generate: its functions are compiled once a shape is seen."""

    def __init__(
        self, model: SpeechLM, end: int | Sequence[int], options: DecodingOptions = GREEDY
    ):
        """`end` is the token that ends a row, or several of which any does."""
        self.ends = (end,) if isinstance(end, int) else tuple(end)
        self.options = options
        self._functions = CompiledFunctions()
        self.set_model(model)

    @property
    def compile_seconds(self) -> float:
        """Seconds spent on compiling so far."""
        return self._functions.seconds

    def set_model(self, model: SpeechLM) -> None:
        """Use another model of the same shape, with the functions compiled so far."""
        self.model, self.text_model = model, text_model(model)
        self.weights = decoding_weights.make_ready(self.text_model)

    def __call__(self, prompt: Batch, limits: np.ndarray, key: Array | None = None) -> Generation:
        """Generate after each row of `prompt` (see `prompt_batch`), at most limits [b] tokens.

        Rows with limit 0 are padding. `key` is for sampling.
        """
        (whole,) = self.stream(prompt, limits, key, every=max(int(limits.max()), 1))
        return whole

    def stream(
        self, prompt: Batch, limits: np.ndarray, key: Array | None = None, every: int = 1
    ) -> Iterator[Generation]:
        """What `self(prompt, limits, key)` gives, so far: after each `every` tokens and at the end.

        One given before is gone from the devices once the next is asked for.
        """
        most = max(int(limits.max()), 1)
        steps = bucket_length(most)
        key = jax.random.key(0) if key is None else key
        limits = jax.device_put(np.asarray(limits, np.int32), sharding.a("b"))
        model = self.model if prompt.clips.any() else self.text_model
        given = self.weights, sharding.shard_batch(prompt), limits, key
        options: dict[str, Any] = {"ends": self.ends, "options": self.options, "steps": steps}
        shape = prompt.tokens.shape, steps
        name = "begin", model is self.model, *shape
        state: LoopState = self._functions.call(name, _begin, model, *given, **options)
        for stop in range(every, most + every, every):
            if stop > 1:  # the first token is the beginning's
                upto = jax.device_put(np.int32(stop), jax.P())
                arguments = (self.text_model, *given, upto, state)
                state = self._functions.call(("go on", *shape), _go_on, *arguments, **options)
            last = stop >= most or bool(jax.device_get(state.done).all())
            yield Generation(state.tokens, state.lengths, state.ended, state.looped)
            if last:
                return


def prompt_batch(rows: Sequence[Mapping[str, np.ndarray]], size: int) -> Batch:
    """One prompt a row (columns of `interleave`), padded on the left, as a batch of `size` rows.

    The length is the next of 32, 48, 64, 96, 128, …: each length compiles once.
    """
    t = bucket_length(max(len(row["tokens"]) for row in rows))
    p = rows[0]["patches"].shape[1]
    shapes = {"patches": ((size, t, p), np.float32), "loss_weight": ((size, t), np.float32)}
    columns = {name: np.zeros(*shapes.get(name, ((size, t), np.int32))) for name in Batch._fields}
    for i, row in enumerate(rows):
        start = t - len(row["tokens"])
        for name in ("tokens", "patches", "frames", "clips"):
            columns[name][i, start:] = row[name]
        columns["segments"][i, start:] = 1
        columns["positions"][i, start:] = np.arange(t - start)
    return Batch(**columns)


def _begin(
    model: SpeechLM,
    weights: DecodingWeights,
    prompt: Batch,
    limits: Int[Array, "b"],
    key: Array,
    *,
    ends: tuple[int, ...],
    options: DecodingOptions,
    steps: int,
) -> LoopState:
    """Reads the prompts and chooses the first token after each."""
    scores, cache = CachedModel(model, weights, prompt, limits, steps).prefill(prompt)
    return LoopState.start(limits, steps, cache).choose(scores, limits, key, ends, options)


def _go_on(
    model: SpeechLM,
    weights: DecodingWeights,
    prompt: Batch,
    limits: Int[Array, "b"],
    key: Array,
    stop: Array,
    state: LoopState,
    *,
    ends: tuple[int, ...],
    options: DecodingOptions,
    steps: int,
) -> LoopState:
    """Goes on until all rows are done, or `stop` tokens are chosen, at most `steps`.

    What is generated is text, so that `model` need be no more than reads text.
    """
    cached = CachedModel(model, weights, prompt, limits, steps)

    def unfinished(state: LoopState) -> Array:
        return (state.step < jnp.minimum(stop, steps)) & ~jnp.all(state.done)

    def next_token(state: LoopState) -> LoopState:
        scores, cache = cached.decode(state.token, state.step - 1, state.cache)
        state = state._replace(cache=cache)
        return state.choose(scores, limits, key, ends, options)

    return jax.lax.while_loop(unfinished, next_token, state)
