"""Options of decoding, and the next token from its scores: greedy or drawn from the nucleus."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int
import numpy as np

from melllm_jax import sharding
from melllm_jax.errors import Mistake


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


def sample_tokens(
    scores_bv: Float[Array, "b v"], how: DecodingOptions, key: Array
) -> Int[Array, "b"]:
    """The likeliest tokens, or a draw among the nucleus (Holtzman et al. 2019, 1904.09751)."""
    if how.temperature == 0:
        return jnp.argmax(scores_bv, axis=-1).astype(jnp.int32)
    scores = jax.reshard(scores_bv, sharding.a("b x")) / how.temperature  # sorting needs all of v
    if how.top_p < 1:
        falling = jnp.sort(scores, axis=-1)[:, ::-1]
        before = jnp.cumsum(jax.nn.softmax(falling, axis=-1), axis=-1) - jax.nn.softmax(falling, -1)
        floor = jnp.min(jnp.where(before < how.top_p, falling, jnp.inf), axis=-1, keepdims=True)
        scores = jnp.where(scores >= floor, scores, -jnp.inf)
    return jax.random.categorical(key, scores, axis=-1).astype(jnp.int32)
