"""Reads questions to be spoken, and shares them out to the splits.

FILE.jsonl has a question a line: {"question": "What is the capital of France?", "answer": "Paris"}.
`answer` is a text or a list of texts that are right, of which the first is learnt; what a task's
line may say beside it (`options`, `metric`, `task`, `system`, `instruction`) goes into the task:
see `corpora.task_line`. By default an answer is right that holds one of those given, as of spoken
question answering in `importers.tasks.spoken_qa`, whose instruction is asked.

What must hold: a question is in one split alone, whatever its case and punctuation. That is the
line's own `split`, or the one that its words decide as those of a sentence do.
"""

from collections import Counter
from collections.abc import Mapping
import dataclasses
import json
import re
from typing import Any, get_args

from data_pipelines.corpora.task_line import TaskLine, read_task
from data_pipelines.importers.tasks.spoken_qa import INSTRUCTION
from data_pipelines.importers.tasks.task_row import list_options
from data_pipelines.synthetic.grammar import Split, split_of
from data_pipelines.synthetic.text_sentences import UNREAD
from melllm_jax.errors import Mistake
from melllm_jax.json_text import parse_json

TASK = "spoken-qa"
_WORD = re.compile(r"[a-z0-9]+(?:'[a-z0-9]+)*")  # a sentence's words, and numbers
_TAKEN = ("answer", "answers", "options", "metric", "task", "system", "instruction")
_SHOWN = 40  # characters of a value that a message shows


@dataclasses.dataclass(frozen=True)
class SpokenQuestion:
    """A question, and what is right as its answer."""

    text: str  # that is spoken
    task: TaskLine  # of one clip and the instruction


@dataclasses.dataclass(frozen=True)
class Questions:
    """The questions of a file."""

    splits: Mapping[Split, tuple[SpokenQuestion, ...]]  # each in the order of the file
    left_out: Mapping[str, int]  # by reason, most first


def read_questions(name: str, text: str) -> Questions:
    """The questions of the lines of `text`, each once; `name` is the file's, for messages.

    Left out, and counted by reason: what has a character that is neither an English letter, a digit
    nor a mark of prose, and repeated words. Raises Mistake, naming file and line, for a line that
    is no question with an answer, for a question that is put into two splits, and for no question.
    """
    splits: dict[Split, list[SpokenQuestion]] = {"train": [], "dev": [], "test": []}
    left_out: Counter[str] = Counter()
    known: dict[str, tuple[Split, int]] = {}
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{name} line {number}"
        fields = _read_line(line, where)
        question, wanted = _read_question(fields, where)
        words = " ".join(question_words(question.text))
        if words in known:
            split, first = known[words]
            if wanted not in (None, split):
                shown = f"{where}: question={_shown(question.text)}"
                raise Mistake(f"{shown}: is of {wanted}, and of {split} by line {first}")
            left_out["repeated"] += 1
        elif found := UNREAD.search(question.text):
            kind = "letter that is not English" if found[0].isalpha() else "sign that is not read"
            left_out[f"with a {kind}"] += 1
        else:
            split = wanted or split_of(words)
            known[words] = split, number
            splits[split].append(question)
    if not known:
        parts = ", ".join(f"{count} {reason}" for reason, count in left_out.most_common())
        raise Mistake(f"{name}: has no question: {parts or 'empty'}")
    found_splits = {split: tuple(some) for split, some in splits.items()}
    return Questions(found_splits, dict(left_out.most_common()))


def question_words(text: str) -> list[str]:
    """The words of a question in small letters, and its numbers, without its marks."""
    return _WORD.findall(text.lower().replace("’", "'"))


def _read_line(line: str, where: str) -> dict[str, Any]:
    try:
        fields = parse_json(line)
    except json.JSONDecodeError as error:
        raise Mistake(f"{where}: is no JSON: {error}") from error
    if not isinstance(fields, dict):
        raise Mistake(f"{where}: {_shown(fields)} is no object of fields")
    return fields


def _read_question(fields: Mapping[str, Any], where: str) -> tuple[SpokenQuestion, Split | None]:
    """The question of a line, and the split that the line names, if any."""
    text, split = fields.get("question"), fields.get("split")
    if not isinstance(text, str) or not question_words(text):
        raise Mistake(f"{where}: question={_shown(text)}: must be text with a word")
    if split is not None and split not in get_args(Split):
        names = ", ".join(get_args(Split))
        raise Mistake(f"{where}: split={_shown(split)}: must be one of {names}")
    asked = {name: fields[name] for name in _TAKEN if fields.get(name) is not None}
    open_answer = {} if asked.get("options") else {"metric": "contains"}
    row = {"audio": "", "instruction": INSTRUCTION, "task": TASK} | open_answer | asked
    try:
        task = read_task(row)
        if task.options:
            listed = list_options(row["instruction"], task.options)
            task = read_task(row | {"instruction": listed})
    except Mistake as mistake:
        raise Mistake(f"{where}: {mistake}") from mistake
    return SpokenQuestion(" ".join(text.split()), task), split


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
