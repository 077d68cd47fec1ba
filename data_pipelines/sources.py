"""Utterances on disk as random-access sources: folders of manifests, or of prepared shards.

Opening a source checks its form; what a record says of its sound is checked where it is used.
"""

from collections.abc import Mapping
import hashlib
import json
import math
import mmap
import os
from typing import Any

from etils import epath
from jaxtyping import Float32, Int64
import numpy as np

from data_pipelines import shards
from data_pipelines.audio import BadAudio, decode
from data_pipelines.reader import Shards
from data_pipelines.utterance import Utterance
from melllm_jax.errors import Fault, Mistake
from melllm_jax.mel_tables import RATE

CHECKED = 100_000  # lines parsed at opening, 0.5 s; later ones are parsed when they are read
_MANIFEST = ".jsonl"
_CHUNK = 1 << 24  # bytes searched at a time for line ends
_FIELDS: Mapping[str, type | tuple[type, ...]] = {
    "audio_filepath": str,
    "text": str,
    "duration": (int, float),
    "speaker": str,
    "id": str,
}


class Manifest:
    """The lines of a SPLIT.jsonl: 16 bytes of memory a line, parsed at each access.

    A line is an object with audio_filepath (relative to the manifest), text, duration in seconds,
    speaker and id; offset, where given, is the second at which it starts in its file. Other fields
    are left alone. Raises Mistake for a line that is none of this, naming file and line.
    """

    mel = None  # a manifest points at audio, never at ready mel

    def __init__(self, path: epath.Path) -> None:
        self.path = path
        self._bytes = _mapped(path)
        self._starts, self._stops = _lines(self._bytes)
        if not len(self):
            raise Mistake(f"{path}: has 0 lines: needs one an utterance")
        for index in range(min(len(self), CHECKED)):
            self._row(index)

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, index: int) -> Utterance:
        row = self._row(index)
        return Utterance(
            id=row["id"],
            text=row["text"],
            duration=float(row["duration"]),
            speaker=row["speaker"],
            audio=self.path.parent / row["audio_filepath"],
            offset=row.get("offset"),
        )

    def _row(self, index: int) -> dict[str, Any]:
        line = self._bytes[self._starts[index] : self._stops[index]]
        try:
            row = json.loads(line)
        except ValueError as error:
            raise Mistake(f"{self._where(index)}: is no JSON: {error}") from error
        if not isinstance(row, dict):
            raise Mistake(f"{self._where(index)}: {str(row)[:40]!r} is no object of fields")
        for name, kind in _FIELDS.items():
            if name not in row:
                raise Mistake(f"{self._where(index)}: lacks {name}: has {', '.join(row)}")
            if not isinstance(row[name], kind):
                rule = "a string" if kind is str else "a number"
                raise Mistake(f"{self._where(index)}: {name}={row[name]!r}: must be {rule}")
        for name in ("duration", "offset"):
            seconds = row.get(name) or 0.0
            if not (isinstance(seconds, int | float) and 0 <= seconds < math.inf):
                raise Mistake(f"{self._where(index)}: {name}={seconds!r}: must be seconds from 0")
        return row

    def _where(self, index: int) -> str:
        line = self._bytes[: self._starts[index]].count(b"\n") + 1
        return f"{self.path}:{line}"


Corpus = Manifest | Shards


def open_source(path: epath.PathLike, split: str) -> Corpus:
    """The utterances of one split of a folder of manifests or of shards.

    Raises Mistake for what a user can set right, Fault for a shard that is missing or damaged.
    """
    folder = _folder_with(path, split)
    if _is_prepared(folder):
        return Shards(folder, shards.read_index(folder), split)
    return Manifest(folder / f"{split}{_MANIFEST}")


def digest(path: epath.PathLike, split: str) -> str:
    """Hash of a manifest's bytes, or of what the index says of a split: 16 hexadecimal digits.

    The index holds a hash of every shard; a manifest says nothing of what is in its audio files.
    """
    folder = _folder_with(path, split)
    if _is_prepared(folder):
        index = shards.read_index(folder)
        text = repr((index.mel, index.splits[split])).encode()
        return hashlib.sha256(text).hexdigest()[:16]
    return hashlib.sha256(_mapped(folder / f"{split}{_MANIFEST}")).hexdigest()[:16]


def splits(path: epath.PathLike) -> list[str]:
    """Names of the splits of a folder. Raises Mistake where it is none of shards or manifests."""
    folder = epath.Path(path)
    if not folder.is_dir():
        raise Mistake(f"data={folder}: is no folder")
    if _is_prepared(folder):
        return sorted(shards.read_index(folder).splits)
    names = sorted(file.name for file in folder.iterdir() if file.name != shards.REJECTS)
    if any(shards.SUFFIX in name for name in names):
        raise Mistake(f"data={folder}: has shards but no {shards.INDEX}: preparing did not finish")
    found = [name.removesuffix(_MANIFEST) for name in names if name.endswith(_MANIFEST)]
    if not found:
        raise Mistake(f"data={folder}: holds neither {shards.INDEX} nor SPLIT{_MANIFEST}")
    return found


def sound(utterance: Utterance) -> Float32[np.ndarray, "w"]:
    """Samples at 16 kHz of an utterance that has no ready mel, from its offset on where it has one.

    Raises BadAudio with a reason, and Fault where the disk, not the file, is at fault.
    """
    audio, name = utterance.audio, utterance.id
    if audio is None:
        raise BadAudio("missing", f"{name}: has no audio")
    if isinstance(audio, bytes):
        wave = decode(audio, name)
    else:
        wave = decode(_content(audio), os.fspath(audio))
    if utterance.offset is None:
        return wave
    start = round(utterance.offset * RATE)
    wave = wave[start : start + round(utterance.duration * RATE)]
    if not wave.size:
        raise BadAudio("empty", f"{name}: ends before offset={utterance.offset} s")
    return wave


def by_length(corpus: Corpus) -> list[int]:
    """Indices of `corpus`, longest utterance first, equal ones in order of file."""
    return sorted(range(len(corpus)), key=lambda index: -corpus[index].duration)


def _is_prepared(folder: epath.Path) -> bool:
    return (folder / shards.INDEX).exists()


def _folder_with(path: epath.PathLike, split: str) -> epath.Path:
    known = splits(path)
    if split not in known:
        raise Mistake(f"split={split}: {path} has {', '.join(known)}")
    return epath.Path(path)


def _content(path: epath.Path) -> bytes:
    try:
        return path.read_bytes()
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        raise BadAudio("missing", f"{path}: no such file") from error
    except OSError as error:
        raise Fault(f"{path}: cannot be read: {error}") from error


def _mapped(path: epath.Path) -> mmap.mmap | bytes:
    """The bytes of a file: mapped where it is on this machine, else read."""
    if "://" in os.fspath(path) or not path.stat().length:
        return path.read_bytes()
    with open(path, "rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def _lines(
    content: mmap.mmap | bytes,
) -> tuple[Int64[np.ndarray, " lines"], Int64[np.ndarray, " lines"]]:
    """Start and stop of every line that is not empty."""
    ends = [
        np.flatnonzero(np.frombuffer(content[start : start + _CHUNK], np.uint8) == ord("\n"))
        + start
        for start in range(0, len(content), _CHUNK)
    ]
    stops = np.concatenate([*ends, np.array([len(content)])]).astype(np.int64)
    starts = np.concatenate([np.zeros(1, np.int64), stops[:-1] + 1])
    filled = starts < stops
    return starts[filled], stops[filled]
