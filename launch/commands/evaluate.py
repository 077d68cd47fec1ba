"""`melllm evaluate`: scores of a run on a split, by task, and its speed."""

from collections.abc import Mapping, Sequence
import dataclasses
import json
import sys
from typing import Any

from data_pipelines.corpora.utterance import ASR
from launch.evaluation.score_split import score_split
from launch.runs.option_scorer import ChoiceRule
from launch.terminal.flags import parse
from melllm_jax.evaluation.wer import Normalizer
from melllm_jax.inference.sampling import DecodingOptions


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluateArguments:
    """Score a run on a split: WER, the scores of tasks, and RTFx; hypotheses kept in RUN/eval."""

    run: str  # folder of the run
    data: str  # folder of prepared shards or of SPLIT.jsonl manifests
    split: str = "test"  # which of its splits
    batch: int = 32  # utterances decoded at once
    normalizer: Normalizer = "whisper"  # of both texts before they are compared: see melllm wer
    choice: ChoiceRule = "sum"  # an option's log-probability, or its mean by token or byte
    name: str = ""  # of the files in RUN/eval; by default the folder's and the split's
    json: bool = False  # print one JSON object on standard output and nothing else
    decoding: DecodingOptions = dataclasses.field(default_factory=DecodingOptions)


def main(argv: Sequence[str]) -> int:
    """`melllm evaluate --run DIR --data DIR --split NAME`."""
    arguments = parse(EvaluateArguments, argv, prog="melllm evaluate")
    scored = score_split(
        arguments.run,
        arguments.data,
        arguments.split,
        batch=arguments.batch,
        normalizer=arguments.normalizer,
        name=arguments.name,
        decoding=arguments.decoding,
        choice=arguments.choice,
    )
    summary = scored.summary
    if arguments.json:
        print(json.dumps(summary))
        return 0
    print(f"hypotheses: {scored.hypotheses}", file=sys.stderr)
    where = (
        f"{summary['data']} ({summary['split']}), RTFx {summary['rtfx']:.0f} on {summary['chip']}"
    )
    if "wer" in summary:
        print(f"WER {summary['wer']:.2%} on {summary['utterances']} utterances of {where}")
    for task, metrics in summary.get("tasks", {}).items():
        for metric, figures in metrics.items():
            if (task, metric) != (ASR, "wer"):
                said = _figure_text(metric, figures)
                print(f"{task}: {said} on {figures['utterances']} utterances of {where}")
    return 0


def _figure_text(metric: str, figures: Mapping[str, Any]) -> str:
    if metric == "mae":
        mean = "no number" if figures["mae"] is None else f"{figures['mae']:.2f}"
        return f"mean absolute error {mean} ({figures['unparsed']} without a number)"
    if metric == "choice":
        rule, chance = figures["rule"], figures["chance"]
        return f"right option {figures['accuracy']:.2%} (by {rule}, chance {chance:.2%})"
    return f"{'WER' if metric == 'wer' else metric} {figures[metric]:.2%}"
