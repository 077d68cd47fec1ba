"""What a line of a manifest asks and answers, where it is more than a transcript.

A line with `instruction`, `answer` or `messages` is such a line; all others are transcribed.

{"audio": "a.wav", "instruction": "Who speaks?", "answer": "a child", "options": ["a child", …]}
    `audio` or `audio_filepath` is a path, an object with a path and its own `duration`, `offset`,
    `channel` or place inside a file, or a list of these, which are heard in that order before the
    instruction; without it the line is text alone. `instruction` may be left out where the sound
    itself asks. `answer` is a text, a number, or a list of texts that are right, of which the first
    is learnt. `answer_audio`, given as `audio` is, is the sound of the answer where it is spoken.
    `system` stands before all.
{"messages": [{"role": "user", "content": ["Who speaks?", {"audio": "a.wav"}]},
              {"role": "assistant", "content": "a child"}]}
    Turns as chat models read them: `content` is a text or a list of texts, of {"text": …} and of
    {"audio": …} (also `audio_filepath`, `audio_url` or `path`); the last turn is the answer, behind
    whose text the sound of it may stand.

Both may have `answers` (texts that are right beside the learnt one), `options` (to choose among:
the answer is one of them), `task` (a name under which scores are told apart), `metric`, one of
METRICS, and the fields of all lines; `id` and `duration` may be left out. By default the metric is
choice where there are options, wer of the task asr, else exact_match.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import math
from typing import Any

from data_pipelines.corpora.utterance import ASR
from data_pipelines.text.turns import CLIP, Turn, check_turns, read_role
from melllm_jax.errors import Mistake

METRICS = ("wer", "exact_match", "contains", "choice", "mae")
UNNAMED_TASK = "instruct"  # the task of lines that do not name theirs
_MARKS = ("messages", "instruction", "answer", "answer_audio")  # fields that make a line a task
_PATHS = ("audio_filepath", "audio", "audio_url", "path")  # names of a clip's path
_PLACES = ("offset", "duration", "channel", "start", "size", "row", "column", "rate")
_SHOWN = 40  # characters of a value that a message shows


@dataclasses.dataclass(frozen=True)
class TaskLine:
    """What is asked and answered."""

    turns: tuple[Turn, ...]
    clips: tuple[Mapping[str, Any], ...]  # by the names of a manifest's line, in order
    answers: tuple[str, ...]  # that are right; the first is learnt
    options: tuple[str, ...]
    task: str
    metric: str


def is_task(row: Mapping[str, Any]) -> bool:
    """Whether a line is more than a transcript."""
    return any(name in row for name in _MARKS)


def read_task(row: Mapping[str, Any]) -> TaskLine:
    """What a line of a task asks. Raises Mistake, naming the field, for what cannot be."""
    turns, clips = _messages(row) if "messages" in row else _instruction(row)
    check_turns(turns)
    answer = turns[-1].words
    given = row.get("answer") if "messages" not in row else None
    accepted = [*(_texts(given, "answer") if given is not None else [answer])]
    accepted += [x for x in _texts(row.get("answers"), "answers") if x not in accepted]
    options = tuple(_texts(row.get("options"), "options"))
    if options and (len(options) < 2 or len(set(options)) < len(options)):
        raise Mistake(f"options={_shown(list(options))}: must be two or more, none twice")
    if options and answer not in options:
        raise Mistake(f"answer={_shown(answer)}: must be one of options={_shown(list(options))}")
    for clip in clips:
        if "offset" in clip and not clip.get("duration"):
            raise Mistake(f"offset={clip['offset']}: needs the duration of the stretch")
    task = _word(row, "task") or UNNAMED_TASK
    default = "choice" if options else "wer" if task == ASR else "exact_match"
    metric = _word(row, "metric") or default
    if metric not in METRICS:
        raise Mistake(f"metric={_shown(metric)}: must be one of {', '.join(METRICS)}")
    if metric == "choice" and not options:
        raise Mistake("metric=choice: needs options")
    if metric == "mae" and parse_number(answer) is None:
        raise Mistake(f"answer={_shown(answer)}: must be a number, for metric=mae")
    return TaskLine(turns, clips, tuple(accepted), options, task, metric)


def parse_number(text: str) -> float | None:
    """The number that a text is; None where it is none."""
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _instruction(row: Mapping[str, Any]) -> tuple[tuple[Turn, ...], tuple[Mapping[str, Any], ...]]:
    """The one exchange of a line with an answer, and its clips."""
    if row.get("answer") is None:
        shown = f"instruction={_shown(row.get('instruction'))}: " if "instruction" in row else ""
        raise Mistake(f"{shown}lacks answer: has {', '.join(row)}")
    answers = _texts(row["answer"], "answer")
    if not answers:
        raise Mistake("answer=[]: must hold one at least")
    heard: Any = next((row[name] for name in _PATHS[:2] if row.get(name) is not None), [])
    several = isinstance(heard, Sequence) and not isinstance(heard, str)
    clips = [_clip(x, {}) for x in heard] if several else [_clip(heard, row)]
    spoken = row.get("answer_audio")
    asked = _word(row, "instruction")
    system = _word(row, "system")
    turns = [Turn("system", (system,))] if system else []
    turns += [
        Turn("user", (*[CLIP] * len(clips), *([asked] if asked else []))),
        Turn("assistant", (answers[0],) if spoken is None else (answers[0], CLIP)),
    ]
    return tuple(turns), (*clips, *([] if spoken is None else [_clip(spoken, {})]))


def _messages(row: Mapping[str, Any]) -> tuple[tuple[Turn, ...], tuple[Mapping[str, Any], ...]]:
    """The turns of a line with messages, and their clips."""
    for name in ("instruction", "answer", "answer_audio", "system", *_PATHS[:2]):
        if row.get(name) is not None:
            raise Mistake(f"{name}={_shown(row[name])}: must stand in a turn of messages")
    messages = row["messages"]
    if not isinstance(messages, list) or not all(isinstance(x, Mapping) for x in messages):
        raise Mistake(f"messages={_shown(messages)}: must be a list of role and content")
    turns, clips = list[Turn](), list[Mapping[str, Any]]()
    for message in messages:
        content = message.get("content")
        parts = list[str | None]()
        for part in content if isinstance(content, list) else [content]:
            if isinstance(part, str):
                parts.append(part)
            elif isinstance(part, Mapping) and isinstance(part.get("text"), str):
                parts.append(part["text"])
            elif isinstance(part, Mapping) and any(name in part for name in _PATHS):
                clips.append(_clip(part, {}))
                parts.append(CLIP)
            else:
                rule = 'must be text, {"text": …} or {"audio": …}, or a list of these'
                raise Mistake(f"content={_shown(part)}: {rule}")
        turns.append(Turn(read_role(message.get("role")), tuple(parts)))
    return tuple(turns), tuple(clips)


def _clip(given: Any, row: Mapping[str, Any]) -> Mapping[str, Any]:
    """A clip by the names of a manifest's line, with what `row` says of its place."""
    if isinstance(given, str):
        given = dict(row) | {"audio_filepath": given}
    fields = given if isinstance(given, Mapping) else {}
    path = next((fields[name] for name in _PATHS if name in fields), None)
    if not isinstance(path, str):
        raise Mistake(f"audio={_shown(given)}: must be a path, or an object with one")
    return {"audio_filepath": path} | {x: given[x] for x in _PLACES if given.get(x) is not None}


def _texts(value: Any, name: str) -> list[str]:
    """A text, a number or a list of them as texts. Raises Mistake for others and for blanks."""
    found = []
    for one in value if isinstance(value, list) else [] if value is None else [value]:
        if isinstance(one, bool) or not isinstance(one, str | int | float):
            raise Mistake(f"{name}={_shown(value)}: must be text")
        text = f"{one:.15g}" if isinstance(one, float) else str(one)
        if not text.strip():
            raise Mistake(f"{name}={_shown(value)}: must not be empty")
        found.append(text)
    return found


def _word(row: Mapping[str, Any], name: str) -> str:
    value = row.get(name)
    if value is not None and not isinstance(value, str):
        raise Mistake(f"{name}={_shown(value)}: must be a string")
    return value or ""


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
