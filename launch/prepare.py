"""`melllm prepare`: turn a corpus into shards that training reads at random."""

from collections.abc import Sequence
import dataclasses
import json
from typing import Literal

from tqdm import tqdm
from tyro.conf import Positional

from data_pipelines.prepare import prepare
from data_pipelines.sources import open_source, splits
from launch.arguments import parse
from melllm_jax.config import Mel


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arguments:
    """Turn a corpus into ArrayRecord shards: all its splits, each utterance checked."""

    source: Positional[str]  # folder of SPLIT.jsonl manifests
    out: str  # folder of the shards; must not hold any yet
    kind: Literal["jsonl"] = "jsonl"  # what SOURCE is
    store: Literal["flac", "mel"] = "flac"  # keep 16 kHz FLAC, or ready mel in bfloat16
    mel: Mel = Mel()  # of --store mel
    per_shard: int = 5000  # utterances a shard
    bad: float = 0.01  # share of unusable utterances that stops the work
    json: bool = False  # print one JSON object on standard output and nothing else


def main(argv: Sequence[str]) -> int:
    """`melllm prepare SOURCE --kind jsonl --out DIR`."""
    arguments = parse(Arguments, argv, prog="melllm prepare")
    total = sum(len(open_source(arguments.source, split)) for split in splits(arguments.source))
    with tqdm(total=total, unit="utterance", disable=None) as bar:

        def tick(done: int) -> None:
            bar.update(done - bar.n)

        index = prepare(
            arguments.source,
            arguments.out,
            mel=arguments.mel if arguments.store == "mel" else None,
            per_shard=arguments.per_shard,
            bad=arguments.bad,
            tick=tick,
        )
    found = {
        split: {
            "utterances": sum(shard.count for shard in written),
            "hours": sum(shard.seconds for shard in written) / 3600,
        }
        for split, written in index.splits.items()
    }
    if arguments.json:
        print(json.dumps({"out": arguments.out, "splits": found}))
    else:
        for split, counts in found.items():
            print(f"{split}: {counts['utterances']} utterances, {counts['hours']:.2f} h")
    return 0
