"""Datasets of the Hugging Face hub: parquet files with sound files inside, beside their text.

SOURCE is a folder of SPLIT-00000-of-N.parquet, at any depth, or one file. Sound, text, id and the
rest are found by the names and types of columns; flags name them where that fails.
"""

from collections.abc import Iterator, Mapping, Sequence
import dataclasses
import os
import re
from typing import Any

from etils import epath

from data_pipelines.audio.file_io import read_duration
from data_pipelines.corpora import parquet_audio
from data_pipelines.corpora.utterance import AudioReference
from data_pipelines.importers.manifest_row import (
    ImportOptions,
    ManifestRow,
    find_files,
    make_row,
    parse_seconds,
    select_splits,
)
from data_pipelines.reject import Unusable
from melllm_jax.errors import Mistake

_TEXTS = ("text", "sentence", "transcription", "transcript", "normalized_text")
_SHARD = re.compile(r"-\d+(-of-\d+)?(-[0-9a-f]+)?$")


@dataclasses.dataclass(frozen=True)
class _Columns:
    """Names of a file's columns; empty where it has none."""

    audio: str
    text: str
    id: str
    speaker: str
    language: str
    duration: str


def read_splits(source: epath.Path, options: ImportOptions) -> dict[str, Iterator[ManifestRow]]:
    """Rows of every split, of all its files in order of their names."""
    files = [source] if source.is_file() else find_files(source, (".parquet",))
    found: dict[str, list[epath.Path]] = {}
    for path in files:
        found.setdefault(_SHARD.sub("", path.stem), []).append(path)
    if not found:
        raise Mistake(f"source={source}: has no .parquet")
    for split, paths in found.items():
        folders = sorted({os.fspath(path.parent) for path in paths})
        if len(folders) > 1:
            rule = "is in several folders: give one of them"
            raise Mistake(f"source={source}: split {split} {rule}: {', '.join(folders)}")
    return {name: _rows(found[name], options) for name in select_splits(found, options, source)}


def _rows(paths: Sequence[epath.Path], options: ImportOptions) -> Iterator[ManifestRow]:
    for path in paths:
        yield from _file_rows(path, options)


def _file_rows(path: epath.Path, options: ImportOptions) -> Iterator[ManifestRow]:
    file = parquet_audio.open_parquet(os.fspath(path))
    columns = _columns(file.schema_arrow, path, options)
    light = [name for name in dataclasses.astuple(columns)[1:] if name]
    if not columns.duration:  # the header of the sound tells it: all bytes are read
        light.append(columns.audio)
    elif file.schema_arrow.field(columns.audio).type.num_fields:
        light.append(f"{columns.audio}.path")
    for count, values in enumerate(parquet_audio.read_rows(file, light, os.fspath(path))):
        yield _row(values, count, path, columns, options)


def _row(
    values: Mapping[str, Any],
    count: int,
    path: epath.Path,
    columns: _Columns,
    options: ImportOptions,
) -> ManifestRow:
    where = f"{path}, row {count}"
    text = values[columns.text]
    if not isinstance(text, str | None):
        raise Mistake(f"{where}: {columns.text}={repr(text)[:40]}: must be a string")
    held = values.get(columns.audio)
    inner, content = (held.get("path"), held.get("bytes")) if isinstance(held, dict) else ("", held)
    named = (inner or "").rpartition(".")[0] or inner
    own = values[columns.id] if columns.id else None
    made = f"{path.stem}-{count}"
    language = values[columns.language] if columns.language else ""
    speaker = values[columns.speaker] if columns.speaker else None
    duration = (
        parse_seconds(values[columns.duration], "duration", where) if columns.duration else None
    )
    return make_row(
        # A file's name before an id: FLEURS counts sentences by its id, not recordings.
        str(own) if options.id else str(named or (made if own is None else own)),
        text or "",
        AudioReference(os.fspath(path), row=count, column=columns.audio),
        seconds=_seconds(content, where) if duration is None else duration,
        speaker="" if speaker is None else str(speaker),
        language=language if isinstance(language, str) else "",
    )


def _columns(schema: Any, path: epath.Path, options: ImportOptions) -> _Columns:
    """Raises Mistake where the sound or the text is not found."""
    names = schema.names
    text = (options.text,) if options.text else _TEXTS
    found = _Columns(
        options.audio or parquet_audio.find_sound_column(schema, os.fspath(path)),
        _first(names, text),
        _first(names, (options.id or "id",)),
        _first(names, ("speaker_id", "speaker", "client_id")),
        _first(names, ("language", "locale", "lang")),
        _first(names, ("duration",)),
    )
    there = f"there are {', '.join(names)}"
    if found.audio not in names:
        raise Mistake(f"{path}: has no column {found.audio} of sound: {there}")
    if not found.text:
        raise Mistake(f"{path}: has no text in {' or '.join(text)}: name it by --text; {there}")
    if options.id and not found.id:
        raise Mistake(f"{path}: has no column {options.id} of ids: {there}")
    return found


def _first(names: Sequence[str], wanted: Sequence[str]) -> str:
    return next((name for name in wanted if name in names), "")


def _seconds(content: bytes | None, where: str) -> float:
    if content is None:
        return 0.0
    try:
        return read_duration(content, where)
    except Unusable:
        return 0.0
