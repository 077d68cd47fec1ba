"""Spoken question answering, and spoken MMLU: questions as sound, with answers in text.

SOURCE is SPLIT.json (a list), SPLIT.jsonl or SPLIT.parquet, or a folder of these. The sound is
`question_audio`, `audio`, `audio_filepath` or `audio_path`, or what --audio names: a path relative
to the file, an object with a `path`, or in Parquet a sound file or samples. The answer is
`answers`, `answer` or `target`, or what --text names: a text or a list of texts that are right, or
SQuAD's {"text": [...]}.
With `choices` or `options` (a list, texts by letter, or {"text": [...], "label": [...]}) it may be
a letter or a number from 0, and is scored as a choice; else an answer is right that holds it.
`subject` stands behind the name of the task, spoken-qa.
"""

from collections.abc import Iterator, Mapping, Sequence
import os
from typing import Any

from etils import epath

from data_pipelines.corpora import parquet_audio
from data_pipelines.corpora.manifest import locate_audio
from data_pipelines.corpora.utterance import AudioReference
from data_pipelines.importers import parquet
from data_pipelines.importers.manifest_row import (
    ImportOptions,
    ManifestRow,
    parse_words,
    select_splits,
)
from data_pipelines.importers.tasks.task_row import (
    audio_folder,
    list_options,
    make_task_row,
    parse_choice,
    read_objects,
)
from melllm_jax import files
from melllm_jax.errors import Mistake

INSTRUCTION = "Answer the question in the recording."
AUDIO = ("question_audio", "audio", "audio_filepath", "audio_path")
ANSWERS = ("answers", "answer", "target")
CHOICES = ("choices", "options")
_LISTS = (".json", ".jsonl")


def read_splits(source: epath.Path, options: ImportOptions) -> dict[str, Iterator[ManifestRow]]:
    """Rows of every list, or of every split of Parquet files."""
    held = [source] if source.is_file() else files.list_folder(source)
    lists = {path.stem: path for path in held if path.suffix in _LISTS}
    if lists:
        return {name: _rows(lists[name], options) for name in select_splits(lists, options, source)}
    tables = parquet.split_files(source)
    names = select_splits(tables, options, source)
    return {name: _table_rows(tables[name], options) for name in names}


def _rows(path: epath.Path, options: ImportOptions) -> Iterator[ManifestRow]:
    folder = audio_folder(path, options)
    for count, (where, fields) in enumerate(read_objects(path)):
        column = _field(fields, (options.audio,) if options.audio else AUDIO, where)
        held = fields[column]
        name = held.get("path") if isinstance(held, Mapping) else held
        if not isinstance(name, str) or not name:
            raise Mistake(f"{where}: {column}={repr(held)[:40]}: must be a path")
        yield _row(fields, locate_audio(name, folder), f"{path.stem}-{count}", options, where, None)


def _table_rows(paths: Sequence[epath.Path], options: ImportOptions) -> Iterator[ManifestRow]:
    for path in paths:
        file = parquet_audio.open_parquet(os.fspath(path))
        schema = file.schema_arrow
        column = options.audio or next((name for name in AUDIO if name in schema.names), "")
        column = column or parquet_audio.find_sound_column(schema, os.fspath(path))
        if column not in schema.names:
            raise Mistake(f"{path}: has no column {column}: has {', '.join(schema.names)}")
        rate = parquet.column_rate(schema.field(column), path, options)
        rows = parquet_audio.read_rows(file, list(schema.names), column, os.fspath(path))
        for count, fields in enumerate(rows):
            where = f"{path}, row {count}"
            place = AudioReference(os.fspath(path), row=count, column=column, rate=rate)
            seconds = parquet.sound_seconds(fields[column], rate, where)
            yield _row(fields, place, f"{path.stem}-{count}", options, where, seconds)


def _row(
    fields: Mapping[str, Any],
    place: epath.Path | AudioReference,
    made: str,
    options: ImportOptions,
    where: str,
    seconds: float | None,
) -> ManifestRow:
    answer = fields[_field(fields, (options.text,) if options.text else ANSWERS, where)]
    choices = _choices(next((fields[x] for x in CHOICES if fields.get(x)), []), where)
    subject = parse_words(fields.get("subject"), "subject", where)
    if isinstance(answer, Mapping) and "text" in answer:
        answer = answer["text"]
    given = answer if isinstance(answer, list) else [answer]
    if choices:
        answers = [parse_choice(one, choices, where) for one in given]
    else:
        answers = [parse_words(one, "answer", where) for one in given]
    asked = parse_words(fields.get("instruction"), "instruction", where) or INSTRUCTION
    own = options.id or "id"
    return make_task_row(
        parse_words(fields.get(own), own, where) or made,
        place,
        where=where,
        task=f"spoken-qa-{subject}" if subject else "spoken-qa",
        metric="choice" if choices else "contains",
        instruction=list_options(asked, choices) if choices else asked,
        answers=answers,
        options=choices,
        spare=made,
        seconds=seconds,
    )


def _choices(held: Any, where: str) -> list[str]:
    """The texts of the choices, in the order of their letters."""
    if isinstance(held, Mapping):
        texts = held.get("text")
        held = texts if isinstance(texts, list) else [held[letter] for letter in sorted(held)]
    if not isinstance(held, list) or not all(isinstance(one, str) for one in held):
        raise Mistake(f"{where}: choices={repr(held)[:40]}: must be a list of texts")
    return held


def _field(fields: Mapping[str, Any], names: Sequence[str], where: str) -> str:
    found = next((name for name in names if fields.get(name) is not None), "")
    if not found:
        raise Mistake(f"{where}: lacks {' or '.join(names)}: has {', '.join(fields)}")
    return found
