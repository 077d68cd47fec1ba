"""Samples that a row of a table holds decoded, in place of a sound file, as sound."""

import numpy as np

from data_pipelines.audio.sound import MAX_RATE, MIN_RATE, Sound, to_mono
from data_pipelines.corpora.utterance import AudioReference
from data_pipelines.reject import Unusable

INT16_SCALE = 32768  # of whole numbers: TFDS's Audio keeps 16 bits, by default in int64


def samples_to_sound(
    samples: np.ndarray,
    location: AudioReference,
    part: tuple[float, float] | None = None,
    channel: int | None = None,
) -> Sound:
    """The sound of samples [w] or [w, channels] at location.rate Hz, 16-bit integers or floats.

    part: start and length in seconds; channel: the only one to read, from 0. Raises Unusable.
    """
    where = f"{location.path}, row {location.row}"
    if location.rate is None or not MIN_RATE <= location.rate <= MAX_RATE:
        rule = f"must be from {MIN_RATE} to {MAX_RATE} Hz"
        raise Unusable("rate", f"{where}: rate={location.rate}: {rule}")
    if part is not None:
        start, stop = round(part[0] * location.rate), round(sum(part) * location.rate)
        samples = samples[start:stop]
    if not samples.size:
        raise Unusable("empty", f"{where}: holds no sample")
    if (
        samples.dtype.kind in "iu"
        and not -INT16_SCALE <= samples.min() <= samples.max() < INT16_SCALE
    ):
        raise Unusable("undecodable", f"{where}: holds whole numbers of more than 16 bits")
    scale = INT16_SCALE if samples.dtype.kind in "iu" else 1
    sound = samples.astype(np.float32) / np.float32(scale)
    if not np.isfinite(sound).all():
        raise Unusable("not finite", f"{where}: holds samples that are NaN or infinite")
    columns = sound if sound.ndim == 2 else sound[:, None]
    return Sound.of(to_mono(columns, channel, where), location.rate)
