"""One utterance, and how it lies in a record: a JSON header, then the raw bytes of its sound.

Nothing in a record is code: reading a stranger's shard runs none.
"""

import dataclasses
import json
import struct
from typing import Any

from etils import epath
from jaxtyping import Float32
import ml_dtypes
import numpy as np

_HEADER = struct.Struct("<I")  # bytes of JSON that follow


@dataclasses.dataclass(frozen=True)
class Utterance:
    """What was said, by whom, and its sound: encoded, in a file, or as ready mel."""

    id: str
    text: str
    duration: float  # seconds, as the manifest says
    speaker: str
    audio: bytes | epath.Path | None = None
    mel: Float32[np.ndarray, "frames m"] | None = None
    offset: float | None = None  # seconds into the file where it starts; None is the whole file


def encode(utterance: Utterance) -> bytes:
    """A record: bytes of `audio`, or `mel` rounded to bfloat16. `offset` has no place in it."""
    header: dict[str, Any] = {
        name: getattr(utterance, name) for name in ("id", "text", "duration", "speaker")
    }
    payload = utterance.audio
    if utterance.mel is not None:
        header["mel"] = utterance.mel.shape
        payload = utterance.mel.astype(ml_dtypes.bfloat16).tobytes()
    if not isinstance(payload, bytes):
        raise TypeError(f"{utterance.id}: a record needs mel or encoded audio, not a path")
    text = json.dumps(header, ensure_ascii=False).encode()
    return _HEADER.pack(len(text)) + text + payload


def decode(record: bytes) -> Utterance:
    """What `encode` wrote. Raises ValueError or KeyError where it did not."""
    if len(record) < _HEADER.size:
        raise ValueError(f"{len(record)} bytes are no record")
    stop = _HEADER.size + _HEADER.unpack_from(record)[0]
    header = json.loads(record[_HEADER.size : stop])
    shape = header.pop("mel", None)
    if shape is None:
        return Utterance(**header, audio=record[stop:])
    mel = np.frombuffer(record, ml_dtypes.bfloat16, offset=stop).reshape(shape)
    return Utterance(**header, mel=mel.astype(np.float32))
