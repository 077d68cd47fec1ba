"""What passes from one generated token to the next, row by row, and how the next is chosen."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from melllm_jax.inference.kv_cache import LayerCache
from melllm_jax.inference.sampling import (
    DecodingOptions,
    RepetitionGuard,
    fill_rows,
    sample_tokens,
)


class Generation(NamedTuple):
    """Generated tokens; those of a row after its length are 0."""

    tokens: Int[Array, "b t"]
    lengths: Int[Array, "b"]  # tokens before an end token
    ended: Array  # bool [b]: an end token came
    looped: Array  # bool [b]: the repetition guard stopped the row; its repetitions are in `tokens`


class LoopState(NamedTuple):
    """What passes from one token to the next."""

    step: Array  # tokens chosen so far
    token: Int[Array, "b"]  # the last of them; 0 in rows that are done
    cache: list[LayerCache]  # of the prompts and all chosen tokens but the last
    tokens: Int[Array, "b t"]
    lengths: Int[Array, "b"]  # tokens so far
    guard: RepetitionGuard
    done: Array
    ended: Array
    looped: Array

    @classmethod
    def start(cls, limits: Int[Array, "b"], steps: int, cache: list[LayerCache]) -> "LoopState":
        """The state before the first token of rows of at most `limits` tokens, `steps` in all."""
        b, none = len(limits), jnp.zeros_like(limits, bool)
        return cls(
            step=jnp.int32(0),
            token=jnp.zeros_like(limits),
            cache=cache,
            tokens=fill_rows(b, steps, 0),
            lengths=jnp.zeros_like(limits),
            guard=RepetitionGuard.start(b),
            done=limits <= 0,
            ended=none,
            looped=none,
        )

    def choose(
        self,
        scores: Float[Array, "b v"],
        limits: Int[Array, "b"],
        key: Array,
        ends: tuple[int, ...],
        options: DecodingOptions,
    ) -> "LoopState":
        """The state with each row's next token, chosen from its scores."""
        i = self.step
        token = sample_tokens(scores, options, jax.random.fold_in(key, i))
        is_end = functools.reduce(jnp.logical_or, (token == end for end in ends), token < 0)
        ended = self.ended | (~self.done & is_end)
        valid = ~(self.done | ended)
        token = jnp.where(valid, token, 0)
        guard, repeats = self.guard.update(token)
        looped = self.looped | (options.guard & valid & repeats)
        return self._replace(
            step=i + 1,
            token=token,
            tokens=jax.lax.dynamic_update_slice(self.tokens, token[:, None], (0, i)),
            lengths=self.lengths + valid.astype(jnp.int32),
            guard=guard,
            done=self.done | ended | looped | (i + 1 >= limits),
            ended=ended,
            looped=looped,
        )
