"""`melllm data export-tfds`: writes a prepared corpus as a TFDS dataset."""

from collections.abc import Sequence
import contextlib
import dataclasses
import json
import os
import sys
from typing import Annotated

from tyro.conf import Positional, arg

from data_pipelines.corpora.corpus import list_splits, open_corpus
from data_pipelines.corpora.tfds_export import export_dataset
from launch.terminal.flags import parse


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportTfdsArguments:
    """Write a folder of shards as a TFDS dataset, which tfds.data_source reads without tensorflow.

    Sound is 16 kHz int16, 115 MB an hour; it takes as much again while the dataset is built.
    """

    # folder of shards, as `melllm prepare` wrote it
    source: Annotated[str, Positional, arg(metavar="SOURCE")]
    out: str  # TFDS's data_dir: the dataset is OUT/NAME/VERSION
    name: str  # of the dataset: a-z, 0-9 and _
    version: str = "1.0.0"  # of the dataset: three numbers
    json: bool = False  # print one JSON object on standard output and nothing else


def main(argv: Sequence[str]) -> int:
    """`melllm data export-tfds SOURCE --out DIR --name NAME`."""
    arguments = parse(ExportTfdsArguments, argv, prog="melllm data export-tfds")
    with contextlib.redirect_stdout(sys.stderr):  # TFDS prints its progress on standard output
        home = export_dataset(
            arguments.source, arguments.out, name=arguments.name, version=arguments.version
        )
    found = {
        split: len(open_corpus(arguments.source, split)) for split in list_splits(arguments.source)
    }
    if arguments.json:
        print(json.dumps({"out": os.fspath(home), "splits": found}))
        return 0
    for split, count in found.items():
        print(f"{split}: {count} utterances")
    print(f"{home}: tfds.data_source({arguments.name!r}, split=..., data_dir={arguments.out!r})")
    return 0
