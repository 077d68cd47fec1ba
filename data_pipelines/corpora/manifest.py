"""The manifest format: SPLIT.jsonl, a line for each utterance, read at random.

A line is an object with `id`, `text`, `audio_filepath` (relative to the manifest, absolute, or
tfds:NAME:SPLIT) and `duration` in seconds, 0 where it is unknown. It may have `speaker`, `language`
and `source`; `offset`, the second at which it starts in its sound; `channel`, from 0, which alone
is read then; `start` and `size`, the bytes of the file that are the sound; `row` of a parquet file
or TFDS split, with the `column` of the sound and, where that does not say it, the `rate` in Hz.
Other fields are left alone, and lines of blanks passed over. A line with `instruction`, `answer` or
`messages` is a task, of which `text` is no part: `task_line` says how it is written.

A line that is none of these becomes an utterance with a flaw, which is counted where it is used.
"""

from collections.abc import Iterable, Mapping
import dataclasses
import hashlib
import itertools
import json
import math
import mmap
import os
from typing import Any

from etils import epath
from jaxtyping import Bool, Int64
import numpy as np

from data_pipelines.corpora.task_line import is_task, read_task
from data_pipelines.corpora.utterance import AudioReference, Utterance, clip_id
from melllm_jax import files
from melllm_jax.errors import Mistake
from melllm_jax.json_text import parse_json

MANIFEST_SUFFIX = ".jsonl"
TFDS_PREFIX = "tfds:"  # in place of a path: a split of a TFDS dataset
# Lines parsed at opening until one is in order: a file without is no manifest.
VALIDATED_LINES = 1000
LONGEST = 1e8  # seconds, three years: what says more was misread somewhere
_SHOWN = 40  # characters of a value that a message shows
_CHUNK = 1 << 24  # bytes searched at a time for line ends
_NUMBER = (int, float)
_REQUIRED: Mapping[str, type | tuple[type, ...]] = {
    "audio_filepath": str,
    "text": str,
    "duration": _NUMBER,
    "id": str,
}
_OF_ALL = ("speaker", "language", "source")
_WORDS = (*_OF_ALL, "column")
_OF_IMPORTERS = ("where", "spare")  # what `make_row` adds and no line of a manifest has
_COUNTS = ("start", "size", "row", "rate", "channel")


class Manifest:
    """The lines of a SPLIT.jsonl: 16 bytes of memory a line, parsed at each access.

    Raises Mistake, naming file and line, for a file whose first lines are all malformed.
    """

    mel = tokenizer = None  # a manifest points at audio, and has no ids

    def __init__(self, path: epath.Path) -> None:
        self.path = path
        self._bytes = map_file(path)
        self._starts, self._stops = _line_bounds(self._bytes)
        if not len(self):
            raise Mistake(f"{path}: has 0 lines: needs one an utterance")
        flaws = (self[index].flaw for index in range(min(len(self), VALIDATED_LINES)))
        if (first := next(flaws)) and all(flaws):
            raise Mistake(first)

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, index: int) -> Utterance:
        start = int(self._starts[index])
        line = self._bytes[start : self._stops[index]]
        try:
            return _read_line(line, self.path.parent)
        except Mistake as mistake:
            parts = range(0, start, _CHUNK)
            before = sum(self._bytes[at : min(at + _CHUNK, start)].count(b"\n") for at in parts)
            return _flawed_utterance(line, f"{self.path}:{before + 1}", str(mistake))


def parse_line(line: bytes, folder: epath.Path, where: str) -> Utterance:
    """The utterance of a line of a manifest in `folder`; a flaw starts with `where`."""
    try:
        return _read_line(line, folder)
    except Mistake as mistake:
        return _flawed_utterance(line, where, str(mistake))


def write_manifest(folder: epath.Path, split: str, rows: Iterable[Mapping[str, Any]]) -> int:
    """Writes SPLIT.jsonl, a line for each row, and returns their number.

    Left out are fields that are None, and what a row tells importers alone: `where` and `spare`.
    The file appears once it is complete: not at all where `rows` raises midway, or has no row.
    """
    final, count = folder / f"{split}{MANIFEST_SUFFIX}", 0
    encode = json.JSONEncoder(ensure_ascii=False).encode
    rows = iter(rows)
    first = next(rows, None)
    if first is None:
        return 0
    folder.mkdir(parents=True, exist_ok=True)
    with files.new_file(final) as scratch, open(scratch, "wb") as file:
        for row in itertools.chain([first], rows):
            filled = {k: v for k, v in row.items() if v is not None and k not in _OF_IMPORTERS}
            try:
                line = encode(filled).encode()
            except UnicodeEncodeError:  # half a pair, or a file's name that is no UTF-8
                line = json.dumps(filled).encode()
            file.write(line + b"\n")
            count += 1
    return count


def locate_audio(path: str, folder: epath.Path) -> epath.Path | AudioReference:
    """The sound that a manifest in `folder` calls `path`.

    Where nothing reads it, as https://, it stays as written, and is missing once it is read.
    """
    if "://" not in path:
        return folder / path
    try:
        return epath.Path(files.resolve_uri(path))
    except Mistake:
        return AudioReference(path)


def map_file(path: epath.Path) -> mmap.mmap | bytes:
    """The bytes of a file, mapped if it is on this machine, else read."""
    if "://" in os.fspath(path) or not path.stat().length:
        return path.read_bytes()
    with open(path, "rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def is_blank(line: bytes) -> bool:
    """Whether a line holds nothing but white space, or the mark of byte order before it."""
    return not line.decode("utf-8-sig", "replace").strip()


def filled_lines(
    content: mmap.mmap | bytes,
    starts: Int64[np.ndarray, " lines"],
    stops: Int64[np.ndarray, " lines"],
) -> Bool[np.ndarray, " lines"]:
    """Whether each line of `content`, from its start to before its stop, is more than blanks."""
    filled = starts < stops
    held = np.flatnonzero(filled)
    # Only a line that does not begin as an object does is read, and few do not.
    odd = np.frombuffer(content, np.uint8)[starts[held]] != ord("{")
    for index in held[odd].tolist():
        filled[index] = not is_blank(content[starts[index] : stops[index]])
    return filled


def _read_line(line: bytes, folder: epath.Path) -> Utterance:
    """The utterance of a line. Raises Mistake for what is none."""
    try:
        row = parse_json(line)
    except ValueError as error:
        raise Mistake(f"is no JSON: {error}") from error
    if not isinstance(row, dict):
        raise Mistake(f"{str(row)[:_SHOWN]!r} is no object of fields")
    if is_task(row):
        return _task_utterance(row, line, folder)
    _check_row(row)
    return _utterance(row, folder)


def _task_utterance(row: Mapping[str, Any], line: bytes, folder: epath.Path) -> Utterance:
    """The utterance of a line that is a task; a hash of the line where it has no id."""
    found = read_task(row)
    name = row.get("id")
    if name is None:
        name = hashlib.sha256(line.strip()).hexdigest()[:16]
    shared: dict[str, Any] = {field: row.get(field) for field in _OF_ALL}
    shared |= {"text": "", "duration": 0.0}
    clips = [
        shared | {"id": name if number == 1 else clip_id(name, number)} | dict(clip)
        for number, clip in enumerate(found.clips, 1)
    ]
    for clip in clips or [shared | {"id": name, "audio_filepath": ""}]:
        _check_row(clip)
    first, *more = [_utterance(clip, folder) for clip in clips] or [_silent_utterance(shared, name)]
    return dataclasses.replace(
        first,
        text=found.turns[-1].words,
        turns=found.turns,
        task=found.task,
        metric=found.metric,
        answers=found.answers,
        options=found.options,
        more=tuple(more),
    )


def _silent_utterance(row: Mapping[str, Any], name: str) -> Utterance:
    words: dict[str, Any] = {field: row.get(field) or "" for field in _OF_ALL}
    return Utterance(name, "", 0.0, **words)


def _check_row(row: Mapping[str, Any]) -> None:
    """Raises Mistake, naming the field, where a type or a number is wrong."""
    for name, kind in _REQUIRED.items():
        if name not in row:
            raise Mistake(f"lacks {name}: has {', '.join(row)}")
        if not isinstance(row[name], kind) or isinstance(row[name], bool):
            raise _wrong(row, name, "a string" if kind is str else "a number")
    for name in ("duration", "offset"):
        seconds = row.get(name)
        number = isinstance(seconds, _NUMBER) and not isinstance(seconds, bool)
        if seconds is not None and not (number and 0 <= seconds < math.inf):
            raise _wrong(row, name, "seconds from 0")
        if seconds is not None and seconds > LONGEST:
            raise _wrong(row, name, f"seconds up to {LONGEST:g}")
    for name in _WORDS:
        if not isinstance(row.get(name) or "", str):
            raise _wrong(row, name, "a string")
    for name in _COUNTS:
        count = row.get(name)
        if count is not None and (type(count) is not int or count < 0):
            raise _wrong(row, name, "a whole number from 0")
        if count is not None and count >= 1 << 63:
            raise _wrong(row, name, "below 2^63")
    if (row.get("start") is None) != (row.get("size") is None):
        raise Mistake(f"start={row.get('start')}, size={row.get('size')}: must be given together")
    if row["audio_filepath"].startswith(TFDS_PREFIX) and row.get("row") is None:
        raise Mistake(f"audio_filepath={row['audio_filepath']}: needs row, its number in the split")


def _wrong(row: Mapping[str, Any], name: str, rule: str) -> Mistake:
    shown = repr(row[name])
    short = shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}…"
    return Mistake(f"{name}={short}: must be {rule}")


def _flawed_utterance(line: bytes, where: str, flaw: str) -> Utterance:
    """Stands for a malformed line, under its own id and source where it has them."""
    try:
        row = parse_json(line)
    except ValueError:
        row = None
    fields = row if isinstance(row, dict) else {}
    name, source = fields.get("id"), fields.get("source")
    return Utterance(
        id=name if isinstance(name, str) and name else where,
        text="",
        duration=0.0,
        speaker="",
        source=source if isinstance(source, str) else "",
        flaw=f"{where}: {flaw}",
    )


def _utterance(row: Mapping[str, Any], folder: epath.Path) -> Utterance:
    path = row["audio_filepath"]
    audio: epath.Path | AudioReference
    audio = AudioReference(path) if path.startswith(TFDS_PREFIX) else locate_audio(path, folder)
    if not (row.get("row") is None and row.get("size") is None):
        audio = AudioReference(
            audio.path if isinstance(audio, AudioReference) else os.fspath(audio),
            row.get("start"),
            row.get("size"),
            row.get("row"),
            row.get("column") or "",
            row.get("rate"),
        )
    return Utterance(
        id=row["id"],
        text=row["text"],
        duration=float(row["duration"]),
        speaker=row.get("speaker") or "",
        audio=audio,
        offset=None if row.get("offset") is None else float(row["offset"]),
        language=row.get("language") or "",
        source=row.get("source") or "",
        channel=row.get("channel"),
    )


def _line_bounds(
    content: mmap.mmap | bytes,
) -> tuple[Int64[np.ndarray, " lines"], Int64[np.ndarray, " lines"]]:
    """Start and stop of every line that is more than blanks."""
    ends = [
        np.flatnonzero(np.frombuffer(content[start : start + _CHUNK], np.uint8) == ord("\n"))
        + start
        for start in range(0, len(content), _CHUNK)
    ]
    stops = np.concatenate([*ends, np.array([len(content)])]).astype(np.int64)
    starts = np.concatenate([np.zeros(1, np.int64), stops[:-1] + 1])
    filled = filled_lines(content, starts, stops)
    return starts[filled], stops[filled]
