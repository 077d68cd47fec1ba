"""Scores a run, or an import, on a split: a summary, and each hypothesis beside its text."""

from collections.abc import Sequence
import dataclasses
import json
import pathlib
from typing import Any

import jax

from data_pipelines.corpora.corpus import indices_longest_first, open_corpus
from data_pipelines.corpora.utterance import ASR
from data_pipelines.examples.asr_example import EvalExample
from data_pipelines.reject import Reject
from launch.evaluation.cascade import Answer, load_cascade
from launch.evaluation.peak_memory import peak_memory
from launch.runs import model_loader, transcriber
from launch.runs.option_scorer import Choice, ChoiceRule
from launch.runs.recognizer import DtypeChoice, load_recognizer
from launch.runs.task_scores import ScoredTrials, score_trials
from launch.runs.transcriber import Transcript
from melllm_jax import files
from melllm_jax.errors import Fault
from melllm_jax.evaluation.wer import Normalizer
from melllm_jax.inference.sampling import DecodingOptions


@dataclasses.dataclass(frozen=True)
class SplitScore:
    """What scoring a split leaves."""

    summary: dict[str, Any]  # what the JSON file beside the hypotheses holds
    hypotheses: pathlib.Path  # RUN/eval/NAME.jsonl, or OUT/NAME.jsonl


def score_split(
    run_folder: str,
    data: str,
    split: str,
    *,
    llm: str = "",
    batch: int = 32,
    normalizer: Normalizer = "whisper",
    out: str = "",
    name: str = "",
    decoding: DecodingOptions = DecodingOptions(),  # noqa: B008 frozen
    choice: ChoiceRule = "sum",
    dtype: DtypeChoice = "own",
) -> SplitScore:
    """Transcribe one split of the corpus `data`, `batch` utterances at once; write RUN/eval/NAME.

    What is no task is transcribed, and its word errors are the summary's own figures; where there
    are tasks, `tasks` has the figures of each by metric; `choice` is how an option is chosen. With
    the folder of an `llm` the run is a Whisper, and what it hears is asked of that: a cascade.

    NAME is by default that of the corpus's folder and of the split, and of the LLM; `out` is
    another folder than RUN/eval. Utterances whose audio cannot be read are counted by reason and
    listed in the JSON lines; they are no part of the WER. Raises Mistake for a run, data or split
    that is missing, Fault where the files cannot be written.
    """
    rows = transcriber.round_up_rows(batch)
    corpus = open_corpus(data, split)
    order = indices_longest_first(corpus)
    with jax.set_mesh(model_loader.all_devices_mesh()):
        recognizer = (
            load_cascade(run_folder, llm, decoding, dtype)
            if llm
            else load_recognizer(run_folder, decoding, dtype)
        )
        trials, rejects = recognizer.trials(corpus, order)
        transcribe, options = recognizer.transcribe, recognizer.options
        scored = score_trials(transcribe, options, trials, rows, normalizer, choice)
    reasons = [reject.reason for reject in rejects]
    summary = _figures(scored, sum(trial.duration for trial in trials)) | {
        "rejected": {reason: reasons.count(reason) for reason in sorted(set(reasons))},
        "batch": rows,
        "dtype": recognizer.dtype,
        "chip": jax.devices()[0].device_kind,
        "devices": jax.device_count(),
        **dataclasses.asdict(peak_memory()),
        "run": run_folder,
        **({"llm": llm} if llm else {}),
        "step": recognizer.step,
        "parameters": recognizer.parameters,
        "trained": recognizer.trained,
        "data": data,
        "split": split,
    }
    folder = pathlib.Path(out) if out else pathlib.Path(run_folder) / "eval"
    told = [pathlib.Path(data).name, split, *([pathlib.Path(llm).name] if llm else [])]
    hypotheses = folder / f"{name or '-'.join(told)}.jsonl"
    _write(hypotheses, hypothesis_lines(trials, scored.heard, rejects, scored.choices), summary)
    return SplitScore(summary, hypotheses)


def _figures(scored: ScoredTrials, audio: float) -> dict[str, Any]:
    """The scores of a split with so many seconds of audio, and its speed."""
    heard, tasks = scored.heard, scored.tasks
    asr = tasks.get(ASR, {})
    only_words = list(tasks) == [ASR] and list(asr) == ["wer"]
    return (
        dict(asr.get("wer", {}))
        | ({} if only_words else {"tasks": tasks})
        | {
            "looped": sum(t.looped for t in heard),
            "cut": sum(t.cut for t in heard),
            "rtfx": audio / scored.seconds,
            "audio_seconds": audio,
            "seconds": scored.seconds,
            "compile_seconds": scored.compile_seconds,
        }
    )


def _write(hypotheses: pathlib.Path, lines: str, summary: dict[str, Any]) -> None:
    """Writes the hypotheses, and the summary beside them. Raises Fault where that fails."""
    try:
        hypotheses.parent.mkdir(exist_ok=True)
        files.replace_file(hypotheses, lines.encode())
        told = json.dumps(summary, indent=1) + "\n"
        files.replace_file(hypotheses.with_suffix(".json"), told.encode())
    except OSError as error:
        raise Fault(f"{hypotheses}: cannot be written: {error.strerror}") from error


def hypothesis_lines(
    trials: Sequence[EvalExample],
    heard: Sequence[Transcript],
    rejects: Sequence[Reject[int]],
    choices: Sequence[Choice | None] = (),
) -> str:
    """A JSON line for each hypothesis, then for each utterance that could not be used.

    A task has its name and metric too, of a choice the nats of each option by rule, and of the
    answer of a cascade what was heard.
    """
    lines = [
        {"id": t.id, "text": t.text, "reference": trial.reference, "looped": t.looped, "cut": t.cut}
        | ({} if trial.task == ASR else {"task": trial.task, "metric": trial.metric})
        | ({} if choice is None else {"nats": choice.scores})
        | ({"heard": t.heard} if isinstance(t, Answer) else {})
        for trial, t, choice in zip(trials, heard, choices or [None] * len(trials), strict=True)
    ] + [{"id": reject.id, "rejected": reject.reason, "why": reject.detail} for reject in rejects]
    return "".join(json.dumps(line) + "\n" for line in lines)
