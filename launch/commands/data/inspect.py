"""`melllm data inspect`: the contents of a corpus, as figures and as a page to look at."""

from collections.abc import Sequence
import dataclasses
import json
from typing import Annotated, Any

import numpy as np
from tyro.conf import Positional, arg

from data_pipelines.corpora import shard_index
from data_pipelines.corpora.corpus import Corpus, list_splits, open_corpus
from data_pipelines.corpora.sample import sample_indices
from launch.corpus_report.audio_statistics import AudioInspection, inspect_audio
from launch.corpus_report.page import MANIFESTS, Inspection, page
from launch.corpus_report.rejects import count_rejects
from launch.corpus_report.split_statistics import SplitInspection, inspect_split
from launch.terminal.flags import parse
from launch.terminal.number_format import format_bytes
from launch.terminal.progress_bar import count_progress
from melllm_jax import files
from melllm_jax.errors import Fault, Mistake


@dataclasses.dataclass(frozen=True, kw_only=True)
class InspectArguments:
    """Say what is in a corpus, and write it to one self-contained page of HTML.

    Hours, lengths, characters, speakers, rejects, loudness, mel, and random examples to hear and
    see. Of prepared shards, lengths and hours are exact at any size; what else is from a sample
    says so.
    """

    data: Annotated[
        str, Positional, arg(metavar="DIR")
    ]  # folder of prepared shards or of SPLIT.jsonl manifests
    out: str = ""  # page to write, such as page.html; without one, only the figures are told
    examples: int = 20  # on the page, shared among the splits
    sample: int = 0  # most utterances read of a split; 0: 300,000 of manifests, 20,000 of shards
    listen: int = 200  # utterances of a split that are decoded, for loudness and mel
    megabytes: float = 24.0  # most that sound and pictures add to the page
    seed: int = 0  # of the samples
    json: bool = False  # print one JSON object on standard output and nothing else

    def __post_init__(self) -> None:
        for name in ("examples", "sample", "listen", "megabytes", "seed"):
            if getattr(self, name) < 0:
                raise Mistake(f"{name}={getattr(self, name)}: must be 0 or more")


def main(argv: Sequence[str]) -> int:
    """`melllm data inspect DIR --out page.html`."""
    arguments = parse(InspectArguments, argv, prog="melllm data inspect")
    found = inspect(arguments)
    if arguments.out:
        written = page(found, round(arguments.megabytes * 1e6))
        try:
            files.replace_file(files.place(arguments.out), written)
        except OSError as error:
            raise Fault(f"out={arguments.out}: cannot be written: {error.strerror}") from error
    if arguments.json:
        print(json.dumps(figures(found)))
        return 0
    for split, one in found.facts.items():
        print(format_split(split, one, found.heard[split]))
    for kind in found.rejects:
        print(f"rejected from {kind.split}: {kind.count:,} {kind.reason} {kind.source}".rstrip())
    if arguments.out:
        print(f"page: {arguments.out} ({format_bytes(len(written))})")
    return 0


def inspect(arguments: InspectArguments) -> Inspection:
    """Inspect a corpus. Raises Mistake for a folder that is none, Fault for damaged files."""
    folder = files.place(arguments.data)
    corpora = {split: open_corpus(folder, split) for split in list_splits(folder)}
    prepared = (folder / shard_index.INDEX).exists()
    index = shard_index.read_index(folder) if prepared else None
    shares = _split_evenly(arguments.examples, len(corpora))
    drawn = {
        split: sample_indices(corpus, arguments.sample, arguments.seed)
        for split, corpus in corpora.items()
    }
    wanted = {
        split: _draw_indices(corpus, max(arguments.listen, share), arguments.seed)
        for (split, corpus), share in zip(corpora.items(), shares, strict=True)
    }
    found, sounds = {}, {}
    total = sum(len(drawn[split]) + len(wanted[split]) for split in corpora)
    with count_progress(total, "utterances") as advance:
        for (split, corpus), share in zip(corpora.items(), shares, strict=True):
            stated = index.facts.get(split) if index else None
            found[split] = inspect_split(corpus, split, stated, drawn[split], advance)
            sounds[split] = inspect_audio(corpus, split, wanted[split], share, advance)
    return Inspection(
        folder=arguments.data,
        stores=MANIFESTS if index is None else "mel" if index.mel else index.sound,
        seed=arguments.seed,
        facts=found,
        heard=sounds,
        rejects=count_rejects(folder),
        statistics=index.statistics if index else None,
        loudness=index.loudness if index else {},
    )


def figures(found: Inspection) -> dict[str, Any]:
    """The inspection as --json prints it: without sounds and pictures."""
    tree = dataclasses.asdict(found)
    for sounds in tree["heard"].values():
        for example in sounds["examples"]:
            for name in ("audio", "picture"):
                del example[name]
    return tree


def format_split(split: str, facts: SplitInspection, heard: AudioInspection) -> str:
    """The figures of a split in one line."""
    about = "" if facts.exact else "about "
    length = f", {facts.seconds.median:.2f} s in the median" if facts.seconds else ""
    bad = sum(count for _, count in heard.troubles)
    trouble = f"; {bad} of {heard.of} heard are unusable" if bad else ""
    return (
        f"{split}: {facts.utterances:,} utterances, {about}{facts.hours:.2f} h{length}, "
        f"{len(facts.letters)} characters, {facts.speakers:,} speakers{trouble}"
    )


def _split_evenly(count: int, parts: int) -> list[int]:
    """`count` in so many parts, as equal as can be, the first ones the larger."""
    return [count // parts + (index < count % parts) for index in range(parts)]


def _draw_indices(corpus: Corpus, count: int, seed: int) -> list[int]:
    """Indices drawn at random, in the order drawn, so that the first of them are random too."""
    rng = np.random.default_rng((seed, 1))
    picked: list[int] = rng.choice(len(corpus), min(count, len(corpus)), replace=False).tolist()
    return picked
