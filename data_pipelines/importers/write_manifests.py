"""Foreign corpora to SPLIT.jsonl manifests that point at the sound where it lies."""

from collections.abc import Callable, Iterator, Mapping
import dataclasses
import os
import types
from typing import Any

from etils import epath

from data_pipelines.corpora import manifest, shard_index
from data_pipelines.importers import (
    commonvoice,
    kaldi,
    lhotse,
    librispeech,
    nemo,
    parquet,
    tfds,
    webdataset,
)
from data_pipelines.importers.manifest_row import ImportOptions, ManifestRow, absolute_path
from melllm_jax.errors import Mistake

Importer = Callable[[epath.Path, ImportOptions], dict[str, Iterator[ManifestRow]]]
_FILE_IMPORTERS: Mapping[str, Importer] = types.MappingProxyType(
    {
        "librispeech": librispeech.read_splits,
        "kaldi": kaldi.read_splits,
        "nemo": nemo.read_splits,
        "commonvoice": commonvoice.read_splits,
        "parquet": parquet.read_splits,
        "webdataset": webdataset.read_splits,
        "lhotse": lhotse.read_splits,
    }
)
KINDS = (*_FILE_IMPORTERS, "tfds")
COMPARED_IDS = (
    500_000  # ids of a split that are held against each other, 70 MB; preparing does the rest
)


def import_corpus(
    source: str,
    kind: str,
    folder: epath.Path,
    *,
    on_row: Callable[[ManifestRow], None] = lambda row: None,
    **options: Any,
) -> dict[str, int]:
    """Writes SPLIT.jsonl of every split of `source` into `folder`: the lines of each.

    options: fields of `importers.rows.Options`. on_row is told of every row. A split without any
    row is 0 and has no file. Paths within `folder` are written relative to it, others absolute.
    Raises Mistake for what the source lacks, naming file and line, and for a folder that holds a
    manifest or shards.
    """
    if kind not in KINDS:
        raise Mistake(f"kind={kind}: must be one of {', '.join(KINDS)}")
    folder = absolute_path(folder)
    _check_free(folder)
    told = ImportOptions(**options)
    if kind == "tfds":
        found = tfds.read_splits(source, told)
        name = tfds.dataset_name(source)
    else:
        place = absolute_path(source)
        if not place.exists():
            raise Mistake(f"source={source}: is missing")
        found = _FILE_IMPORTERS[kind](place, told)
        name = place.parent.name if place.is_file() else place.name
    told = dataclasses.replace(told, name=told.name or name)
    written = {}
    for split, rows in found.items():
        if "/" in split or f"{split}{manifest.MANIFEST_SUFFIX}" == shard_index.REJECTS:
            raise Mistake(f"splits={split}: cannot be the name of a manifest")
        written[split] = manifest.write_manifest(
            folder, split, _complete_rows(rows, folder, told, on_row)
        )
    return written


def _complete_rows(
    rows: Iterator[ManifestRow],
    folder: epath.Path,
    options: ImportOptions,
    on_row: Callable[[ManifestRow], None],
) -> Iterator[ManifestRow]:
    """Rows with what is the same in all; Mistake where an id comes again."""
    lines: dict[int, int] = {}
    inside = f"{os.fspath(folder)}/"
    for line, row in enumerate(rows, 1):
        if line <= COMPARED_IDS:
            before = lines.setdefault(hash(row["id"]), line)
            if before != line:
                rule = "must be of its own in its split"
                raise Mistake(f"id={row['id']}: utterances {before} and {line} have it: {rule}")
        row["audio_filepath"] = row["audio_filepath"].removeprefix(inside)
        row["source"] = options.name
        row["language"] = row.get("language") or options.language or None
        on_row(row)
        yield row


def _check_free(folder: epath.Path) -> None:
    if not folder.exists():
        return
    names = [path.name for path in folder.iterdir()]
    held = [
        name
        for name in names
        if name == shard_index.INDEX or name.endswith(manifest.MANIFEST_SUFFIX)
    ]
    if held:
        raise Mistake(f"out={folder}: holds {held[0]} already: choose another folder")
