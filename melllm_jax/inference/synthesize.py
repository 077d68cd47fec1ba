"""Writes mel patches after prompts, each fed back to the model, with a KV cache.

Source: MELLE (arXiv 2407.08551), whose latent is drawn and whose pre-net drops inputs in generation
too. Each row has a seed of its own, and what it draws depends on that and on positions alone, so
that it says the same in any batch.
"""

from collections.abc import Iterator
import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int
import numpy as np

from melllm_jax import sharding
from melllm_jax.batch import Batch
from melllm_jax.errors import Mistake
from melllm_jax.inference import decoding_weights
from melllm_jax.inference.cached_model import CachedModel
from melllm_jax.inference.compiled import CompiledFunctions, bucket_length
from melllm_jax.inference.decoding_weights import DecodingWeights
from melllm_jax.inference.kv_cache import LayerCache
from melllm_jax.models.speaking_lm import SpeakingLM
from melllm_jax.nn.noise import row_draw


@dataclasses.dataclass(frozen=True)
class SpeakingOptions:
    """How to read patches off the model."""

    temperature: float = 1.0  # of the latent's deviation; 0 takes its mean
    stop: float = 0.5  # probability of the last patch at which a row ends
    per_letter: float = 0.15  # seconds allowed a letter of the text
    extra: float = 2.0  # seconds allowed beyond that

    def __post_init__(self) -> None:
        if self.temperature < 0:
            raise Mistake(f"temperature={self.temperature}: must be 0 or more")
        if not 0 < self.stop < 1:
            raise Mistake(f"stop={self.stop}: must lie between 0 and 1")
        for name in ("per_letter", "extra"):
            if getattr(self, name) < 0:
                raise Mistake(f"{name}={getattr(self, name)}: must be 0 or more seconds")

    def limit(self, text: str, patch_seconds: float) -> int:
        """Most patches for a text."""
        return max(1, int(np.ceil((len(text) * self.per_letter + self.extra) / patch_seconds)))


class SpeechRows(NamedTuple):
    """Patches written after each prompt; those of a row after its length are 0."""

    patches: Float[Array, "b t p"]  # float32, before the post-net, in the model's units
    stops: Float[Array, "b t"]  # probability that each is the last
    lengths: Int[Array, "b"]
    stopped: Bool[Array, "b"]  # the model ended the row; otherwise its limit did
    broken: Bool[Array, "b"]  # a patch was not finite: the row ends before it


class _State(NamedTuple):
    """What passes from one patch to the next."""

    step: Array  # patches written so far
    patch: Float[Array, "b p"]  # the last of them
    cache: list[LayerCache]  # of the prompts and all patches but the last
    rows: SpeechRows
    done: Bool[Array, "b"]


class Speaker:
    """A model ready to speak: its functions are compiled once a shape is seen."""

    def __init__(self, model: SpeakingLM, options: SpeakingOptions | None = None):
        self.model, self.options = model, options or SpeakingOptions()
        self.weights = decoding_weights.make_ready(model)
        self.functions = CompiledFunctions()

    def __call__(self, prompt: Batch, limits: np.ndarray, seeds: np.ndarray) -> SpeechRows:
        """Write after each row of `prompt` (see `generate.prompt_batch`), at most limits [b].

        Rows with limit 0 are padding; `seeds` [b] are the rows' own.
        """
        (whole,) = self.stream(prompt, limits, seeds, every=max(int(limits.max()), 1))
        return whole

    def stream(
        self, prompt: Batch, limits: np.ndarray, seeds: np.ndarray, every: int
    ) -> Iterator[SpeechRows]:
        """What `self(…)` gives, so far: after each `every` patches and at the end.

        One given before is gone from the devices once the next is asked for.
        """
        most = max(int(limits.max()), 1)
        steps = bucket_length(most)
        place = lambda x: jax.device_put(np.asarray(x, np.int32), sharding.a("b"))
        given = self.weights, sharding.shard_batch(prompt), place(limits), place(seeds)
        shape = prompt.tokens.shape, steps
        fixed: dict[str, Any] = {"options": self.options, "steps": steps}
        state: _State = self.functions.call(("begin", *shape), _begin, self.model, *given, **fixed)
        for stop in range(every, most + every, every):
            if stop > 1:  # the first patch is the beginning's
                upto = jax.device_put(np.int32(stop), jax.P())
                arguments = (self.model, *given, upto, state)
                state = self.functions.call(("go on", *shape), _go_on, *arguments, **fixed)
            yield state.rows
            if stop >= most or bool(jax.device_get(state.done).all()):
                return

    def stream_row(
        self, prompt: Batch, limit: int, seed: int, every: int
    ) -> Iterator[tuple[Float[np.ndarray, "n p"], SpeechRows]]:
        """The new patches of one row after the post-net, and the row so far, every few patches.

        Together the patches are those of `refine`. Raises Mistake where the post-net reads later
        frames than it writes.
        """
        head = self.model.mel_head
        if head.refines and not head.causal:
            rule = "its post-net reads later frames: it cannot speak as it writes"
            raise Mistake(f"model.mel_head.causal=False: {rule}")
        context, sent = -(-head.reach // head.r), 0
        refine = lambda model, rows: _refine(model, rows)
        for rows in self.stream(prompt, np.array([limit]), np.array([seed]), every):
            told = jax.device_get(rows)
            length, start = int(told.lengths[0]), max(sent - context, 0)
            window = np.zeros((1, context + every, told.patches.shape[-1]), np.float32)
            window[0, : length - start] = told.patches[0, start:length]
            part = told._replace(patches=window, lengths=np.array([length - start], np.int32))
            name = "refine", *window.shape
            refined = np.asarray(self.functions.call(name, refine, self.model, part))
            yield refined[0, sent - start : length - start], told
            sent = length

    def refine(self, rows: SpeechRows) -> Float[np.ndarray, "b t p"]:
        """The patches of rows after the post-net; behind a row's length they are 0."""
        call = lambda model, rows: _refine(model, rows)
        refined = self.functions.call(("refine", *rows.patches.shape), call, self.model, rows)
        return np.asarray(refined)


def _begin(
    model: SpeakingLM,
    weights: DecodingWeights,
    prompt: Batch,
    limits: Int[Array, "b"],
    seeds: Int[Array, "b"],
    *,
    options: SpeakingOptions,
    steps: int,
) -> _State:
    """Reads the prompts and writes the first patch after each."""
    cached = CachedModel(model, weights, prompt, limits, steps)
    inputs = model.inputs(prompt, row_draw(seeds, prompt.positions))
    hidden, cache = cached.prefill_inputs(inputs, prompt)
    b, p = len(limits), prompt.patches.shape[-1]
    zeros = lambda dims, *shape: jnp.zeros(shape, jnp.float32, out_sharding=sharding.a(dims))
    none = jnp.zeros_like(limits, bool)
    rows = SpeechRows(
        zeros("b s p", b, steps, p), zeros("b s", b, steps), jnp.zeros_like(limits), none, none
    )
    state = _State(jnp.int32(0), zeros("b p", b, p), cache, rows, limits <= 0)
    return _write(model, cached, hidden, limits, seeds, state, options)


def _go_on(
    model: SpeakingLM,
    weights: DecodingWeights,
    prompt: Batch,
    limits: Int[Array, "b"],
    seeds: Int[Array, "b"],
    stop: Array,
    state: _State,
    *,
    options: SpeakingOptions,
    steps: int,
) -> _State:
    """Goes on until all rows are done, or `stop` patches are written, at most `steps`."""
    cached = CachedModel(model, weights, prompt, limits, steps)

    def unfinished(state: _State) -> Array:
        return (state.step < jnp.minimum(stop, steps)) & ~jnp.all(state.done)

    def next_patch(state: _State) -> _State:
        positions = (cached.prompt_lengths + state.step - 1)[:, None]
        x = model.mel_head.prenet(state.patch[:, None], row_draw(seeds, positions))
        hidden, cache = cached.decode_inputs(x, state.step - 1, state.cache)
        state = state._replace(cache=cache)
        return _write(model, cached, hidden, limits, seeds, state, options)

    return jax.lax.while_loop(unfinished, next_patch, state)


def _write(
    model: SpeakingLM,
    cached: CachedModel,
    hidden: Float[Array, "b 1 d"],
    limits: Int[Array, "b"],
    seeds: Int[Array, "b"],
    state: _State,
    options: SpeakingOptions,
) -> _State:
    """The state with each row's next patch, drawn from its hidden state."""
    i, rows = state.step, state.rows
    # The latent of a patch is drawn at the position before it, as in training.
    draw = row_draw(seeds, (cached.prompt_lengths + i - 1)[:, None])
    written = model.mel_head.latent(hidden, draw, options.temperature)
    patch, stop = written.patch[:, 0], jax.nn.sigmoid(written.stop[:, 0])
    finite = jnp.all(jnp.isfinite(patch), axis=-1) & jnp.isfinite(stop)
    broken = rows.broken | (~state.done & ~finite)
    valid = ~(state.done | broken)
    patch = jnp.where(valid[:, None], patch, 0.0)
    stop = jnp.where(valid, stop, 0.0)
    stopped = rows.stopped | (valid & (stop > options.stop))
    put = lambda whole, new: jax.lax.dynamic_update_slice_in_dim(whole, new[:, None], i, axis=1)
    rows = SpeechRows(
        put(rows.patches, patch),
        put(rows.stops, stop),
        rows.lengths + valid.astype(jnp.int32),
        stopped,
        broken,
    )
    done = state.done | stopped | broken | (i + 1 >= limits)
    return _State(i + 1, patch, state.cache, rows, done)


def _refine(model: SpeakingLM, rows: SpeechRows) -> Float[Array, "b t p"]:
    b, t, _ = rows.patches.shape
    index = jnp.arange(t, dtype=jnp.int32)[None]
    clips = (index < rows.lengths[:, None]).astype(jnp.int32)
    return model.mel_head.refine(rows.patches, clips, clips * model.mel_head.r)
