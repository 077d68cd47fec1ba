"""Sound where it lies: a file, a range of one (a tar's member), a row of a table.

The readers of tables are extras (`parquet`, `tfds`) that preparing needs, training never.
"""

import os

from etils import epath
from jaxtyping import Float32
import numpy as np

from data_pipelines.audio.file_io import decode_audio
from data_pipelines.corpora import parquet_audio, tfds_audio
from data_pipelines.corpora.manifest import TFDS_PREFIX
from data_pipelines.corpora.utterance import AudioReference
from data_pipelines.reject import Unusable
from melllm_jax.errors import Fault


def load_wave(
    place: epath.Path | AudioReference, part: tuple[float, float] | None = None
) -> Float32[np.ndarray, "w"]:
    """Samples at 16 kHz of the sound at `place`, or of `part` of it: start and length in seconds.

    Raises Unusable as `audio.decode`, also for what is not there; Fault where the disk, not the
    file, is at fault; Mistake where an extra is not installed.
    """
    if isinstance(place, AudioReference) and place.path.startswith(TFDS_PREFIX):
        held = tfds_audio.read_feature(place)
        if not isinstance(held, bytes):
            return tfds_audio.samples_to_wave(held, place, part)
        return decode_audio(held, describe_location(place), part)
    if part is not None and not isinstance(place, AudioReference) and "://" not in os.fspath(place):
        return decode_audio(place, part=part)  # of a long recording only the stretch is read
    return decode_audio(read_audio_bytes(place), describe_location(place), part)


def read_audio_bytes(place: epath.Path | AudioReference) -> bytes:
    """The encoded sound at `place`, as it lies there. Raises as `load_wave`."""
    if not isinstance(place, AudioReference):
        return _read_range(place, 0, -1)
    if place.path.startswith(TFDS_PREFIX):
        held = tfds_audio.read_feature(place)
        if not isinstance(held, bytes):
            raise Unusable(
                "undecodable", f"{describe_location(place)}: holds samples, not a sound file"
            )
        return held
    if place.row is not None:
        return parquet_audio.read_row_audio(place)
    if place.start is None or place.size is None:
        return _read_range(epath.Path(place.path), 0, -1)
    found = _read_range(epath.Path(place.path), place.start, place.size)
    if len(found) < place.size:
        rule = f"has {len(found)} of {place.size} bytes: the file was cut off"
        raise Unusable("undecodable", f"{describe_location(place)}: {rule}")
    return found


def describe_location(place: epath.Path | AudioReference) -> str:
    """The place in words for a message: `a.tar, byte 512`, `b.parquet, row 7`."""
    if not isinstance(place, AudioReference):
        return os.fspath(place)
    if place.row is not None:
        return f"{place.path}, row {place.row}"
    return place.path if place.start is None else f"{place.path}, byte {place.start}"


def _read_range(path: epath.Path, start: int, size: int) -> bytes:
    """`size` bytes from `start` on, to the end where size is -1."""
    try:
        with path.open("rb") if "://" in os.fspath(path) else open(path, "rb") as file:
            file.seek(start)
            return bytes(file.read(size))
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        raise Unusable("missing", f"{path}: no such file") from error
    except OSError as error:
        raise Fault(f"{path}: cannot be read: {error}") from error
