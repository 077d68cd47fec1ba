"""Chooses among options by how likely a model finds each as the answer."""

from collections.abc import Iterator, Mapping, Sequence
import dataclasses
import time
from typing import Any, Literal

import numpy as np

from data_pipelines.examples.asr_example import EvalExample
from data_pipelines.loader.packing import pack_row
from melllm_jax.batch import Batch
from melllm_jax.inference.likelihood import TargetScorer
from melllm_jax.models.speech_lm import SpeechLM

# What is compared: the log-probability of an option's tokens and the end token, or its mean over
# these tokens or over the option's bytes in UTF-8.
ChoiceRule = Literal["sum", "token", "byte"]
RULES: tuple[ChoiceRule, ...] = ("sum", "token", "byte")
_STEP = 64  # rows are as long as a multiple of so many positions


@dataclasses.dataclass(frozen=True)
class Choice:
    """How likely each option is."""

    options: tuple[str, ...]
    scores: Mapping[ChoiceRule, tuple[float, ...]]  # nats of each option, by rule

    def best(self, rule: ChoiceRule) -> str:
        """The likeliest option; the first of several."""
        return self.options[int(np.argmax(self.scores[rule]))]


class OptionScorer:
    """Scores the options of trials, each after its prompt, packed into the rows of a batch."""

    def __init__(self, model: SpeechLM, t: int) -> None:
        self._score, self._t = TargetScorer(model), t
        self.seconds = 0.0  # of work, without compiling

    @property
    def compile_seconds(self) -> float:
        """Seconds spent compiling so far."""
        return self._score.compile_seconds

    def set_model(self, model: SpeechLM) -> None:
        """Use another model of the same shape, with the functions compiled so far."""
        self._score.model = model

    def __call__(self, trials: Sequence[EvalExample], rows: int) -> list[Choice]:
        """The options of each trial scored, in batches of `rows` rows of packed continuations."""
        began, compiling = time.perf_counter(), self.compile_seconds
        asked = [(trial, ids) for trial in trials for ids in trial.choices]
        longest = max((len(x.columns["tokens"]) + len(ids) for x, ids in asked), default=0)
        t = max(self._t, -(-longest // _STEP) * _STEP)
        nats = list[float]()
        for batch, counts in _batches(asked, rows, t):
            scores = self._score(batch)
            for row, count in enumerate(counts):
                for segment in range(1, count + 1):
                    nats.append(float(scores[row, batch.segments[row] == segment].sum()))
        self.seconds += time.perf_counter() - began - (self.compile_seconds - compiling)
        found, start = list[Choice](), 0
        for trial in trials:
            own = nats[start : (start := start + len(trial.choices))]
            found.append(_choice(trial, own))
        return found


def _choice(trial: EvalExample, nats: Sequence[float]) -> Choice:
    tokens = map(len, trial.choices)
    sizes = (len(option.encode()) for option in trial.options)
    return Choice(
        trial.options,
        {
            "sum": tuple(nats),
            "token": tuple(x / n for x, n in zip(nats, tokens, strict=True)),
            "byte": tuple(x / n for x, n in zip(nats, sizes, strict=True)),
        },
    )


def _batches(
    asked: Sequence[tuple[EvalExample, tuple[int, ...]]], rows: int, t: int
) -> Iterator[tuple[Batch, list[int]]]:
    """Batches [rows t] of continuations in their order, and how many each row holds."""
    held, room = list[list[dict[str, Any]]]([[]]), t
    for trial, ids in asked:
        example = _continued(trial.columns, ids)
        length = len(example["tokens"])
        if length > room:
            if len(held) == rows:
                yield _batch(held, rows, t)
                held = []
            held.append([])
            room = t
        held[-1].append(example)
        room -= length
    if held[0]:
        yield _batch(held, rows, t)


def _batch(held: list[list[dict[str, Any]]], rows: int, t: int) -> tuple[Batch, list[int]]:
    packed = [pack_row(examples, t) for examples in held]
    empty = {name: np.zeros_like(packed[0][name]) for name in Batch._fields}
    filled = [*packed, *[empty] * (rows - len(packed))]
    columns = (np.stack([row[name] for row in filled]) for name in Batch._fields)
    return Batch(*columns), [len(examples) for examples in held]


def _continued(columns: Mapping[str, np.ndarray], ids: Sequence[int]) -> dict[str, Any]:
    """A prompt and what follows it, of which that alone is weighted."""
    more = len(ids)
    grown = {
        name: np.concatenate([column, np.zeros((more, *column.shape[1:]), column.dtype)])
        for name, column in columns.items()
    }
    grown["tokens"][-more:] = ids
    grown["loss_weight"][:] = 0.0
    grown["loss_weight"][-more:] = 1.0
    sources = np.zeros(len(grown["tokens"]), np.int32)
    return grown | {"sources": sources, "rejects_before": None, "draw_index": 0}
