"""Windows of the clips in packed rows: the runs of positions that an encoder hears as one.

A clip is cut into windows of `WINDOW` positions, as transformers' `Phi4MultimodalAudioModel` folds
it. It fills the last window of a clip that has several up with zeros, which the blocks then hear as
any other position: `room` makes a row as much longer as they need.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from melllm_jax import sharding
from melllm_jax.flops import CONFORMER_WINDOW

WINDOW = CONFORMER_WINDOW


class ClipWindows(NamedTuple):
    """For each position of a row, int32 [b s]: which window it is of, and its place there."""

    ids: Int[Array, "b s"]  # its own in the row, from 1; 0 at text and padding
    places: Int[Array, "b s"]  # from 0


class Room(NamedTuple):
    """Rows [b s] with room for what fills last windows up, [b q]."""

    windows: ClipWindows  # of the longer rows
    sources: Int[Array, "b q"]  # the position of the shorter row, -1 at zeros
    targets: Int[Array, "b s"]  # where each position of the shorter row went


def places_in_clips(
    follows_bs: Bool[Array, "b s"], speech_bs: Bool[Array, "b s"]
) -> Int[Array, "b s"]:
    """The place of each position in its clip, from 0, and -1 at text, of rows whose time is whole.

    `follows` says where the position before is of the same clip.
    """
    place: Array = _by_rows(_places, follows_bs, speech_bs)
    return place


def windows(place_bs: Int[Array, "b s"]) -> ClipWindows:
    """The windows of rows."""
    return ClipWindows(*_by_rows(_windows, place_bs))


def room(place_bs: Int[Array, "b s"]) -> Room:
    """Rows with as much room as the most clips of several windows that fit in one could need."""
    ids, places, sources, targets = _by_rows(_room, place_bs)
    return Room(ClipWindows(ids, places), sources, targets)


def take(x_bsd: Array, at_bq: Array) -> Array:
    """`x` [b s d] at the positions [b q] of each row; zeros at -1."""

    def local(x: Array, at: Array) -> Array:
        found = jnp.take_along_axis(x, jnp.maximum(at, 0)[..., None], axis=1)
        return jnp.where((at >= 0)[..., None], found, 0)

    rows, ids = sharding.a("b s d"), sharding.a("b s")
    return jax.shard_map(local, in_specs=(rows, ids), out_specs=rows)(x_bsd, at_bq)


def _by_rows(function: Callable[..., Any], *columns: Array) -> Any:
    """`function` of columns [b s], row by row on the device that holds it."""
    spec = sharding.a("b s")
    return jax.shard_map(jax.vmap(function), in_specs=spec, out_specs=spec)(*columns)


def _places(follows_s: Array, speech_s: Array) -> Array:
    index = jnp.arange(len(follows_s), dtype=jnp.int32)
    start = jax.lax.cummax(jnp.where(follows_s, 0, index))
    return jnp.where(speech_s, index - start, -1)


def _windows(place_s: Array) -> tuple[Array, Array]:
    """ids and places."""
    index = jnp.arange(len(place_s), dtype=jnp.int32)
    inside = place_s % WINDOW
    speech = place_s >= 0
    return jnp.where(speech, index - inside + 1, 0), jnp.where(speech, inside, 0)


def _room(place_s: Array) -> tuple[Array, Array, Array, Array]:
    """ids, places and sources of the longer row, and the targets of the shorter."""
    s = len(place_s)
    index = jnp.arange(s, dtype=jnp.int32)
    ids, inside = _windows(place_s)
    last = jnp.append(place_s[1:], 0) <= 0
    zeros = jnp.where(last & (place_s >= WINDOW), WINDOW - 1 - inside, 0)  # after each position
    targets = index + jnp.cumsum(zeros) - zeros
    longer = s + s // (WINDOW + 1) * (WINDOW - 1)
    arrived = jnp.zeros(longer, jnp.int32).at[targets].set(1)
    source = jnp.cumsum(arrived) - 1  # the last position of the shorter row up to here
    beyond = jnp.arange(longer, dtype=jnp.int32) - targets[source]
    used = beyond <= zeros[source]
    ids = jnp.where(used, ids[source], 0)
    inside = jnp.where(used, inside[source] + beyond, 0)
    return ids, inside, jnp.where(beyond == 0, source, -1), targets
