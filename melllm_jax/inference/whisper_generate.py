"""Transcripts of 30 s windows by a Whisper, with a cache, compiled once a shape.

The keys and values of what the encoder gives are made once, those of the transcript so far are
kept. All rows have the same prompt, so that all write the same slot of the cache; where the
language is detected it is a row's own, as transformers' `generate` does it: the likeliest of them
after the first token of the prompt.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int
import numpy as np

from melllm_jax import sharding
from melllm_jax.config.whisper import TranscriptRules
from melllm_jax.inference.cached_whisper import CachedDecoder, WhisperWeights, make_ready
from melllm_jax.inference.compiled import CompiledFunctions
from melllm_jax.inference.kv_cache import LayerCache
from melllm_jax.inference.sampling import GREEDY, DecodingOptions, fill_rows
from melllm_jax.inference.token_loop import Generation, LoopState
from melllm_jax.models.whisper import WhisperModel


class WhisperGenerator:
    """A Whisper ready to transcribe: its functions are compiled once a shape is seen."""

    def __init__(self, model: WhisperModel, options: DecodingOptions = GREEDY):
        self.model, self.options = model, options
        self.weights = make_ready(model)
        self._functions = CompiledFunctions()

    @property
    def compile_seconds(self) -> float:
        """Seconds spent on compiling so far."""
        return self._functions.seconds

    def __call__(
        self,
        mels_bfm: Float32[np.ndarray, "b f m"],
        limits: Int[np.ndarray, "b"],
        key: Array | None = None,
    ) -> Generation:
        """Transcripts of windows, at most `limits` tokens each, and no more than the model has.

        f is the model's window, which shorter sound is padded to with silence. Rows are split over
        the mesh in force, and those with limit 0 are padding. `key` is for sampling.
        """
        return self.decode(self.encode(mels_bfm), limits, key)

    def encode(self, mels_bfm: Float32[np.ndarray, "b f m"]) -> Float[Array, "b s d"]:
        """What the encoder gives for windows."""
        mels = jax.device_put(mels_bfm, sharding.a("b t m"))
        states: Array = self._functions.call(
            ("encode", *mels.shape), WhisperModel.encode, self.model, mels
        )
        return states

    def decode(
        self,
        states_bsd: Float[Array, "b s d"],
        limits: Int[np.ndarray, "b"],
        key: Array | None = None,
    ) -> Generation:
        """The transcripts of what the encoder gave; see `__call__`."""
        rules = self.model.spec.rules
        room = rules.longest - rules.prompt_length
        limits = np.minimum(limits, room).astype(np.int32)
        # Few lengths, as each compiles once: at most half of the cache is never written.
        steps = next(n for n in (room // 4, room // 2, room) if n >= max(limits.max(), 1))
        counts = jax.device_put(limits, sharding.a("b"))
        key = jax.random.key(0) if key is None else key
        options: dict[str, Any] = {"options": self.options, "steps": steps}
        name, given = ("generate", *states_bsd.shape, steps), (states_bsd, counts, key)
        found: Generation = self._functions.call(
            name, _generate, self.model, self.weights, *given, **options
        )
        return found


def _generate(
    model: WhisperModel,
    weights: WhisperWeights,
    states_bsd: Float[Array, "b s d"],
    limits: Int[Array, "b"],
    key: Array,
    *,
    options: DecodingOptions,
    steps: int,
) -> Generation:
    """Chooses token by token until all rows are done, at most `steps`."""
    rules, length = model.spec.rules, model.spec.rules.prompt_length
    decode = CachedDecoder(model, weights, states_bsd, length + steps)
    cache = decode.empty()
    scores, cache = decode(_prompts(decode, rules, len(limits), cache), 0, cache)
    never = _penalty(rules.suppressed, scores.shape[1])
    first = scores + _penalty((*rules.suppressed, *rules.suppressed_first), scores.shape[1])
    choosing: Any = {"limits": limits, "key": key, "ends": rules.ends, "options": options}
    state = LoopState.start(limits, steps, cache).choose(first, **choosing)

    def unfinished(state: LoopState) -> Array:
        return (state.step < steps) & ~jnp.all(state.done)

    def next_token(state: LoopState) -> LoopState:
        slot = length + state.step - 1
        scores, cache = decode(state.token[:, None], slot, state.cache)
        return state._replace(cache=cache).choose(scores + never, **choosing)

    state = jax.lax.while_loop(unfinished, next_token, state)
    return Generation(state.tokens, state.lengths, state.ended, state.looped)


def _prompts(
    decode: CachedDecoder, rules: TranscriptRules, b: int, cache: list[LayerCache]
) -> Int[Array, "b t"]:
    """The tokens before each transcript."""
    columns = [fill_rows(b, 1, token) for token in rules.prompt]
    if rules.languages:
        scores, _ = decode(columns[0], 0, cache)
        others = sorted(set(range(scores.shape[1])) - set(rules.languages))
        language = jnp.argmax(scores + _penalty(others, scores.shape[1]), axis=1)
        columns.insert(1, language.astype(jnp.int32)[:, None])
    return jnp.concatenate(columns, axis=1)


def _penalty(ids: Any, v: int) -> Float[Array, "1 v"]:
    """What is added to scores so that none of `ids` is the highest."""
    penalty = np.zeros((1, v), np.float32)
    penalty[0, list(ids)] = -np.inf
    return jax.reshard(jnp.asarray(penalty), jax.P(None, sharding.TOKENS))
