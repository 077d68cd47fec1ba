"""ESC-50 (Piczak 2015): meta/esc50.csv and audio/, environmental sounds of 50 categories.

The five folds of the table are the splits fold1 to fold5, as they are used for cross-validation.
The options are the categories of the table, a blank for each underscore.
"""

from collections.abc import Iterator
import csv

from etils import epath

from data_pipelines.importers.manifest_row import (
    ImportOptions,
    ManifestRow,
    read_lines,
    select_splits,
)
from data_pipelines.importers.tasks.task_row import make_task_row
from melllm_jax.errors import Mistake

INSTRUCTION = "What sound is in this recording?"
_COLUMNS = ("filename", "fold", "category")


def read_splits(source: epath.Path, options: ImportOptions) -> dict[str, Iterator[ManifestRow]]:
    """Rows of each fold."""
    table = source / "meta/esc50.csv"
    if not table.exists():
        raise Mistake(f"source={source}: has no meta/esc50.csv")
    rows = list(_records(table))
    if not rows:
        raise Mistake(f"{table}: has no line below its header")
    categories = sorted({row["category"].replace("_", " ") for row in rows})
    folds: dict[str, list[dict[str, str]]] = {}
    for row in rows:
        folds.setdefault(f"fold{row['fold']}", []).append(row)
    names = select_splits(folds, options, source)
    return {name: _rows(source, folds[name], categories) for name in names}


def _rows(
    source: epath.Path, rows: list[dict[str, str]], categories: list[str]
) -> Iterator[ManifestRow]:
    for row in rows:
        yield make_task_row(
            row["filename"].rpartition(".")[0],
            source / "audio" / row["filename"],
            where=row["where"],
            task="esc50",
            metric="choice",
            instruction=INSTRUCTION,
            answers=[row["category"].replace("_", " ")],
            options=categories,
        )


def _records(table: epath.Path) -> Iterator[dict[str, str]]:
    lines = read_lines(table)
    header = next(csv.reader([next(lines, (0, ""))[1]]), [])
    if missing := [name for name in _COLUMNS if name not in header]:
        raise Mistake(f"{table}: has no column {missing[0]}: has {', '.join(header)}")
    for count, line in lines:
        cells = next(csv.reader([line]))
        if len(cells) != len(header):
            rule = f"has {len(cells)} columns, the header {len(header)}"
            raise Mistake(f"{table}:{count}: {rule}")
        yield dict(zip(header, cells, strict=True)) | {"where": f"{table}:{count}"}
