"""Frozen speech encoders as teachers: what they make of the clips in packed rows, layer by layer.

A teacher gives j states within each position of the model that learns, r mel frames of 10 ms: j is
r / 2 for Whisper, whose positions are 20 ms, and 1 for Phi-4-MM's Conformer, whose positions are
the model's own. What it makes of a clip is the same packed or alone.
"""

from collections.abc import Callable, Mapping, Sequence
import math
from typing import Any, NamedTuple, Protocol

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from melllm_jax import sharding
from melllm_jax.batch import Batch
from melllm_jax.config.distillation import Distill
from melllm_jax.config.features import Mel
from melllm_jax.encoders.conformer import ConformerEncoder
from melllm_jax.encoders.whisper import STRIDE, WhisperEncoder, clip_sequences, reshape_time
from melllm_jax.features.mel_filters import make_filters
from melllm_jax.nn import attention


class Teacher(Protocol):
    """A frozen encoder that hears the patches of a batch: a class of `TEACHERS`."""

    EXACT: frozenset[str]  # weights that bfloat16 would spoil

    @staticmethod
    def there(batch: Batch, cfg: Distill, r: int) -> Bool[Array, "b t j"]:
        """Which states it has: none at text."""

    def states(self, batch: Batch, layers: Sequence[int]) -> Float[Array, "n b t j e"]:
        """The outputs of `layers`, counted from 0, within each position; see `there`."""


class WhisperTeacher(nnx.Module):
    """Whisper's encoder, its weights under the names that a model has them by.

    It hears each clip in frames of its own: of 30 s filled up with silence, as it was trained, or,
    where `frame` is "clip", no longer than the clip.
    """

    EXACT: frozenset[str] = frozenset()

    def __init__(self, rngs: nnx.Rngs, cfg: Distill, mel: Mel):
        self.front = nnx.Dict(encoder=WhisperEncoder(rngs, cfg.whisper, mel.m))
        self.cfg, self.mel = cfg, mel
        self.frames = STRIDE * cfg.whisper.positions

    @staticmethod
    def there(batch: Batch, cfg: Distill, r: int) -> Bool[Array, "b t j"]:
        """See `Teacher`; none either in the windows of a row beyond cfg.windows."""
        b, t = batch.frames.shape
        sequences_bf = clip_sequences(batch, r, STRIDE * cfg.whisper.positions)
        there = sequences_bf > 0
        if cfg.frame == "whole":
            there &= _by_rows(_windows, sequences_bf) < cfg.windows
        there = reshape_time(there[:, ::STRIDE], (b, t, r // STRIDE))
        return jax.reshard(there, sharding.a("b t j"))

    def states(self, batch: Batch, layers: Sequence[int]) -> Float[Array, "n b t j e"]:
        """See `Teacher`; before the last norm."""
        (b, t), r = batch.frames.shape, self.mel.r
        mels_bfm = reshape_time(attention.gather_time(batch.patches), (b, t * r, self.mel.m))
        sequences_bf = clip_sequences(batch, r, self.frames)
        if self.cfg.frame == "clip":
            states = self._hidden(mels_bfm, sequences_bf, layers)
        else:
            states = self._hidden_of_windows(mels_bfm, sequences_bf, layers)
        shape = (len(layers), b, t, r // STRIDE, self.cfg.width)
        rows = jax.typeof(states).sharding.spec[1]
        states = jax.lax.reshape(states, shape, out_sharding=jax.P(None, rows, None, None, None))
        return jax.reshard(states, jax.P(None, *sharding.a("b t j e")))

    def _hidden(
        self, mels_bfm: Array, sequences_bf: Array, layers: Sequence[int]
    ) -> Float[Array, "n b s e"]:
        hidden = self.front.encoder.hidden(mels_bfm, sequences_bf)
        states = jnp.stack([hidden[1 + layer] for layer in layers])
        rows = jax.typeof(states).sharding.spec[1]
        return jax.reshard(states, jax.P(None, rows, None, None))

    def _hidden_of_windows(
        self, mels_bfm: Array, sequences_bf: Array, layers: Sequence[int]
    ) -> Float[Array, "n b s e"]:
        """What is heard in windows of 30 s, laid out where each position of the rows is.

        One window of every row at a time, up to as many as the fullest row has: to hear silence
        alone costs as much as to hear speech.
        """
        b, count, positions = len(mels_bfm), self.cfg.windows, self.cfg.whisper.positions
        silence = _silence(self.mel)
        cut = lambda mels, sequences: _cut_windows(mels, sequences, count, self.frames, silence)
        windows = jnp.moveaxis(_by_rows(cut, mels_bfm, sequences_bf), 1, 0)
        fullest = jnp.max(_by_rows(lambda ids: _windows(ids)[-1] + 1, sequences_bf))

        def hear(mels_bfm: Array) -> Array:
            return self._hidden(mels_bfm, jnp.ones_like(mels_bfm[..., 0], jnp.int32), layers)

        heard = jax.eval_shape(hear, windows[0])
        silent = lambda _: jnp.zeros(heard.shape, heard.dtype, out_sharding=heard.sharding.spec)
        number = jnp.arange(count, dtype=jnp.int32)
        each = lambda _, window: (None, jax.lax.cond(window[0] < fullest, hear, silent, window[1]))
        states = jnp.moveaxis(jax.lax.scan(each, None, (number, windows))[1], 0, 2)
        rows = jax.typeof(states).sharding.spec[1]
        shape = (len(layers), b, count * positions, self.cfg.width)
        states = jax.lax.reshape(states, shape, out_sharding=jax.P(None, rows, None, None))
        places = _by_rows(lambda ids: _places(ids, count, positions), sequences_bf)
        return _take(states, places)


class ConformerTeacher(nnx.Module):
    """Phi-4-MM's stem and Conformer, its weights under the names that a model has them by.

    It hears clips as the front end does: a position is one of the model's, 8 mel frames.
    """

    EXACT = frozenset({"front.mean", "front.invstd"})  # rounded, they would shift all of its input

    def __init__(self, rngs: nnx.Rngs, cfg: Distill, mel: Mel):
        self.front = ConformerEncoder(rngs, mel.m, cfg.c, cfg.conformer)

    @staticmethod
    def there(batch: Batch, cfg: Distill, r: int) -> Bool[Array, "b t j"]:
        """See `Teacher`: wherever there is speech."""
        there: Array = batch.is_speech[..., None]
        return there

    def states(self, batch: Batch, layers: Sequence[int]) -> Float[Array, "n b t j e"]:
        """See `Teacher`; a block's output is after its norm."""
        hidden = self.front.hidden(batch)
        return jnp.stack([hidden[layer] for layer in layers])[..., None, :]


TEACHERS: Mapping[str, type[WhisperTeacher] | type[ConformerTeacher]] = {
    "whisper": WhisperTeacher,
    "conformer": ConformerTeacher,
}


def states_there(batch: Batch, cfg: Distill, r: int) -> Bool[Array, "b t j"]:
    """Which states the teacher of a run has."""
    return TEACHERS[cfg.teacher].there(batch, cfg, r)


class SilenceLevels(NamedTuple):
    """What silence beside a sound is in a log-mel: so far below its peak, the floor at least."""

    below: float
    floor: float


def _silence(mel: Mel) -> SilenceLevels:
    table = make_filters(mel.kind, mel.m)
    return SilenceLevels(table.span * table.gain, math.log(table.floor) * table.gain + table.offset)


def _cut_windows(
    mels_fm: Float[Array, "f m"],
    sequences_f: Int[Array, "f"],
    count: int,
    frames: int,
    silence: SilenceLevels,
) -> Float[Array, "count frames m"]:
    """The first `count` sequences of a row, each filled up with silence."""
    index = jnp.arange(len(sequences_f), dtype=jnp.int32)
    (starts,) = jnp.nonzero(sequences_f == index + 1, size=count, fill_value=len(index))
    wanted = starts[:, None] + jnp.arange(frames, dtype=jnp.int32)[None]
    held = jnp.minimum(wanted, len(index) - 1)
    own = ((wanted < len(index)) & (sequences_f[held] == starts[:, None] + 1))[..., None]
    found = mels_fm[held]
    peak = jnp.max(jnp.where(own, found, -jnp.inf), axis=(1, 2), keepdims=True)
    return jnp.where(own, found, jnp.maximum(peak - silence.below, silence.floor))


def _windows(sequences_f: Int[Array, "f"]) -> Int[Array, "f"]:
    """Which sequence of its row a frame is of, from 0; of those between, the one before."""
    index = jnp.arange(len(sequences_f), dtype=jnp.int32)
    return jnp.cumsum(sequences_f == index + 1, dtype=jnp.int32) - 1


def _places(sequences_f: Int[Array, "f"], count: int, positions: int) -> Int[Array, "s"]:
    """Where the state of each position of Whisper's is among those of all windows of its row."""
    index = jnp.arange(len(sequences_f), dtype=jnp.int32)
    inside = (index - (sequences_f - 1)) // STRIDE
    place = _windows(sequences_f) * positions + inside
    there = (sequences_f > 0) & (place < count * positions)
    return jnp.where(there, place, 0)[::STRIDE]


def _take(states_nbse: Array, places_bs: Array) -> Array:
    """The states of each row at its places, of every layer."""
    rows = jax.P(sharding.ROWS)
    layers = jax.P(None, sharding.ROWS)
    take = jax.vmap(lambda states, places: states[:, places], in_axes=(1, 0), out_axes=1)
    return jax.shard_map(take, in_specs=(layers, rows), out_specs=layers)(states_nbse, places_bs)


def _by_rows(function: Callable[..., Any], *columns: Array) -> Any:
    """`function` of arrays [b …] whose time is whole, row by row on the device that holds it."""
    spec = jax.P(sharding.ROWS)
    return jax.shard_map(jax.vmap(function), in_specs=spec, out_specs=spec)(*columns)
