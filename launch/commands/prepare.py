"""`melllm prepare`: turns a corpus into shards that training reads at random."""

from collections import Counter
from collections.abc import Mapping, Sequence
import contextlib
import dataclasses
import json
import time
from typing import Annotated, Any, Literal

from etils import epath
from tyro.conf import OmitArgPrefixes, Positional, arg

from data_pipelines.corpora import shard_index
from data_pipelines.importers.manifest_row import ImportOptions
from data_pipelines.importers.write_manifests import IMPORTERS
from data_pipelines.prepare.prepare_corpus import prepare
from data_pipelines.prepare.validate import Limits
from launch.terminal.flags import parse
from launch.terminal.number_format import format_bytes
from launch.terminal.progress_bar import ProgressBar
from melllm_jax.config.features import Mel

Kind = Literal["jsonl", *IMPORTERS]
Store = Literal["flac", "opus", "original", "mel"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class PrepareArguments:
    """Turn a corpus into ArrayRecord shards: all its splits, each utterance checked.

    Cut off anywhere, the same command goes on; the result is the same to the byte, whichever
    runner makes it.
    """

    # folder of SPLIT.jsonl manifests, or what --kind says
    source: Annotated[str, Positional, arg(metavar="SOURCE")]
    out: str  # folder of the shards; must not hold any yet
    kind: Kind = "jsonl"  # what SOURCE is
    layout: OmitArgPrefixes[ImportOptions] = ImportOptions()
    store: Store = "flac"  # 16 kHz FLAC, Opus of 31 kbit/s, files as they are, or mel in bfloat16
    mel: Mel = Mel()  # of --store mel; else what the mean and deviation in the index are of
    limits: OmitArgPrefixes[Limits] = Limits()
    tokenizer: str = ""  # "bytes" or a tokenizer's path: store ids beside the text; empty: none
    per_shard: int = 5000  # utterances a shard
    bad: float = 0.01  # share of unusable utterances that stops the work; repeated ones are free
    runner: str = "direct"  # direct, dask, inline (no Beam), or Beam's DataflowRunner, FlinkRunner…
    workers: int = 0  # processes of direct and dask; 0: one a core
    beam: str = ""  # more options of the runner, in one string: "project=x region=y"
    json: bool = False  # print one JSON object on standard output and nothing else


def main(argv: Sequence[str]) -> int:
    """`melllm prepare SOURCE --kind jsonl --out DIR`."""
    arguments = parse(PrepareArguments, argv, prog="melllm prepare")
    began = time.perf_counter()
    with contextlib.closing(ProgressBar(None, "utterances")) as bar:
        index = prepare(
            arguments.source,
            arguments.out,
            kind=arguments.kind,
            options=_given(arguments.layout),
            store=arguments.store,
            mel=arguments.mel,
            limits=arguments.limits,
            tokenizer=arguments.tokenizer,
            per_shard=arguments.per_shard,
            bad=arguments.bad,
            runner=arguments.runner,
            workers=arguments.workers,
            beam=arguments.beam,
            progress=bar.count,
            log=bar.log,
        )
    figures = _figures(arguments.out, index)
    figures["seconds"] = round(time.perf_counter() - began, 2)
    print(json.dumps(figures) if arguments.json else _format_figures(figures))
    return 0


def _given(options: ImportOptions) -> dict[str, Any]:
    """The options that are not at their defaults."""
    plain, chosen = dataclasses.asdict(ImportOptions()), dataclasses.asdict(options)
    return {name: value for name, value in chosen.items() if value != plain[name]}


def _figures(out: str, index: shard_index.ShardIndex) -> dict[str, Any]:
    splits = {
        split: {
            "utterances": sum(shard.count for shard in written),
            "hours": sum(shard.seconds for shard in written) / 3600,
            "shards": len(written),
            "bytes": sum(shard.size for shard in written),
        }
        for split, written in index.splits.items()
    }
    with (epath.Path(out) / shard_index.REJECTS).open() as file:
        rows = (json.loads(line) for line in file if line.strip())
        lost = Counter((row["split"], row["source"], row["reason"]) for row in rows)
    rejects = [
        {"split": split, "source": source, "reason": reason, "count": count}
        for (split, source, reason), count in sorted(lost.items())
    ]
    return {"out": out, "splits": splits, "rejects": rejects, "loudness": index.loudness}


def _format_figures(figures: Mapping[str, Any]) -> str:
    """The figures for people: a line a split, then what was left out and why."""
    lines = [
        f"{split}: {found['utterances']} utterances, {found['hours']:.2f} h, "
        f"{found['shards']} shards of {format_bytes(found['bytes'])} in all"
        for split, found in figures["splits"].items()
    ]
    if figures["rejects"]:
        lines.append(f"left out, each named in {epath.Path(figures['out']) / shard_index.REJECTS}:")
    for lost in figures["rejects"]:
        where = f"{lost['split']} {lost['source']}".strip()
        lines.append(f"{lost['count']:>8}  {lost['reason']}  ({where})")
    return "\n".join(lines)
