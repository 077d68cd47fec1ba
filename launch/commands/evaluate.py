"""`melllm evaluate`: word error rate and speed of a run on a split."""

from collections.abc import Sequence
import dataclasses
import json
import sys

from launch.evaluation.score_split import score_split
from launch.terminal.flags import parse
from melllm_jax.evaluation.wer import Normalizer
from melllm_jax.inference.sampling import DecodingOptions


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluateArguments:
    """Score a run on a split: WER and RTFx as JSON, hypotheses kept in RUN/eval."""

    run: str  # folder of the run
    data: str  # folder of prepared shards or of SPLIT.jsonl manifests
    split: str = "test"  # which of its splits
    batch: int = 32  # utterances decoded at once
    normalizer: Normalizer = "whisper"  # of both texts before they are compared: see melllm wer
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
    )
    summary = scored.summary
    if arguments.json:
        print(json.dumps(summary))
        return 0
    print(f"hypotheses: {scored.hypotheses}", file=sys.stderr)
    print(
        f"WER {summary['wer']:.2%} on {summary['utterances']} utterances of {summary['data']} "
        f"({summary['split']}), RTFx {summary['rtfx']:.0f} on {summary['chip']}"
    )
    return 0
