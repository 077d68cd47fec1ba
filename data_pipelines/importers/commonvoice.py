"""Common Voice: clips/ and TSVs with a header; train, dev and test are taken where none is named.

The others (validated, invalidated, other) overlap these or are not checked: name them by
options.splits. clip_durations.tsv gives the durations if it exists; reading the headers of MP3
files is slow and inexact.
"""

from collections.abc import Iterator
import re

from etils import epath

from data_pipelines.corpora.manifest import locate_audio
from data_pipelines.importers.manifest_row import (
    ImportOptions,
    ManifestRow,
    join_names,
    make_row,
    read_lines,
    select_splits,
)
from melllm_jax import files
from melllm_jax.errors import Mistake

OFFICIAL = ("train", "dev", "test")
_DURATIONS = "clip_durations.tsv"
_MILLISECONDS = re.compile(r"[0-9]{1,12}")  # up to 31 years


def read_splits(source: epath.Path, options: ImportOptions) -> dict[str, Iterator[ManifestRow]]:
    """Rows of the chosen splits."""
    tables, seconds = find_tables(source, options)
    return {name: _rows(table, options, seconds) for name, table in tables.items()}


def find_tables(
    source: epath.Path, options: ImportOptions
) -> tuple[dict[str, epath.Path], dict[str, float]]:
    """The tables of the chosen splits, and the seconds of the clips where they are listed."""
    if not (source / "clips").is_dir():
        within = [path.name for path in files.list_folder(source) if (path / "clips").is_dir()]
        hint = f": give one of its folders: {join_names(within)}" if within else ""
        raise Mistake(f"source={source}: has no clips/{hint}")
    held = (path for path in files.list_folder(source) if path.suffix == ".tsv")
    tables = {path.stem: path for path in held if _is_table(path)}
    if not tables:
        raise Mistake(f"source={source}: has no .tsv with the columns path and sentence")
    official = {name: path for name, path in tables.items() if name in OFFICIAL}
    seconds = _durations(source / _DURATIONS)
    names = select_splits(tables, options, source) if options.splits else sorted(official or tables)
    return {name: tables[name] for name in names}, seconds


def clip_name(fields: dict[str, str]) -> str:
    """The file in clips/ of a row, which early tables name without its ending."""
    return fields["path"] if fields["path"].rpartition(".")[1] else f"{fields['path']}.mp3"


def _rows(
    table: epath.Path, options: ImportOptions, seconds: dict[str, float]
) -> Iterator[ManifestRow]:
    for where, fields in read_records(table):
        clip = clip_name(fields)
        text = options.text or "sentence"
        if text not in fields:
            raise Mistake(f"{where}: has no column {text}: has {', '.join(fields)}")
        yield make_row(
            clip.rpartition(".")[0],
            fields[text],
            locate_audio(clip, table.parent / "clips"),
            where=where,
            seconds=seconds.get(clip),
            speaker=fields.get("client_id", ""),
            language=fields.get("locale", ""),
        )


def _durations(path: epath.Path) -> dict[str, float]:
    """Seconds of each clip: 100 bytes of memory a clip, of which no language has 3 million."""
    if not path.exists():
        return {}
    seconds = {}
    for where, fields in read_records(path):
        length = fields.get("duration[ms]", fields.get("duration", ""))
        if "clip" not in fields or not _MILLISECONDS.fullmatch(length):
            raise Mistake(f"{where}: must have clip and duration[ms], whole milliseconds")
        seconds[fields["clip"]] = int(length) / 1000
    return seconds


def read_records(path: epath.Path) -> Iterator[tuple[str, dict[str, str]]]:
    """File and line, and columns by name, of every line; quotation marks have no meaning here."""
    rows = read_lines(path)
    header = next(rows, (0, ""))[1].split("\t")
    for count, line in rows:
        cells = line.split("\t")
        where = f"{path}:{count}"
        if len(cells) != len(header):
            raise Mistake(f"{where}: has {len(cells)} columns, the header {len(header)}")
        yield where, dict(zip(header, cells, strict=True))


def _is_table(path: epath.Path) -> bool:
    header = next(read_lines(path), (0, ""))[1].split("\t")
    return {"path", "sentence"} <= set(header)
