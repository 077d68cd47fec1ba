"""Foreign corpora to SPLIT.jsonl manifests that point at the sound where it lies."""

from collections.abc import Callable, Iterator, Mapping
import dataclasses
import itertools
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
from data_pipelines.importers.manifest_row import (
    ImportOptions,
    ManifestRow,
    absolute_path,
    spell_out,
)
from data_pipelines.importers.tasks import (
    esc50,
    gtzan,
    iemocap,
    mmau,
    speaker_traits,
    spoken_qa,
)
from melllm_jax import files
from melllm_jax.errors import Mistake

# Given the path of the corpus, or the name of a TFDS dataset.
Importer = Callable[[Any, ImportOptions], dict[str, Iterator[ManifestRow]]]
IMPORTERS: Mapping[str, Importer] = types.MappingProxyType(  # by kind of corpus
    {
        "librispeech": librispeech.read_splits,
        "kaldi": kaldi.read_splits,
        "nemo": nemo.read_splits,
        "commonvoice": commonvoice.read_splits,
        "parquet": parquet.read_splits,
        "webdataset": webdataset.read_splits,
        "lhotse": lhotse.read_splits,
        "tfds": tfds.read_splits,
        "esc50": esc50.read_splits,
        "iemocap": iemocap.read_splits,
        "gtzan": gtzan.read_splits,
        "gender": speaker_traits.read_genders,
        "age": speaker_traits.read_ages,
        "mmau": mmau.read_splits,
        "spoken-qa": spoken_qa.read_splits,
    }
)
WITH_ID = ("nemo", "parquet", "tfds", "spoken-qa")  # kinds that take the option `id`
# Ids of a split that are compared with one another, in 150 MB; preparing compares the rest.
COMPARED_IDS = 500_000


def import_corpus(
    source: str,
    kind: str,
    folder: epath.Path,
    *,
    on_row: Callable[[ManifestRow], None] = lambda row: None,
    **options: Any,
) -> dict[str, int]:
    """Writes SPLIT.jsonl of every split of `source` into `folder` and returns the lines of each.

    kind: a key of IMPORTERS; options: fields of `ImportOptions`; on_row is called with every row. A
    split without any row has 0 lines and no file. Paths within `folder` are written relative to
    it, others absolute.
    Raises Mistake for what the source lacks, naming file and line, and for a folder that holds a
    manifest or shards.
    """
    if kind not in IMPORTERS:
        raise Mistake(f"kind={kind}: must be one of {', '.join(IMPORTERS)}")
    folder = absolute_path(files.place(folder))
    _check_free(folder)
    chosen = ImportOptions(**options)
    called = dict(map(_split_and_name, chosen.splits))
    chosen = dataclasses.replace(chosen, splits=tuple(called))
    if kind == "tfds":
        splits = IMPORTERS[kind](source, chosen)
        name = tfds.dataset_name(source)
    else:
        path = absolute_path(files.place(source))
        if not path.exists():
            raise Mistake(f"source={source}: is missing")
        splits = IMPORTERS[kind](path, chosen)
        name = path.parent.name if path.is_file() else path.name
    chosen = dataclasses.replace(chosen, name=spell_out(chosen.name or name))
    way_out = "; --id names the field of other ids" if kind in WITH_ID else ""
    parts: dict[str, list[Iterator[ManifestRow]]] = {}
    for split, rows in splits.items():
        parts.setdefault(called.get(split, split), []).append(rows)
    written = {}
    for split, several in parts.items():
        rows = itertools.chain.from_iterable(several)
        unnamed = "/" in split or split != spell_out(split)
        if unnamed or f"{split}{manifest.MANIFEST_SUFFIX}" == shard_index.REJECTS:
            raise Mistake(f"splits={spell_out(split)}: cannot be the name of a manifest")
        written[split] = manifest.write_manifest(
            folder, split, _complete_rows(rows, folder, chosen, way_out, on_row)
        )
    return written


def _split_and_name(text: str) -> tuple[str, str]:
    """The split of the corpus that NAME=SPLIT or SPLIT names, and the name that it gets."""
    name, _, split = text.partition("=")
    return split or name, name


def _complete_rows(
    rows: Iterator[ManifestRow],
    folder: epath.Path,
    options: ImportOptions,
    way_out: str,
    on_row: Callable[[ManifestRow], None],
) -> Iterator[ManifestRow]:
    """Rows with the fields that all share filled in, and ids of their own.

    Raises Mistake for an id that two rows have and neither may change.
    """
    places: dict[int, str] = {}  # where an id stands, by its hash
    inside = f"{os.fspath(folder)}/"
    for count, row in enumerate(rows, 1):
        where, spare = row.pop("where"), row.pop("spare")
        if spare and (count > COMPARED_IDS or hash(row["id"]) in places):
            row["id"] = spare
        if count <= COMPARED_IDS:
            if (before := places.get(hash(row["id"]))) is not None:
                rule = "must be of its own in its split"
                raise Mistake(
                    f"{where}: id={row['id']} stands already at {before}: {rule}{way_out}"
                )
            places[hash(row["id"])] = where
        row["audio_filepath"] = row["audio_filepath"].removeprefix(inside)
        row["source"] = options.name
        row["language"] = row.get("language") or options.language or None
        on_row(row)
        yield row


def _check_free(folder: epath.Path) -> None:
    if not folder.exists():
        return
    for name in [path.name for path in files.list_folder(folder)]:
        if name == shard_index.INDEX or name.endswith(manifest.MANIFEST_SUFFIX):
            raise Mistake(f"out={folder}: holds {name} already: choose another folder")
