"""MMAU (Sakshi et al. 2024): mmau-SPLIT.json, a list of questions with choices about recordings.

An item has `audio_id` (a path relative to the file), `question`, `choices` and `answer`, and may
have `id` and `task`, the kind of sound that it is about: sound, speech or music. The answers of the
large test set were not published, so that it cannot be scored here.
"""

from collections.abc import Iterator

from etils import epath

from data_pipelines.corpora.manifest import locate_audio
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

_NEEDED = ("audio_id", "question", "choices", "answer")


def read_splits(source: epath.Path, options: ImportOptions) -> dict[str, Iterator[ManifestRow]]:
    """Rows of every list."""
    held = [source] if source.is_file() else files.list_folder(source)
    found = {path.stem.removeprefix("mmau-"): path for path in held if path.suffix == ".json"}
    if not found:
        raise Mistake(f"source={source}: has no mmau-SPLIT.json")
    return {name: _rows(found[name], options) for name in select_splits(found, options, source)}


def _rows(path: epath.Path, options: ImportOptions) -> Iterator[ManifestRow]:
    folder = audio_folder(path, options)
    for count, (where, fields) in enumerate(read_objects(path)):
        if missing := [name for name in _NEEDED if not fields.get(name)]:
            raise Mistake(f"{where}: lacks {missing[0]}: has {', '.join(fields)}")
        choices = fields["choices"]
        if not isinstance(choices, list) or not all(isinstance(x, str) for x in choices):
            raise Mistake(f"{where}: choices={repr(choices)[:40]}: must be a list of texts")
        kind = parse_words(fields.get("task"), "task", where)
        name = parse_words(fields["audio_id"], "audio_id", where)
        yield make_task_row(
            parse_words(fields.get("id"), "id", where) or f"{path.stem}-{count}",
            locate_audio(name.removeprefix("./"), folder),
            where=where,
            task=f"mmau-{kind}" if kind else "mmau",
            metric="choice",
            instruction=list_options(parse_words(fields["question"], "question", where), choices),
            answers=[parse_choice(fields["answer"], choices, where)],
            options=choices,
        )
