"""Reads sound from where it lies: a file, a range of one (a tar's member), a row of a table.

The readers of tables are extras (`parquet`, `tfds`) that preparing needs, training never.
"""

import dataclasses
import os
from typing import BinaryIO

from etils import epath
import numpy as np

from data_pipelines.audio.file_io import decode_sound, open_file
from data_pipelines.audio.sound import MAX_RATE, MIN_RATE, Sound, to_mono
from data_pipelines.corpora import parquet_audio, tfds_audio
from data_pipelines.corpora.manifest import TFDS_PREFIX
from data_pipelines.corpora.utterance import AudioReference
from data_pipelines.reject import Unusable, first_line
from melllm_jax import files
from melllm_jax.errors import Fault, Mistake

INT16_SCALE = 32768  # of whole numbers: TFDS's Audio keeps 16 bits, by default in int64


def load_sound(
    location: epath.Path | AudioReference,
    part: tuple[float, float] | None = None,
    channel: int | None = None,
) -> Sound:
    """The sound at `location`, or `part` of it: (start, length) in seconds.

    channel: the only one to read, from 0; else all are averaged. Raises Unusable as `decode_sound`,
    also where it is missing; Fault where the disk, not the file, is at fault; Mistake where an
    extra is not installed.
    """
    if isinstance(location, AudioReference) and _is_row(location):
        held, found = _read_row(location)
        if not isinstance(held, bytes):
            return samples_to_sound(held, found, part, channel)
        return decode_sound(held, describe_location(location), part, channel)
    if (
        part is not None
        and not isinstance(location, AudioReference)
        and "://" not in os.fspath(location)
    ):
        return decode_sound(
            location, None, part, channel
        )  # of a long recording only the stretch is read
    return decode_sound(read_audio_bytes(location), describe_location(location), part, channel)


def read_audio_bytes(location: epath.Path | AudioReference) -> bytes:
    """The encoded sound at `location`, as it lies there. Raises as `load_sound`."""
    if not isinstance(location, AudioReference):
        return _read_range(location, 0, -1)
    if _is_row(location):
        held, _ = _read_row(location)
        if not isinstance(held, bytes):
            raise Unusable(
                "undecodable", f"{describe_location(location)}: holds samples, not a sound file"
            )
        return held
    if location.start is None or location.size is None:
        return _read_range(_place(location), 0, -1)
    found = _read_range(_place(location), location.start, location.size)
    if len(found) < location.size:
        rule = f"has {len(found)} of {location.size} bytes: the file was cut off"
        raise Unusable("undecodable", f"{describe_location(location)}: {rule}")
    return found


def describe_location(location: epath.Path | AudioReference) -> str:
    """The location as words for a message: `a.tar, byte 512`, `b.parquet, row 7`."""
    if not isinstance(location, AudioReference):
        return os.fspath(location)
    if location.row is not None:
        return f"{location.path}, row {location.row}"
    return location.path if location.start is None else f"{location.path}, byte {location.start}"


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


def _is_row(location: AudioReference) -> bool:
    return location.row is not None or location.path.startswith(TFDS_PREFIX)


def _read_row(location: AudioReference) -> tuple[bytes | np.ndarray, AudioReference]:
    """A sound file or samples, and the location with their rate where the row says it."""
    if location.path.startswith(TFDS_PREFIX):
        return tfds_audio.read_feature(location), location
    held, rate = parquet_audio.read_row_audio(location)
    return held, location if rate is None else dataclasses.replace(location, rate=rate)


def _place(location: AudioReference) -> epath.Path:
    try:
        return epath.Path(files.resolve_uri(location.path))
    except Mistake as error:  # one row's trouble
        raise Unusable("missing", str(error)) from error


def _read_range(path: epath.Path, start: int, size: int) -> bytes:
    """`size` bytes from `start` on, to the end where size is -1 or there are fewer."""
    try:
        with _open(path) as file:
            if size < 0:
                return bytes(file.read())
            left = max(file.seek(0, os.SEEK_END) - start, 0)
            file.seek(min(start, file.tell()))
            return bytes(file.read(min(size, left)))
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        raise Unusable("missing", f"{path}: no such file") from error
    except OSError as error:
        raise Fault(f"{path}: cannot be read: {error}") from error


def _open(path: epath.Path) -> BinaryIO:
    """A file here or in a bucket. Raises Unusable where there is none, or no reader for it."""
    if "://" not in os.fspath(path):
        return open_file(path, os.fspath(path))
    try:
        found: BinaryIO = path.open("rb")
        return found
    except ImportError as error:  # of the bucket's file system
        raise Unusable("missing", f"{path}: cannot be opened: {first_line(error)}") from error
