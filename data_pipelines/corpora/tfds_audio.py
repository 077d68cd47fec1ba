"""Reads sound from rows of TFDS datasets, at random as `tfds.data_source` does.

TFDS's `Audio` feature needs tensorflow even to read; `Tensor` and `Text` do not.
"""

import functools
import os
from typing import Any

from etils import epath
import numpy as np

from data_pipelines.audio.file_io import MAX_RATE, MIN_RATE, Sound, mix_channels, resample
from data_pipelines.corpora.manifest import TFDS_PREFIX
from data_pipelines.corpora.utterance import AudioReference
from data_pipelines.reject import Unusable, first_line
from melllm_jax.errors import Mistake
from melllm_jax.features.mel_filters import SAMPLE_RATE, TELEPHONE_RATE

INT16_SCALE = 32768  # of whole numbers: TFDS's Audio keeps 16 bits, by default in int64


def read_feature(location: AudioReference) -> bytes | np.ndarray:
    """The value of a row in the column of `location`: the bytes of a sound file, or samples.

    A sound file is a string of bytes or an array of uint8. Raises Unusable for a missing row,
    Mistake for a missing dataset or column, or where the extra is not installed.
    """
    name, _, split = location.path.removeprefix(TFDS_PREFIX).rpartition(":")
    found, row = open_data_source(name, split), location.row
    if row is None or row >= len(found):
        raise Unusable("missing", f"{location.path}, row {row}: the split has {len(found)} rows")
    held = found[row]
    if location.column not in held:
        raise Mistake(f"{location.path}: has no feature {location.column!r}: has {', '.join(held)}")
    array = np.asarray(held[location.column])
    if array.dtype == np.uint8:
        return array.tobytes()
    return bytes(array.item()) if array.dtype.kind in "SO" else array


def samples_to_sound(
    samples: np.ndarray, location: AudioReference, part: tuple[float, float] | None = None
) -> Sound:
    """The sound of [w] or [w, channels] at location.rate Hz, 16-bit integers or floats."""
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
    wave = mix_channels(sound, where) if sound.ndim == 2 else sound
    if location.rate == TELEPHONE_RATE:
        return Sound(np.ascontiguousarray(wave), TELEPHONE_RATE)
    return Sound(resample(wave, location.rate), SAMPLE_RATE)


def import_tfds() -> Any:
    """The module tensorflow_datasets. Raises Mistake where the extra is not installed."""
    try:
        import tensorflow_datasets  # noqa: PLC0415  the extra `tfds`
    except ImportError as error:
        rule = "pip install 'melllm_jax[tfds]'"
        raise Mistake(f"TFDS needs tensorflow_datasets: {rule}") from error
    return tensorflow_datasets


@functools.lru_cache(maxsize=8)
def open_builder(name: str) -> Any:
    """The builder of a prepared TFDS dataset: of a folder like NAME/1.0.0, or by name.

    Raises Mistake where the extra is not installed or no such dataset is on this machine.
    """
    tfds = import_tfds()
    try:
        if (epath.Path(name) / "dataset_info.json").exists():
            return tfds.builder_from_directory(name)
        return tfds.builder(name, try_gcs=False)
    except ImportError as error:
        rule = f"has features that need {error.name}: pip install 'melllm_jax[tfds]'"
        raise Mistake(f"{TFDS_PREFIX}{name}: {rule}") from error
    except (tfds.core.DatasetNotFoundError, OSError, ValueError) as error:
        raise Mistake(f"{TFDS_PREFIX}{name}: cannot be opened: {first_line(error)}") from error


@functools.lru_cache(maxsize=8)
def open_data_source(name: str, split: str) -> Any:
    """Random access to a split's rows, dicts of features. Raises Mistake as `open_builder`."""
    made = open_builder(name)
    if split not in made.info.splits:
        raise Mistake(
            f"{TFDS_PREFIX}{name}: has no split {split!r}: has {', '.join(made.info.splits)}"
        )
    try:
        return made.as_data_source(split=split)
    except (NotImplementedError, ImportError, OSError, ValueError) as error:
        folder = os.fspath(made.data_path)
        raise Mistake(
            f"{TFDS_PREFIX}{folder}: cannot be read at random: {first_line(error)}"
        ) from error
