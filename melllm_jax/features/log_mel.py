"""Log-mel frames on the device, for batches of padded sound: those of the NumPy extractor.

The Fourier transform is a product with a [width 2 bins] matrix: less arithmetic would be no
faster on a matrix unit. Padding changes nothing of a row: neither its mirrored edge, its peak nor
its mean.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32, Int, Int32
import numpy as np

from melllm_jax.config.features import Mel
from melllm_jax.errors import Mistake
from melllm_jax.features.mel_filters import EPS, MelFilters, make_filters

HIGHEST = jax.lax.Precision.HIGHEST  # bfloat16 passes would leave 3 of a log's 7 digits
TINY = 1e-22  # least power of a bin: the root's gradient is finite, and it stays under all floors


def batch_log_mel(
    wave: Float32[Array, "b w"], lengths: Int[Array, "b"], cfg: Mel, rate: int = 0
) -> tuple[Float32[Array, "b frames m"], Int32[Array, "b"]]:
    """Normalised log-mel frames, and how many of each row are real; the others are zero.

    `wave` holds samples in [-1, 1] at `rate` Hz, `cfg.rate` where it is 0 or for phi4 8,000,
    `lengths` the real samples of each row. `cfg` and `rate` are static under jit. A row too short
    for a frame has 0: lengths are known on the device only. Raises Mistake where no row of width w
    could hold a frame, for another rate, and for a global normalisation without its values.
    """
    table = make_filters(cfg.kind, cfg.m, rate)
    b, w = wave.shape
    if w < table.shortest:
        rule = f"the {cfg.kind} extractor needs {table.shortest} or more"
        raise Mistake(f"rows of {w} samples: {rule}")
    count = table.frames(w)
    enough = lengths >= table.shortest
    counts = jnp.where(enough, table.frames(lengths), 0).astype(jnp.int32)
    real = jnp.arange(count)[None, :] < counts[:, None]
    framed_bfw = _split_frames(_add_edges(wave, lengths, table), count, table)
    bins = jnp.einsum("bfw,wzc->bfzc", framed_bfw, table.kernel(), precision=HIGHEST)
    power = jnp.square(bins).sum(axis=2)
    if table.power == 1:
        power = jnp.sqrt(jnp.maximum(power, TINY))
    power = jnp.einsum("bfc,cm->bfm", power, table.bank, precision=HIGHEST)
    logs = jnp.log(jnp.maximum(power, table.floor))
    if table.span < np.inf:
        peak = jnp.max(logs, axis=(1, 2), where=real[:, :, None], initial=-np.inf, keepdims=True)
        logs = jnp.maximum(logs, peak - table.span)
    mels = logs * table.gain + table.offset
    if cfg.floor:
        mels = jnp.maximum(mels, cfg.floor)
    mels = _normalise(mels, real, cfg)
    return jnp.where(real[:, :, None], mels, 0.0), counts


def _add_edges(wave: Float32[Array, "b w"], lengths: Int[Array, "b"], table: MelFilters) -> Array:
    """Each row [b w + 2 edge] between its edges, which end where the row's own sound ends."""
    if not table.edge:
        return wave
    # Laid out as the rows are, also where there is one.
    places = jnp.arange(-table.edge, wave.shape[1] + table.edge, dtype=lengths.dtype)
    index = jnp.zeros_like(lengths)[:, None] + places[None, :]
    last = lengths[:, None] - 1
    inside = jnp.clip(jnp.where(index > last, 2 * last - index, jnp.abs(index)), 0, last)
    edged = jnp.take_along_axis(wave, inside, axis=1)
    if table.mode == "constant":
        return jnp.where((index >= 0) & (index <= last), edged, 0.0)
    return edged


def _split_frames(wave: Array, count: int, table: MelFilters) -> Float[Array, "b frames width"]:
    """Overlapping frames, put together from whole hops: no gather."""
    hops = -(-table.width // table.hop)
    need = (count + hops - 1) * table.hop
    padded = jnp.pad(wave, ((0, 0), (0, max(0, need - wave.shape[1]))))[:, :need]
    chunks = padded.reshape(len(wave), -1, table.hop)
    parts = [chunks[:, i : i + count] for i in range(hops)]
    return jnp.concatenate(parts, axis=2)[:, :, : table.width]


def _normalise(
    mels: Float32[Array, "b frames m"], real: Bool[Array, "b frames"], cfg: Mel
) -> Array:
    if cfg.normalize == "global":
        if not (cfg.mean and cfg.invstd):
            raise Mistake('mel.normalize="global": needs values in mel.mean and mel.invstd')
        mean, invstd = np.array(cfg.mean, np.float32), np.array(cfg.invstd, np.float32)
        return (mels - mean[None, None]) * invstd[None, None]
    if cfg.normalize == "utterance":
        weight = real[:, :, None] / jnp.maximum(real.sum(axis=1), 1)[:, None, None]
        centred = mels - (mels * weight).sum(axis=1, keepdims=True)
        variance = (jnp.square(centred) * weight).sum(axis=1, keepdims=True)
        return centred * jax.lax.rsqrt(variance + EPS)
    return mels
