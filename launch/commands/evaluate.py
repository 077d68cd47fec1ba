"""`melllm evaluate`: word error rate and speed of a run on a split."""

from collections.abc import Sequence
import dataclasses
import json
import pathlib
import sys
from typing import Any, Literal

import jax

from data_pipelines.corpora.corpus import indices_longest_first, open_corpus
from data_pipelines.examples.asr_example import EvalExample
from data_pipelines.loader import pipeline
from data_pipelines.reject import Reject
from launch.runs import model_loader, transcriber
from launch.terminal.flags import parse
from melllm_jax.errors import Fault
from melllm_jax.evaluation import wer
from melllm_jax.inference.sampling import DecodingOptions


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluateArguments:
    """Score a run on a split: WER and RTFx as JSON, hypotheses kept in RUN/eval."""

    run: str  # folder of the run
    data: str  # folder of prepared shards or of SPLIT.jsonl manifests
    split: str = "test"  # which of its splits
    batch: int = 32  # utterances decoded at once
    normalizer: Literal["whisper", "none"] = "whisper"  # of both texts before they are compared
    name: str = ""  # of the files in RUN/eval; by default the folder's and the split's
    json: bool = False  # print one JSON object on standard output and nothing else
    decoding: DecodingOptions = dataclasses.field(default_factory=DecodingOptions)


def main(argv: Sequence[str]) -> int:
    """`melllm evaluate --run DIR --data DIR --split NAME`."""
    arguments = parse(EvaluateArguments, argv, prog="melllm evaluate")
    summary = evaluate(arguments)
    if arguments.json:
        print(json.dumps(summary))
    else:
        print(
            f"WER {summary['wer']:.2%} on {summary['utterances']} utterances of {summary['data']} "
            f"({summary['split']}), RTFx {summary['rtfx']:.0f} on {summary['chip']}"
        )
    return 0


def evaluate(arguments: EvaluateArguments) -> dict[str, Any]:
    """Transcribe the split, write RUN/eval/NAME.json and NAME.jsonl, and return the former.

    Utterances whose audio cannot be read are counted by reason and listed in the JSON lines; they
    are no part of the WER. Raises Mistake for a run, data or split that is missing, Fault where the
    files cannot be written.
    """
    rows = transcriber.round_up_rows(arguments.batch)
    corpus = open_corpus(arguments.data, arguments.split)
    run, tokenizer, transcribe, step = model_loader.load_transcriber(
        arguments.run, arguments.decoding
    )
    order = indices_longest_first(corpus)
    trials: list[EvalExample] = []
    rejects: list[Reject[int]] = []
    for found in pipeline.eval_examples(corpus, run, tokenizer, order=order):
        (trials if isinstance(found, EvalExample) else rejects).append(found)  # type: ignore[arg-type]
    heard = list(transcribe(trials, rows))
    result = wer.score_transcripts(
        [trial.reference for trial in trials], [t.text for t in heard], arguments.normalizer
    )
    audio = sum(trial.duration for trial in trials)
    reasons = [reject.reason for reject in rejects]
    summary = dataclasses.asdict(result) | {
        "rejected": {reason: reasons.count(reason) for reason in sorted(set(reasons))},
        "looped": sum(t.looped for t in heard),
        "cut": sum(t.cut for t in heard),
        "rtfx": audio / transcribe.seconds,
        "audio_seconds": audio,
        "seconds": transcribe.seconds,
        "compile_seconds": transcribe.compile_seconds,
        "batch": rows,
        "dtype": run.optim.compute,
        "chip": jax.devices()[0].device_kind,
        "devices": jax.device_count(),
        "run": arguments.run,
        "step": step,
        "data": arguments.data,
        "split": arguments.split,
    }
    name = arguments.name or f"{pathlib.Path(arguments.data).name}-{arguments.split}"
    folder = pathlib.Path(arguments.run) / "eval"
    lines = [
        {"id": t.id, "text": t.text, "reference": trial.reference, "looped": t.looped, "cut": t.cut}
        for trial, t in zip(trials, heard, strict=True)
    ] + [{"id": reject.id, "rejected": reject.reason, "why": reject.detail} for reject in rejects]
    kept = folder / f"{name}.jsonl"
    try:
        folder.mkdir(exist_ok=True)
        kept.write_text("".join(json.dumps(line) + "\n" for line in lines))
        (folder / f"{name}.json").write_text(json.dumps(summary, indent=1) + "\n")
    except OSError as error:
        raise Fault(f"{kept}: cannot be written: {error.strerror}") from error
    if not arguments.json:
        print(f"hypotheses: {kept}", file=sys.stderr)
    return summary
