"""One utterance, and its record format: a JSON header, then the raw bytes of its sound.

A record holds no code, so that reading a stranger's shard runs none.
"""

import dataclasses
import json
import struct
from typing import Any

from etils import epath
from jaxtyping import Float
import ml_dtypes
import numpy as np

_HEADER = struct.Struct("<I")  # bytes of JSON that follow
_REQUIRED_FIELDS = ("id", "text", "duration", "speaker")
_OPTIONAL_FIELDS = ("language", "source", "tokens", "channel")  # left out of a header where empty


@dataclasses.dataclass(frozen=True)
class AudioReference:
    """Where sound lies inside something larger: a range of bytes of a file, or a row of a table."""

    path: str  # of the file; tfds:NAME:SPLIT for a split of a TFDS dataset
    start: int | None = None  # first byte of the file that is the sound, as in a tar
    size: int | None = None  # bytes that are the sound
    row: int | None = None  # of a parquet file or TFDS split, counted from 0
    column: str = ""  # of the sound in a table; found by its type where empty
    rate: int | None = None  # Hz of samples that do not say it themselves


@dataclasses.dataclass(frozen=True)
class Utterance:
    """A text, who spoke it, and its sound: encoded, in a file or part of one, or as ready mel."""

    id: str
    text: str
    duration: float  # seconds, as the manifest says; 0: unknown
    speaker: str  # empty: unknown
    audio: bytes | epath.Path | AudioReference | None = None
    mel: Float[np.ndarray, "frames m"] | None = None  # bfloat16 where it was read
    offset: float | None = None  # seconds into the sound where it starts; None is the whole sound
    language: str = ""  # as the corpus writes it, "en" or "de-CH"; empty: unknown
    source: str = ""  # corpus that it came from
    tokens: tuple[int, ...] | None = None  # ids of the text, where it was prepared with a tokenizer
    channel: int | None = None  # of the sound, counted from 0; None is the mean of all
    flaw: str = ""  # what is wrong with its row, of which then nothing else counts


def encode_record(utterance: Utterance) -> bytes:
    """A record: bytes of `audio`, or `mel` rounded to bfloat16. `offset` is not stored."""
    header: dict[str, Any] = {name: getattr(utterance, name) for name in _REQUIRED_FIELDS}
    for name in _OPTIONAL_FIELDS:
        if (value := getattr(utterance, name)) not in ("", None):
            header[name] = value
    payload = utterance.audio
    if utterance.mel is not None:
        header["mel"] = utterance.mel.shape
        payload = utterance.mel.astype(ml_dtypes.bfloat16).tobytes()
    if not isinstance(payload, bytes):
        raise TypeError(f"{utterance.id}: a record needs mel or encoded audio, not a path")
    text = json.dumps(header, ensure_ascii=False).encode()
    return _HEADER.pack(len(text)) + text + payload


def decode_record(record: bytes) -> Utterance:
    """The utterance of a record. Raises ValueError or KeyError for what is no record."""
    if len(record) < _HEADER.size:
        raise ValueError(f"{len(record)} bytes are no record")
    stop = _HEADER.size + _HEADER.unpack_from(record)[0]
    header = json.loads(record[_HEADER.size : stop])
    if (tokens := header.get("tokens")) is not None:
        header["tokens"] = tuple(tokens)
    shape = header.pop("mel", None)
    if shape is None:
        return Utterance(**header, audio=record[stop:])
    mel = np.frombuffer(record, ml_dtypes.bfloat16, offset=stop).reshape(shape)
    return Utterance(**header, mel=mel)
