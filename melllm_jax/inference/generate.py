"""Prefill and cached generation: prompts in, tokens out, compiled once a shape.

Prompts of a batch end at the same position (they are padded on the left), so that every row writes
the same slot of the cache. Layers are unstacked once: slicing them out of the stack inside the
loop would copy every weight for every token.
"""

from collections.abc import Mapping, Sequence
import functools
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int
import numpy as np

from melllm_jax import sharding
from melllm_jax.batch import Batch
from melllm_jax.inference.kv_cache import heads_as_rows, rows_as_heads, update_cache
from melllm_jax.inference.sampling import DecodingOptions, sample_tokens
from melllm_jax.models.speech_lm import Block, SpeechLM
from melllm_jax.nn import attention
from melllm_jax.nn.attention import PositionIds
from melllm_jax.nn.layers import rotary

MAX_PERIOD = 8  # the repetition guard knows loops of 1 to 8 tokens
REPEATS, MIN_REPEATED_TOKENS = 4, 12  # a loop is said so many times, over so many tokens at least


class Generation(NamedTuple):
    """What was generated; a row's tokens after its length are 0."""

    tokens: Int[Array, "b t"]
    lengths: Int[Array, "b"]  # tokens before the end token
    ended: Array  # bool [b]: the end token came
    looped: Array  # bool [b]: the repetition guard stopped the row; its repetitions are kept


class Decoder:
    """A model ready to generate: its layers apart, its functions compiled as shapes come."""

    def __init__(self, model: SpeechLM, end: int, how: DecodingOptions = DecodingOptions()):  # noqa: B008
        self.end, self.options = end, how
        self.compile_seconds = 0.0  # seconds spent on it so far
        self._compiled: dict[tuple, Any] = {}
        self.set_model(model)

    def set_model(self, model: SpeechLM) -> None:
        """Go on with another model of the same shape: what is compiled serves it too."""
        self.model = model
        apart = jax.jit(lambda stack: [stack.layer(i) for i in range(model.cfg.l)])
        self.layers = apart(model.stack)

    def __call__(self, prompt: Batch, limits: np.ndarray, key: Array | None = None) -> Generation:
        """Generate after each row of `prompt` (see `prompt_batch`), at most limits [b] tokens.

        Rows with limit 0 are padding. `key` is for sampling.
        """
        steps = _bucket_length(int(limits.max()))
        key = jax.random.key(0) if key is None else key
        limits = jax.device_put(np.asarray(limits, np.int32), sharding.a("b"))
        prompt = sharding.shard_batch(prompt)
        arguments = self.model, self.layers, prompt, limits, key
        shape = prompt.tokens.shape, steps
        if shape not in self._compiled:
            began = time.perf_counter()
            run = jax.jit(functools.partial(_generate, end=self.end, how=self.options, steps=steps))
            self._compiled[shape] = run.lower(*arguments).compile()
            self.compile_seconds += time.perf_counter() - began
        return self._compiled[shape](*arguments)


def prompt_batch(rows: Sequence[Mapping[str, np.ndarray]], size: int) -> Batch:
    """One prompt a row (columns of `interleave`), padded on the left, as a batch of `size` rows.

    The length is the next of 32, 48, 64, 96, 128, …: each length compiles once.
    """
    t = _bucket_length(max(len(row["tokens"]) for row in rows))
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


def _bucket_length(length: int) -> int:
    """The next of 32, 48, 64, 96, 128, 192, …: at most half is padding, a third on average."""
    size = 32
    while size < length:
        size = size * 3 // 2 if size & (size - 1) == 0 else size * 4 // 3
    return size


def _generate(
    model: SpeechLM,
    layers: list[Block],
    prompt: Batch,
    limits: Int[Array, "b"],
    key: Array,
    *,
    end: int,
    how: DecodingOptions,
    steps: int,
) -> Generation:
    b, t = prompt.tokens.shape
    lengths = jnp.sum(prompt.segments, axis=1)  # of the prompts: their segment is 1
    rows = lambda width, value: jnp.full(
        (b, width), value, jnp.int32, out_sharding=sharding.a("b x")
    )
    later = lengths[:, None] + jnp.arange(steps, dtype=jnp.int32)[None]
    grown = lambda x, more: jnp.concatenate([attention.gather_time(x), more], axis=1)
    kv = PositionIds(
        grown(prompt.segments, rows(steps, 1)),
        grown(prompt.positions, later),
        grown(prompt.clips, rows(steps, 0)),
    )
    whole = (lengths + limits)[:, None]  # one length for the row: LongRoPE must not change midway
    angles_of = lambda at: rotary(
        model.cfg.rope, model.cfg.rotary_dims, at, jnp.broadcast_to(whole, at.shape)
    )

    # On one device every KV head is a row of its own, and the cache is [b k, s, h]: just what the
    # product with it reads. From any other shape XLA on a CPU copies the cache for every token.
    heads = model.cfg.k if jax.sharding.get_abstract_mesh().size == 1 else 1

    def through(x: Array, q: PositionIds, slot: Array, cache: list) -> tuple[Array, list]:
        """The layers over positions `q`, their keys and values kept from `slot` on."""
        seen, angles = model.visibility_mask(q, kv), angles_of(q.positions)
        seen = jnp.repeat(seen, heads, axis=0, out_sharding=sharding.a("b t s"))
        kept = []
        for layer, old in zip(layers, cache, strict=True):

            def see(q: Array, k: Array, v: Array, old: tuple = old) -> Array:
                q, k, v = (heads_as_rows(x, heads) for x in (q, k, v))
                new_k, new_v = update_cache(old[0], k, slot), update_cache(old[1], v, slot)
                kept.append((new_k, new_v))
                whole = (b * heads, model.cfg.k // heads, t + steps, model.cfg.h)
                y = attention.attend_cached(q, new_k.reshape(whole), new_v.reshape(whole), seen)
                return rows_as_heads(y, heads)

            x = layer(x, angles, see)
        return model.logits(model.norm(x[:, -1:]))[:, 0], kept

    x = model.inputs(prompt)
    if heads > 1:
        empty = jnp.zeros((b * heads, t + steps, model.cfg.h), x.dtype)
    else:
        shape = (b, model.cfg.k, t + steps, model.cfg.h)
        empty = jnp.zeros(shape, x.dtype, out_sharding=sharding.a("b k s h"))
    scores, cache = through(
        x, attention.position_ids(prompt), jnp.int32(0), [(empty, empty)] * len(layers)
    )

    class Loop(NamedTuple):
        step: Array
        scores: Float[Array, "b v"]
        cache: list
        tokens: Int[Array, "b t"]
        said: Int[Array, "b"]  # tokens so far
        recent: Int[Array, "b x"]  # the last tokens, newest first
        runs: Int[Array, "b x"]  # for each period: how long the row has been repeating itself
        done: Array
        ended: Array
        looped: Array

    def going(loop: Loop) -> Array:
        return (loop.step < steps) & ~jnp.all(loop.done)

    def one(loop: Loop) -> Loop:
        i = loop.step
        token = sample_tokens(loop.scores, how, jax.random.fold_in(key, i))
        ended = loop.ended | (~loop.done & (token == end))
        kept = ~(loop.done | ended)
        token = jnp.where(kept, token, 0)
        runs = jnp.where(loop.recent == token[:, None], loop.runs + 1, 0)
        periods = jnp.arange(1, MAX_PERIOD + 1)
        long = jnp.maximum(REPEATS * periods, MIN_REPEATED_TOKENS) - periods
        looped = loop.looped | (how.guard & kept & jnp.any(runs >= long[None], axis=1))
        recent = jnp.concatenate([token[:, None], loop.recent[:, :-1]], axis=1)
        tokens = jax.lax.dynamic_update_slice(loop.tokens, token[:, None], (0, i))
        done = loop.done | ended | looped | (i + 1 >= limits)
        x = model.embed_text(token[:, None])
        q = PositionIds(rows(1, 1), (lengths + i)[:, None], rows(1, 0))
        scores, cache = through(x, q, t + i, loop.cache)
        said = loop.said + kept.astype(jnp.int32)
        return Loop(i + 1, scores, cache, tokens, said, recent, runs, done, ended, looped)

    none = lengths < 0
    first = Loop(
        jnp.int32(0),
        scores,
        cache,
        rows(steps, 0),
        jnp.zeros_like(lengths),
        rows(MAX_PERIOD, -1),
        rows(MAX_PERIOD, 0),
        limits <= 0,
        none,
        none,
    )
    last = jax.lax.while_loop(going, one, first)
    return Generation(last.tokens, last.said, last.ended, last.looped)
