"""Systems side by side: what each was measured to be, and how sure a difference is."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import itertools
import json
import pathlib
from typing import Any, Literal

import numpy as np

from data_pipelines.corpora.utterance import ASR
from launch.evaluation.measurement import (
    Material,
    Measured,
    Measurement,
    find_measured,
    measure,
    sole_use,
)
from launch.evaluation.system import System
from melllm_jax.errors import Fault
from melllm_jax.evaluation.bootstrap import paired_difference, wer_interval
from melllm_jax.evaluation.wer import Normalizer, count_utterance_errors

Subject = Literal["speech", "questions"]
Heard = Mapping[tuple[str, int], tuple[int, int]]  # (id, which of that id) → errors, words
_SPEED = ("rtfx", "seconds", "audio_seconds", "compile_seconds", "peak_bytes", "peak_of")
_SHAPE = ("batch", "dtype", "chip", "devices", "rejected")


@dataclasses.dataclass(frozen=True)
class Comparison:
    """What is measured of each system."""

    systems: Sequence[System]
    materials: Mapping[Subject, Material]
    batches: Sequence[int]
    flags: Sequence[str]  # of every evaluate
    normalizer: Normalizer
    seed: int  # of the resamples

    def rows(self, out: pathlib.Path, say: Callable[[str], None]) -> list[dict[str, Any]]:
        """A row for each system, once all that is missing in the folder `out` is measured.

        A system that fails has what could be measured, and `errors`. `say` is told what begins.
        Raises Mistake where a system has no whole checkpoint.
        """
        plans = [self._plan(system) for system in self.systems]
        numbers, count = itertools.count(1), sum(map(len, plans))
        rows, heard = list[dict[str, Any]](), list[Heard]()
        with sole_use(out) as lock:
            for system, plan in zip(self.systems, plans, strict=True):
                found, errors = dict[tuple[Subject, int], Measured](), list[str]()
                for (subject, batch), measurement in plan.items():
                    before, what = find_measured(measurement, out), f"{subject}, batch {batch}"
                    known = "measured before" if before else "measuring"
                    say(f"{next(numbers)}/{count} {system.name}: {what}: {known}")
                    try:
                        found[subject, batch] = before or measure(measurement, out, lock)
                    except Fault as fault:
                        errors.append(f"{what}: {fault}")
                rows.append(_row(system, found, errors))
                heard.append(self._heard(found))
        for row, own in zip(rows, heard, strict=True):
            self._add_certainty(row, own, rows[0]["name"], heard[0])
        return rows

    def _plan(self, system: System) -> dict[tuple[Subject, int], Measurement]:
        """What is to be measured of a system."""
        digests = system.digests()
        return {
            (subject, batch): Measurement(system, digests, material, batch, self.flags)
            for subject, material in self.materials.items()
            if subject == "speech" or system.answers
            for batch in self.batches
        }

    def _heard(self, found: Mapping[tuple[Subject, int], Measured]) -> Heard:
        """The word errors of each transcript, of the first batch size that could be measured."""
        for (subject, _), measured in found.items():
            if subject == "speech":
                return read_errors(measured.hypotheses, self.normalizer)
        return {}

    def _add_certainty(self, row: dict[str, Any], own: Heard, first: str, others: Heard) -> None:
        """The interval of a row's WER, and its difference from the first system's."""
        if "wer" not in row:
            return
        drawn = wer_interval(*np.array([*own.values()]).T, seed=self.seed)
        row["wer"]["interval"] = dataclasses.asdict(drawn)
        shared = [place for place in own if place in others]
        if row["name"] != first and any(own[place][1] for place in shared):
            errors, words = np.array([own[place] for place in shared]).T
            other = np.array([others[place][0] for place in shared])
            found = paired_difference(errors, other, words, seed=self.seed)
            row["against_first"] = {"first": first, **dataclasses.asdict(found)}


def read_errors(hypotheses: pathlib.Path, normalizer: Normalizer) -> Heard:
    """The word errors of each transcript that evaluate left, tasks and rejects apart."""
    lines = map(json.loads, hypotheses.read_text().splitlines())
    told = [line for line in lines if "text" in line and "task" not in line]
    if not told:
        return {}
    references, texts = ([line[name] for line in told] for name in ("reference", "text"))
    counted = count_utterance_errors(references, texts, normalizer)
    found, seen = dict[tuple[str, int], tuple[int, int]](), dict[str, int]()
    for line, errors, words in zip(told, counted.errors, counted.words, strict=True):
        name = line["id"]
        seen[name] = seen.get(name, 0) + 1
        found[name, seen[name]] = (errors, words)
    return found


def _row(
    system: System, found: Mapping[tuple[Subject, int], Measured], errors: Sequence[str]
) -> dict[str, Any]:
    """What the summaries of a system say, but for intervals."""
    row: dict[str, Any] = {"name": system.name, "run": system.run}
    row |= {"llm": system.llm} if system.llm else {}
    for (subject, batch), measured in found.items():
        summary = measured.summary
        for name in ("step", "parameters", "trained"):
            row.setdefault(name, summary[name])
        if subject == "speech" and "wer" in summary and "wer" not in row:
            words = ("wer", "substitutions", "deletions", "insertions", "words", "utterances")
            row["wer"] = {x: summary[x] for x in (*words, "normalizer", "scorer")}
            row["wer"]["errors"] = sum(summary[name] for name in words[1:4])
        asr = ("speech", ASR)  # the row's WER
        tasks = {x: y for x, y in summary.get("tasks", {}).items() if (subject, x) != asr}
        row.setdefault("tasks", {}).setdefault(subject, tasks)
        speed = {name: summary[name] for name in (*_SPEED, *_SHAPE)}
        speed["hypotheses"] = measured.hypotheses.name
        row.setdefault("measured", {}).setdefault(subject, {})[str(batch)] = speed
    return row | ({"errors": list(errors)} if errors else {})
