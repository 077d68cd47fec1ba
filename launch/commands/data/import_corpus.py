"""`melllm data import`: writes manifests of a foreign corpus that point at its sound in place."""

from collections.abc import Sequence
import dataclasses
import json
from typing import Annotated, Literal

from etils import epath
from tyro.conf import OmitArgPrefixes, Positional, arg

from data_pipelines.importers import write_manifests
from data_pipelines.importers.manifest_row import ImportOptions, ManifestRow
from launch.terminal.flags import parse
from launch.terminal.progress_bar import count_progress


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImportCorpusArguments:
    """Write a SPLIT.jsonl manifest a split. The sound is not copied: the manifests point at it."""

    # folder or file of the corpus; NAME or NAME/1.0.0 for tfds
    source: Annotated[str, Positional, arg(metavar="SOURCE")]
    kind: Literal[*write_manifests.IMPORTERS]  # what SOURCE is
    out: str  # folder of the manifests; must not hold any yet
    layout: OmitArgPrefixes[ImportOptions] = ImportOptions()
    json: bool = False  # print one JSON object on standard output and nothing else


def main(argv: Sequence[str]) -> int:
    """`melllm data import SOURCE --kind KIND --out DIR`."""
    arguments = parse(ImportCorpusArguments, argv, prog="melllm data import")
    seconds, unknown = 0.0, 0
    with count_progress(None, "utterances") as advance:

        def count_row(row: ManifestRow) -> None:
            nonlocal seconds, unknown
            seconds += row["duration"]
            unknown += not row["duration"]
            advance()

        written = write_manifests.import_corpus(
            arguments.source,
            arguments.kind,
            epath.Path(arguments.out),
            on_row=count_row,
            **dataclasses.asdict(arguments.layout),
        )
    if arguments.json:
        figures = {
            "out": arguments.out,
            "splits": written,
            "hours": seconds / 3600,
            "unknown": unknown,
        }
        print(json.dumps(figures))
        return 0
    for split, count in written.items():
        print(f"{split}: {count} utterances" + ("" if count else ", so no manifest"))
    print(f"{seconds / 3600:.2f} h in all")
    if unknown:
        print(f"{unknown} utterances of no known duration: preparing says what is wrong with them")
    return 0
