"""Scores generated speech, whoever generated it: by what a Whisper hears, by judges, by failures.

What must hold: every figure travels with what gave it and its version; nothing is measured twice
where neither the sound nor what measures it has changed; scores.json is there whole or not at all.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import json
import pathlib
from typing import Any

import numpy as np

from launch.evaluation.measurement import FOLDER, sole_use
from launch.evaluation.speech.failures import (
    FailureKind,
    FailureRules,
    Spoken,
    failure_counts,
    find_failures,
)
from launch.evaluation.speech.journal import Journal
from launch.evaluation.speech.measured_scores import (
    FileScores,
    Heard,
    Hearing,
    Say,
    Sounding,
    distortions,
    hear,
    judge_sounds,
)
from launch.evaluation.speech.spoken_set import SpokenFile, read_facts
from melllm_jax import files
from melllm_jax.evaluation.bootstrap import mean_interval, wer_interval
from melllm_jax.evaluation.wer import (
    Normalizer,
    count_character_errors,
    count_utterance_errors,
    normalize_pairs,
    score_transcripts,
)

SCORES, JOURNAL = "scores.json", "speech.jsonl"


@dataclasses.dataclass(frozen=True)
class SpeechScoring:
    """How speech is scored."""

    hearing: Hearing
    normalizer: Normalizer = "whisper"
    rules: FailureRules = FailureRules()
    python: str = ""  # that runs the judges which need torch; empty: the one that runs this
    seed: int = 0  # of the resamples behind the intervals


def score_speech(
    spoken: Sequence[SpokenFile], how: SpeechScoring, out: pathlib.Path, say: Say
) -> dict[str, Any]:
    """The scores of some spoken files, which OUT/scores.json holds then.

    wer, cer: errors over all words, or characters, of what the judge hears, with an interval.
    mos, similarity, mcd: the mean over the files that have a score, with its interval, or `error`
    with why there is none; without what a score needs, it is left out. failures: files by kind.
    rows: the figures of each file. `say` is told what begins.

    Raises Mistake for a judge that is no Whisper, and for sound that cannot be read, before
    anything is measured; Fault where OUT cannot be written.
    """
    how.hearing.check()
    texts = [one.utterance.text for one in spoken]
    score_transcripts(texts, texts, how.normalizer)  # refuses a set without a word
    sounding = [(one, read_facts(one, how.rules.silent_level)) for one in spoken]
    with sole_use(out):
        journal = Journal(out / FOLDER / JOURNAL)
        heard = hear(sounding, how.hearing, journal, say)
        judged = {
            "mos": judge_sounds("mos", sounding, journal, say, how.python),
            "similarity": judge_sounds("similarity", sounding, journal, say, how.python),
            "mcd": distortions(sounding, journal, say),
        }
        found = {name: scores for name, scores in judged.items() if scores is not None}
        scores = _summary(sounding, heard, found, how)
        files.write_text(out / SCORES, json.dumps(scores, indent=1) + "\n")
    return scores


def default_folder(speech: str) -> pathlib.Path:
    """Where the scores of a manifest, or of a corpus in a folder, go: beside it."""
    path = pathlib.Path(speech).absolute()
    return path.with_name(f"{path.stem if path.suffix == '.jsonl' else path.name}-scores")


def _summary(
    sounding: Sequence[Sounding],
    heard: Sequence[Heard],
    judged: Mapping[str, FileScores],
    how: SpeechScoring,
) -> dict[str, Any]:
    """All that scores.json holds."""
    texts, told = [one.utterance.text for one, _ in sounding], [x.text for x in heard]
    words = count_utterance_errors(texts, told, how.normalizer)
    letters = count_character_errors(texts, told, how.normalizer)
    failures = _failures(sounding, heard, how)
    rows = [
        {
            "id": one.utterance.id,
            "text": one.utterance.text,
            "hypothesis": hypothesis,
            "errors": words.errors[index],
            "words": words.words[index],
            "character_errors": letters.errors[index],
            "characters": letters.characters[index],
            "seconds": facts.seconds,
            "silent": facts.silent,
            **{name: scores.values[index] for name, scores in judged.items()},
            "failures": failures[index],
            **({"flags": one.flags} if one.flags else {}),
        }
        for index, ((one, facts), hypothesis) in enumerate(zip(sounding, told, strict=True))
    ]
    return {
        "files": len(rows),
        "seconds": sum(facts.seconds for _, facts in sounding),
        "wer": dataclasses.asdict(score_transcripts(texts, told, how.normalizer))
        | {"interval": _rate_interval(words.errors, words.words, how.seed)},
        "cer": {
            "cer": sum(letters.errors) / sum(letters.characters),
            "errors": sum(letters.errors),
            "characters": sum(letters.characters),
            "interval": _rate_interval(letters.errors, letters.characters, how.seed),
        },
        **{name: _mean_score(scores, how.seed) for name, scores in judged.items()},
        "failures": failure_counts(failures) | {"rules": dataclasses.asdict(how.rules)},
        "judge": dataclasses.asdict(how.hearing) | {"digest": how.hearing.digest()},
        "seed": how.seed,
        "rows": rows,
    }


def _failures(
    sounding: Sequence[Sounding], heard: Sequence[Heard], how: SpeechScoring
) -> list[dict[FailureKind, float]]:
    """How each file fails."""
    texts = [one.utterance.text for one, _ in sounding]
    pairs, _ = normalize_pairs(texts, [x.text for x in heard], how.normalizer)
    return [
        find_failures(
            Spoken(
                one.utterance.text,
                facts.seconds,
                facts.silent,
                one.stopped,
                wanted.split(),
                hypothesis.split(),
                told.looped,
            ),
            how.rules,
        )
        for (one, facts), told, (wanted, hypothesis) in zip(sounding, heard, pairs, strict=True)
    ]


def _rate_interval(errors: Sequence[int], counts: Sequence[int], seed: int) -> dict[str, Any]:
    return dataclasses.asdict(wer_interval(np.array(errors), np.array(counts), seed=seed))


def _mean_score(scores: FileScores, seed: int) -> dict[str, Any]:
    """The mean of the files that have a score, and why there is none of others."""
    told: dict[str, Any] = {"by": scores.by} if scores.by else {}
    held = np.array([value for value in scores.values if value is not None])
    if held.size:
        interval = dataclasses.asdict(mean_interval(held, seed=seed))
        told |= {"mean": float(held.mean()), "interval": interval, "files": held.size}
    if scores.error:
        told |= {"error": scores.error, "failed": scores.failed}
    return told
