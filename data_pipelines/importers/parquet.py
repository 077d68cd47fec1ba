"""Datasets of the Hugging Face hub: parquet files with sound inside, beside its text.

SOURCE is a folder of SPLIT-00000-of-N.parquet, at any depth, or one file. Sound, text, id and the
rest are found by the names and types of columns; flags name them where that fails. Sound is a file
or samples: {array, sampling_rate}, or a list of numbers whose Hz `rate` says.
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
    parse_words,
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
    rate: int | None  # Hz of samples that do not say it


def read_splits(source: epath.Path, options: ImportOptions) -> dict[str, Iterator[ManifestRow]]:
    """Rows of every split, of all its files in order of their names."""
    found = split_files(source)
    return {name: _rows(found[name], options) for name in select_splits(found, options, source)}


def split_files(source: epath.Path) -> dict[str, list[epath.Path]]:
    """The files of each split, in order of their names. Raises Mistake where there is none."""
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
    return found


def _rows(paths: Sequence[epath.Path], options: ImportOptions) -> Iterator[ManifestRow]:
    for path in paths:
        yield from _file_rows(path, options)


def _file_rows(path: epath.Path, options: ImportOptions) -> Iterator[ManifestRow]:
    file = parquet_audio.open_parquet(os.fspath(path))
    columns = _columns(file.schema_arrow, path, options)
    light = [name for name in dataclasses.astuple(columns)[1:-1] if name]
    if not columns.duration:  # the header of the sound tells it: all bytes are read
        light.append(columns.audio)
    else:
        light.append(f"{columns.audio}.path")  # of a struct; of others nothing
    rows = parquet_audio.read_rows(file, light, columns.audio, os.fspath(path))
    for count, values in enumerate(rows):
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
    if type(text) is int:  # a class, more likely than what was said
        raise Mistake(f"{where}: {columns.text}={text}: must be a string")
    held = values.get(columns.audio)
    inner = (held.get("path") or "") if isinstance(held, dict) else ""
    named = inner.rpartition(".")[0] or inner
    own = parse_words(values.get(columns.id), columns.id, where)
    made = f"{path.stem}-{count}"
    language = values.get(columns.language)
    duration = parse_seconds(values.get(columns.duration), "duration", where)
    return make_row(
        # A file's name before an id: FLEURS counts sentences by its id, not recordings.
        (own if options.id else named or own) or made,
        parse_words(text, columns.text, where),
        AudioReference(os.fspath(path), row=count, column=columns.audio, rate=columns.rate),
        where=where,
        spare="" if options.id else made,
        seconds=sound_seconds(held, columns.rate, where) if duration is None else duration,
        speaker=parse_words(values.get(columns.speaker), columns.speaker, where),
        language=language if isinstance(language, str) else "",  # FLEURS numbers some
    )


def _columns(schema: Any, path: epath.Path, options: ImportOptions) -> _Columns:
    """Raises Mistake where the sound or the text is not found."""
    names = schema.names
    text = (options.text,) if options.text else _TEXTS
    audio = options.audio or parquet_audio.find_sound_column(schema, os.fspath(path))
    there = f"there are {', '.join(names)}"
    if audio not in names:
        raise Mistake(f"{path}: has no column {audio} of sound: {there}")
    found = _Columns(
        audio,
        _first(names, text),
        _first(names, (options.id or "id",)),
        _first(names, ("speaker_id", "speaker", "client_id")),
        _first(names, ("language", "locale", "lang")),
        _first(names, ("duration",)),
        column_rate(schema.field(audio), path, options),
    )
    if not found.text:
        raise Mistake(f"{path}: has no text in {' or '.join(text)}: name it by --text; {there}")
    if options.id and not found.id:
        raise Mistake(f"{path}: has no column {options.id} of ids: {there}")
    return found


def column_rate(field: Any, path: epath.Path, options: ImportOptions) -> int | None:
    """Hz of samples that do not say it. Raises Mistake for a column that can hold no sound."""
    kind, where = parquet_audio.sound_kind(field.type), f"{path}: column {field.name}"
    if kind == "none":
        rule = "needs sound files, {array, sampling_rate}, or lists of samples of one channel"
        raise Mistake(f"{where} is {field.type}: {rule}")
    if kind != "samples":
        return None
    if options.rate is None:
        raise Mistake(f"{where} is {field.type}, which does not say its Hz: give --rate")
    return options.rate


def _first(names: Sequence[str], wanted: Sequence[str]) -> str:
    return next((name for name in wanted if name in names), "")


def sound_seconds(held: Any, rate: int | None, where: str) -> float:
    """Seconds of what `parquet_audio.read_rows` holds of a sound; 0 where that is not known."""
    content = held
    if isinstance(held, dict):
        content, rate = held.get("bytes", held.get("array")), held.get("sampling_rate")
    if isinstance(content, int):
        return content / rate if rate else 0.0
    if content is None:
        return 0.0
    try:
        return read_duration(content, where)
    except Unusable:
        return 0.0
