"""Griffin-Lim: log-mel to sound without a network, for who has no vocoder.

Magnitudes come from the mel by non-negative least squares (Lee and Seung 2001), phases from
iterations between spectra and sound (Griffin and Lim 1984), hastened as by Perraudin, Balazs and
Søndergaard 2013. Every kind of mel is inverted with the constants that made it; on the device, as
librosa is no dependency and knows neither emphasis nor edges of these kinds.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Complex, Float, Float32
import numpy as np

from melllm_jax.config.features import Mel
from melllm_jax.errors import Mistake
from melllm_jax.features.mel_filters import MelFilters, make_filters
from melllm_jax.features.stft import overlap_add, split_frames

ITERATIONS = 32
MOMENTUM = 0.99  # of the change from one iteration to the next
FITTING = 100  # updates of the least squares
BUCKET = 128  # frames: silence fills up to a multiple, so that few lengths are compiled
TINY = 1e-12
LEAST = 1e-3  # of the windows' largest sum: sound at the very ends is not blown up


def griffin_lim(
    mels: Float32[np.ndarray, "f m"], mel: Mel, iterations: int = ITERATIONS, seed: int = 0
) -> Float32[np.ndarray, "w"]:
    """Samples at `mel.rate` Hz whose mel is near `mels`, which are in the log units of `mel`.

    A global normalisation is undone; one by utterance cannot be: raises Mistake. Phases start at
    random, from `seed`.
    """
    table = make_filters(mel.kind, mel.m)
    if mels.shape[1] != mel.m:
        raise Mistake(f"mel of {mels.shape[1]} bands: mel.m={mel.m}")
    if mel.normalize == "utterance":
        rule = "the level of the sound is lost: Griffin-Lim needs mel of none or global"
        raise Mistake(f"mel.normalize=utterance: {rule}")
    if mel.normalize == "global":
        mels = mels / np.array(mel.invstd, np.float32) + np.array(mel.mean, np.float32)
    frames = len(mels)
    if not frames:
        return np.zeros(0, np.float32)
    silent = np.float32(np.log(table.floor) * table.gain + table.offset)
    padded = np.full((-(-frames // BUCKET) * BUCKET, mel.m), silent, np.float32)
    padded[:frames] = mels
    wave = np.asarray(_invert(padded, jax.random.key(seed), table, iterations))
    samples = (frames - 1) * table.hop + table.width
    return wave[table.edge : samples - table.edge]


@functools.partial(jax.jit, static_argnames=("table", "iterations"))
def _invert(
    mels: Float[Array, "f m"], key: Array, table: MelFilters, iterations: int
) -> Float[Array, "w"]:
    """The sound of these frames, its edges included."""
    magnitudes = _magnitudes(mels, table)
    angle = jax.random.uniform(key, magnitudes.shape, maxval=2 * np.pi)
    phases, zero = jnp.exp(1j * angle), jnp.zeros(magnitudes.shape, jnp.complex64)

    def step(_: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
        phases, before = state
        rebuilt = _analyse(_synthesize(magnitudes * phases, table), table)
        moved = rebuilt - (MOMENTUM / (1 + MOMENTUM)) * before
        return moved / jnp.maximum(jnp.abs(moved), TINY), rebuilt

    phases, _ = jax.lax.fori_loop(0, iterations, step, (phases, zero))
    return _synthesize(magnitudes * phases, table)


def _magnitudes(mels: Float[Array, "f m"], table: MelFilters) -> Float[Array, "f bins"]:
    """Magnitudes of every bin that the triangles make these frames of; 0 where none reads."""
    bank = table.bank
    energy = jnp.exp((mels - table.offset) / table.gain)
    energy = jnp.where(energy > table.floor * 1.001, energy, 0)
    seen = energy @ bank.T

    def fit(_: Array, x: Array) -> Array:
        return x * seen / jnp.maximum((x @ bank) @ bank.T, TINY)

    found = jax.lax.fori_loop(0, FITTING, fit, seen)
    found = found if table.power == 1 else jnp.sqrt(found)
    angle = np.pi * np.arange(len(bank)) / (table.points // 2)
    raised = np.abs(1 - table.emphasis * np.exp(-1j * angle)).astype(np.float32)
    rest = table.points // 2 + 1 - len(bank)
    return jnp.pad(found / raised[None], ((0, 0), (0, rest)))


def _analyse(wave: Float[Array, "w"], table: MelFilters) -> Complex[Array, "f bins"]:
    frames = split_frames(wave[None], table.width, table.hop)[0]
    return jnp.fft.rfft(frames * table.window[None], table.points, axis=1)


def _synthesize(bins: Complex[Array, "f bins"], table: MelFilters) -> Float[Array, "w"]:
    """The sound whose spectra are nearest to `bins`."""
    frames = jnp.fft.irfft(bins, table.points, axis=1)[:, : table.width] * table.window[None]
    weights = jnp.broadcast_to(jnp.square(table.window)[None], frames.shape)
    total, weight = (overlap_add(x[None], table.hop)[0] for x in (frames, weights))
    return total / jnp.maximum(weight, LEAST * jnp.max(weight))
