"""The next token from its scores, greedy or drawn from the nucleus, and a guard against loops."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int
import numpy as np

from melllm_jax import sharding
from melllm_jax.errors import Mistake

MAX_PERIOD = 8  # the repetition guard knows loops of 1 to 8 tokens
REPEATS, MIN_REPEATED_TOKENS = 4, 12  # a loop is said so many times, over so many tokens at least


@dataclasses.dataclass(frozen=True)
class DecodingOptions:
    """How to read tokens off the model."""

    temperature: float = 0.0  # 0 takes the likeliest token
    top_p: float = 1.0  # sampling keeps the likeliest tokens that make up this share
    per_second: float = 25.0  # tokens allowed a second of audio
    extra: int = 16  # tokens allowed beyond that
    guard: bool = True  # stop a row that repeats itself

    def __post_init__(self) -> None:
        if self.temperature < 0:
            raise Mistake(f"temperature={self.temperature}: must be 0 or more")
        if not 0 < self.top_p <= 1:
            raise Mistake(f"top_p={self.top_p}: must lie in (0, 1]")

    def limit(self, seconds: float) -> int:
        """Most tokens for so many seconds of audio, the end token included."""
        return int(np.ceil(seconds * self.per_second)) + self.extra


GREEDY = DecodingOptions()
GREEDY_UNGUARDED = DecodingOptions(guard=False)  # for text, which may repeat itself


def sample_tokens(
    scores_bv: Float[Array, "b v"], options: DecodingOptions, key: Array
) -> Int[Array, "b"]:
    """The likeliest tokens, or a draw among the nucleus (Holtzman et al. 2019, 1904.09751)."""
    if options.temperature == 0:
        return jnp.argmax(scores_bv, axis=-1).astype(jnp.int32)
    scores = (
        jax.reshard(scores_bv, sharding.a("b x")) / options.temperature
    )  # sorting needs all of v
    if options.top_p < 1:
        falling = jnp.sort(scores, axis=-1)[:, ::-1]
        before = jnp.cumsum(jax.nn.softmax(falling, axis=-1), axis=-1) - jax.nn.softmax(falling, -1)
        floor = jnp.min(jnp.where(before < options.top_p, falling, jnp.inf), axis=-1, keepdims=True)
        scores = jnp.where(scores >= floor, scores, -jnp.inf)
    return jax.random.categorical(key, scores, axis=-1).astype(jnp.int32)


class RepetitionGuard(NamedTuple):
    """What tells, row by row, that a text has begun to say the same few tokens again and again.

    A loop of a period of 1 to MAX_PERIOD tokens counts once it was said REPEATS times, over
    MIN_REPEATED_TOKENS tokens at least.
    """

    recent: Int[Array, "b x"]  # the last tokens, newest first; -1 where there is none yet
    runs: Int[Array, "b x"]  # for each period: how long the row has been repeating itself

    @classmethod
    def start(cls, b: int) -> "RepetitionGuard":
        """The guard of `b` rows before their first token."""
        return cls(fill_rows(b, MAX_PERIOD, -1), fill_rows(b, MAX_PERIOD, 0))

    def update(self, tokens: Int[Array, "b"]) -> tuple["RepetitionGuard", Bool[Array, "b"]]:
        """The guard after each row's next token, and the rows that loop by then."""
        runs = jnp.where(self.recent == tokens[:, None], self.runs + 1, 0)
        periods = jnp.arange(1, MAX_PERIOD + 1)
        long = jnp.maximum(REPEATS * periods, MIN_REPEATED_TOKENS) - periods
        recent = jnp.concatenate([tokens[:, None], self.recent[:, :-1]], axis=1)
        return RepetitionGuard(recent, runs), jnp.any(runs >= long[None], axis=1)


def fill_rows(b: int, width: int, value: int) -> Int[Array, "b x"]:
    """Rows of one number, laid out as a batch's rows are."""
    return jnp.full((b, width), value, jnp.int32, out_sharding=sharding.a("b x"))
