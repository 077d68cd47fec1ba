"""One utterance, and its record format: a JSON header, then the raw bytes of its sound.

Of several clips the bytes follow one another, the first utterance's first; of text alone there are
none. What is no task has the record that it always had. A record holds no code, so that reading a
stranger's shard runs none.
"""

from collections.abc import Sequence
import dataclasses
import json
import math
import struct
from typing import Any

from etils import epath
from jaxtyping import Float
import ml_dtypes
import numpy as np

from data_pipelines.text.turns import CLIP, Turn, is_spoken

ASR = "asr"  # the task of utterances without turns: speech recognition
_HEADER = struct.Struct("<I")  # bytes of JSON that follow
_REQUIRED_FIELDS = ("id", "text", "duration", "speaker")
_OPTIONAL_FIELDS = ("language", "source", "tokens", "channel")  # left out of a header where empty
_TASK_FIELDS = ("task", "metric", "answers", "options")  # likewise


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
    """A text, who spoke it, and its sound: encoded, in a file or part of one, or as ready mel.

    With `turns` it is a task, of one clip, of several or of text alone, and `text` its last answer.
    """

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
    turns: tuple[Turn, ...] = ()  # empty: `text` is what is said in the sound
    task: str = ""  # a name under which scores are told apart; empty: ASR
    metric: str = ""  # by which answers are scored; empty: word errors
    answers: tuple[str, ...] = ()  # those that are right, `text` among them; empty: `text` alone
    options: tuple[str, ...] = ()  # to choose the answer from
    more: tuple["Utterance", ...] = ()  # further clips, of which nothing but the sound counts

    @property
    def clips(self) -> tuple["Utterance", ...]:
        """Its sounds, in order: itself and `more`, or nothing in text alone."""
        return () if _is_silent(self.turns) else (self, *self.more)

    @property
    def spoken(self) -> "Utterance | None":
        """The sound of its answer, the last of its clips, where the answer is spoken."""
        return self.clips[-1] if self.turns and is_spoken(self.turns[-1]) else None

    @property
    def heard(self) -> tuple["Utterance", ...]:
        """Its clips, but for a spoken answer."""
        return self.clips if self.spoken is None else self.clips[:-1]

    @property
    def texts(self) -> tuple[str, ...]:
        """All its words: `text`, or those of every turn and option."""
        said = (part for turn in self.turns for part in turn.parts if part is not CLIP)
        return (*said, *self.options) if self.turns else (self.text,)

    @property
    def seconds(self) -> float:
        """Seconds of all clips, as the manifest says."""
        return sum((clip.duration for clip in self.clips), 0.0)


def encode_record(utterance: Utterance) -> bytes:
    """A record: bytes of `audio`, or `mel` rounded to bfloat16. `offset` is not stored."""
    header: dict[str, Any] = {name: getattr(utterance, name) for name in _REQUIRED_FIELDS}
    for name in _OPTIONAL_FIELDS:
        if (value := getattr(utterance, name)) not in ("", None):
            header[name] = value
    for name in _TASK_FIELDS:
        if value := getattr(utterance, name):
            header[name] = value
    if utterance.turns:
        header["turns"] = [[turn.role, turn.parts] for turn in utterance.turns]
    sounds = [_sound_bytes(clip) for clip in utterance.clips]
    if utterance.mel is not None:
        header["mel"] = utterance.mel.shape
    if utterance.more:
        header["more"] = [
            {"duration": clip.duration, "size": len(sound)}
            | ({} if clip.channel is None else {"channel": clip.channel})
            | ({} if clip.mel is None else {"mel": clip.mel.shape})
            for clip, sound in zip(utterance.more, sounds[1:], strict=True)
        ]
    text = json.dumps(header, ensure_ascii=False).encode()
    return _HEADER.pack(len(text)) + text + b"".join(sounds)


def decode_record(record: bytes) -> Utterance:
    """The utterance of a record. Raises ValueError or KeyError for what is no record."""
    if len(record) < _HEADER.size:
        raise ValueError(f"{len(record)} bytes are no record")
    stop = _HEADER.size + _HEADER.unpack_from(record)[0]
    header = json.loads(record[_HEADER.size : stop])
    for name in ("tokens", "answers", "options"):
        if (values := header.get(name)) is not None:
            header[name] = tuple(values)
    turns = tuple(Turn(role, tuple(parts)) for role, parts in header.pop("turns", ()))
    shape, others = header.pop("mel", None), header.pop("more", ())
    first = len(record) - sum(other["size"] for other in others)
    sound = {} if _is_silent(turns) else _sound(record, slice(stop, first), shape)
    more, start = list[Utterance](), first
    for number, other in enumerate(others, 2):
        where = slice(start, start := start + other.pop("size"))
        held = _sound(record, where, other.pop("mel", None))
        more.append(Utterance(clip_id(header["id"], number), "", speaker="", **other, **held))
    return Utterance(**header, turns=turns, more=tuple(more), **sound)


def clip_id(name: str, number: int) -> str:
    """What messages call a further clip of an utterance, its first being number 1."""
    return f"{name}#{number}"


def _sound_bytes(clip: Utterance) -> bytes:
    if clip.mel is not None:
        return clip.mel.astype(ml_dtypes.bfloat16).tobytes()
    if not isinstance(clip.audio, bytes):
        raise TypeError(f"{clip.id}: a record needs mel or encoded audio, not a path")
    return clip.audio


def _sound(record: bytes, where: slice, shape: Sequence[int] | None) -> dict[str, Any]:
    """The field of an utterance that holds a part of a record: encoded, or ready mel of a shape."""
    if shape is None:
        return {"audio": record[where]}
    mel = np.frombuffer(record, ml_dtypes.bfloat16, math.prod(shape), offset=where.start)
    return {"mel": mel.reshape(shape)}


def _is_silent(turns: Sequence[Turn]) -> bool:
    return bool(turns) and not any(CLIP in turn.parts for turn in turns)
