"""Scores trials by task: each task by its metric, and nothing averaged over tasks."""

from collections.abc import Mapping, Sequence
import dataclasses
from typing import Any

from data_pipelines.corpora.utterance import ASR
from data_pipelines.examples.asr_example import EvalExample
from launch.runs.option_scorer import RULES, Choice, ChoiceRule, OptionScorer
from launch.runs.transcriber import BatchTranscriber, Transcript
from melllm_jax.evaluation import answers
from melllm_jax.evaluation.wer import Normalizer, score_transcripts

_CHOICE = "choice"


@dataclasses.dataclass(frozen=True)
class ScoredTrials:
    """What a model answers, and how good that is."""

    heard: list[Transcript]  # in the order of the trials; of a choice the option
    choices: list[Choice | None]  # likewise; None where the answer was generated
    tasks: Mapping[str, Mapping[str, Mapping[str, Any]]]  # task → metric → figures with counts
    seconds: float  # of work
    compile_seconds: float


def score_trials(
    transcribe: BatchTranscriber,
    options: OptionScorer | None,
    trials: Sequence[EvalExample],
    rows: int,
    normalizer: Normalizer = "none",
    rule: ChoiceRule = "sum",
) -> ScoredTrials:
    """Answers of all `trials`, `rows` at a time, and the figures of each task.

    Trials whose metric is choice are not generated: the option is taken that `rule` finds
    likeliest. Without `options` there is none of them. Raises Mistake as `score_transcripts` does.
    """
    optional = [trial for trial in trials if trial.metric == _CHOICE]
    chosen = iter(options(optional, rows) if options else ())
    choices = [next(chosen) if trial.metric == _CHOICE else None for trial in trials]
    said = iter(transcribe([trial for trial in trials if trial.metric != _CHOICE], rows))
    heard = [
        next(said)
        if choice is None
        else Transcript(trial.id, choice.best(rule), trial.duration, False, False)
        for trial, choice in zip(trials, choices, strict=True)
    ]
    list(said)  # to its end, where its clock stops
    groups: dict[tuple[str, str], list[int]] = {}
    for index, trial in enumerate(trials):
        groups.setdefault((trial.task, trial.metric), []).append(index)
    if not groups:
        groups[ASR, "wer"] = []  # which is refused: nothing could be used
    tasks: dict[str, dict[str, Mapping[str, Any]]] = {}
    for (task, metric), held in sorted(groups.items()):
        asked, texts = [trials[i] for i in held], [heard[i].text for i in held]
        picked = [choice for i in held if (choice := choices[i]) is not None]
        tasks.setdefault(task, {})[metric] = (
            _choice_figures(asked, picked, rule)
            if picked
            else _text_figures(metric, asked, texts, normalizer)
        )
    return ScoredTrials(
        heard,
        choices,
        tasks,
        transcribe.seconds + (options.seconds if options else 0.0),
        transcribe.compile_seconds + (options.compile_seconds if options else 0.0),
    )


def _text_figures(
    metric: str, asked: Sequence[EvalExample], texts: Sequence[str], normalizer: Normalizer
) -> Mapping[str, Any]:
    """The figures of a metric over generated texts."""
    references = [trial.reference for trial in asked]
    if metric == "wer":
        return dataclasses.asdict(score_transcripts(references, texts, normalizer))
    if metric == "mae":
        mean, unparsed = answers.mean_distance(texts, references)
        return {"mae": mean, "unparsed": unparsed, "utterances": len(asked)}
    agrees = {"exact_match": answers.matches, "contains": answers.contains}[metric]
    hits = sum(agrees(text, trial.answers) for trial, text in zip(asked, texts, strict=True))
    counts = {"hits": hits, "utterances": len(asked)}
    return {metric: hits / len(asked)} | counts | {"normalizer": answers.NORMALIZER}


def _choice_figures(
    asked: Sequence[EvalExample], choices: Sequence[Choice], rule: ChoiceRule
) -> Mapping[str, Any]:
    """Share of right options, by `rule` and by each rule, and what guessing would give."""
    pairs = list(zip(asked, choices, strict=True))
    hits = {each: sum(c.best(each) in trial.answers for trial, c in pairs) for each in RULES}
    return {
        "accuracy": hits[rule] / len(pairs),
        "rule": rule,
        "hits": hits[rule],
        "utterances": len(pairs),
        "accuracy_by_rule": {each: count / len(pairs) for each, count in hits.items()},
        "chance": sum(1 / len(trial.options) for trial in asked) / len(pairs),
    }
