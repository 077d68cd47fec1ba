"""Sound where it lies: a file, a range of one (a tar's member), a row of a table.

The readers of tables are extras (`parquet`, `tfds`) that preparing needs, training never.
"""

import os

from etils import epath
from jaxtyping import Float32
import numpy as np

from data_pipelines import parquet_rows, tfds_rows
from data_pipelines.audio import BadAudio, decode
from data_pipelines.manifest import TFDS
from data_pipelines.utterance import Reference
from melllm_jax.errors import Fault


def wave(
    place: epath.Path | Reference, part: tuple[float, float] | None = None
) -> Float32[np.ndarray, "w"]:
    """Samples at 16 kHz of the sound at `place`, or of `part` of it: start and length in seconds.

    Raises BadAudio as `audio.decode`, also for what is not there; Fault where the disk, not the
    file, is at fault; Mistake where an extra is not installed.
    """
    if isinstance(place, Reference) and place.path.startswith(TFDS):
        held = tfds_rows.value(place)
        if not isinstance(held, bytes):
            return tfds_rows.wave(held, place, part)
        return decode(held, described(place), part)
    if part is not None and not isinstance(place, Reference) and "://" not in os.fspath(place):
        return decode(place, part=part)  # of a long recording only the stretch is read
    return decode(content(place), described(place), part)


def content(place: epath.Path | Reference) -> bytes:
    """The encoded sound at `place`, as it lies there. Raises as `wave`."""
    if not isinstance(place, Reference):
        return _range(place, 0, -1)
    if place.path.startswith(TFDS):
        held = tfds_rows.value(place)
        if not isinstance(held, bytes):
            raise BadAudio("undecodable", f"{described(place)}: holds samples, not a sound file")
        return held
    if place.row is not None:
        return parquet_rows.content(place)
    if place.start is None or place.size is None:
        return _range(epath.Path(place.path), 0, -1)
    found = _range(epath.Path(place.path), place.start, place.size)
    if len(found) < place.size:
        rule = f"has {len(found)} of {place.size} bytes: the file was cut off"
        raise BadAudio("undecodable", f"{described(place)}: {rule}")
    return found


def described(place: epath.Path | Reference) -> str:
    """The place in words for a message: `a.tar, byte 512`, `b.parquet, row 7`."""
    if not isinstance(place, Reference):
        return os.fspath(place)
    if place.row is not None:
        return f"{place.path}, row {place.row}"
    return place.path if place.start is None else f"{place.path}, byte {place.start}"


def _range(path: epath.Path, start: int, size: int) -> bytes:
    """`size` bytes from `start` on, to the end where size is -1."""
    try:
        with path.open("rb") if "://" in os.fspath(path) else open(path, "rb") as file:
            file.seek(start)
            return bytes(file.read(size))
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        raise BadAudio("missing", f"{path}: no such file") from error
    except OSError as error:
        raise Fault(f"{path}: cannot be read: {error}") from error
