"""What readers of tasks share: a row with a question, and lists of objects in JSON."""

from collections.abc import Iterator, Sequence
from typing import Any

from etils import epath

from data_pipelines.corpora.utterance import AudioReference
from data_pipelines.importers.manifest_row import (
    ImportOptions,
    ManifestRow,
    absolute_path,
    make_row,
    parse_json_object,
    read_lines,
)
from melllm_jax.errors import Fault, Mistake
from melllm_jax.json_text import parse_json


def make_task_row(
    name: str,
    location: epath.Path | AudioReference,
    *,
    where: str,
    task: str,
    metric: str,
    instruction: str,
    answers: Sequence[str],
    options: Sequence[str] = (),
    spare: str = "",
    seconds: float | None = None,
    speaker: str = "",
) -> ManifestRow:
    """A row of the manifest that asks about a sound; what else it takes is as in `make_row`.

    The first of `answers` is learnt. Raises Mistake, which starts with `where`, where there is
    none, and where it is none of the options.
    """
    if not answers or not answers[0].strip():
        raise Mistake(f"{where}: instruction={instruction[:40]!r}: lacks an answer")
    if options and answers[0] not in options:
        shown = ", ".join(options)[:80]
        raise Mistake(f"{where}: answer={answers[0][:40]!r}: must be one of {shown}")
    row = make_row(name, "", location, where=where, spare=spare, seconds=seconds, speaker=speaker)
    del row["text"]
    return row | {
        "instruction": instruction,
        "answer": list(answers) if len(answers) > 1 else answers[0],
        "options": list(options) or None,
        "task": task,
        "metric": metric,
    }


def list_options(question: str, options: Sequence[str]) -> str:
    """A question, and what may be answered."""
    return f"{question} Answer with one of: {'; '.join(options)}."


def read_objects(path: epath.Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Where each object stands and its fields: of a JSON list, or of one object a line.

    Raises Mistake for what is neither.
    """
    try:
        found = parse_json(path.read_bytes())
    except OSError as error:
        raise Fault(f"{path}: cannot be read: {error}") from error
    except ValueError:
        found = None
    if not isinstance(found, list):
        for count, line in read_lines(path):
            where = f"{path}:{count}"
            yield where, parse_json_object(line, where)
        return
    for count, fields in enumerate(found):
        where = f"{path}, item {count}"
        if not isinstance(fields, dict):
            raise Mistake(f"{where}: {str(fields)[:40]!r} is no object of fields")
        yield where, fields


def audio_folder(path: epath.Path, options: ImportOptions) -> epath.Path:
    """The folder of relative paths to audio: options.root, or that of the file that lists them."""
    return absolute_path(options.root) if options.root else path.parent


def parse_choice(answer: object, options: Sequence[str], where: str) -> str:
    """The option that an answer names by its text, its letter or its number from 0.

    Raises Mistake that starts with `where`.
    """
    if isinstance(answer, str):
        if answer in options:
            return answer
        letter = answer.strip().strip("().").upper()
        index = ord(letter) - ord("A") if len(letter) == 1 and letter.isascii() else -1
    else:
        index = answer if type(answer) is int else -1
    if not 0 <= index < len(options):
        shown = ", ".join(options)[:80]
        raise Mistake(f"{where}: answer={repr(answer)[:40]}: must be one of {shown}")
    return options[index]
