"""Reads sound from rows of parquet files, as datasets on the Hugging Face hub hold it.

The sound is a column of structs with `bytes`, or of binary values: whole sound files.
"""

import bisect
from collections.abc import Iterator
import itertools
import threading
from typing import Any

from etils import epath

from data_pipelines.corpora.utterance import AudioReference
from data_pipelines.reject import Unusable, first_line
from melllm_jax.errors import Mistake

_ROWS = 64  # turned into Python at a time


class BadParquetFile(Mistake):
    """A parquet file that is missing or cannot be read."""


def read_row_audio(location: AudioReference) -> bytes:
    """The sound file in a row. Raises Unusable, and Mistake where the extra is not installed.

    Each thread keeps the row group that it read last: in the file's order each group is read once,
    in another order once for each row.
    """
    if location.row is None:
        raise ValueError(f"{location.path}: a row must be named")
    where = f"{location.path}, row {location.row}"
    try:
        value = _row_group_cache.value(location.path, location.row, location.column)
    except IndexError as error:
        raise Unusable("missing", f"{where}: {error}") from error
    except BadParquetFile as error:
        raise Unusable("undecodable", f"{where}: {error}") from error
    found = value["bytes"] if isinstance(value, dict) else value
    if not isinstance(found, bytes):
        raise Unusable("missing", f"{where}: holds no bytes")
    return found


def open_parquet(path: str) -> Any:
    """The pyarrow ParquetFile at `path`. Raises Mistake where the extra is not installed."""
    arrow = _import_pyarrow()
    import pyarrow.parquet  # noqa: PLC0415  the extra `parquet`

    try:
        source = epath.Path(path).open("rb") if "://" in path else path
        return pyarrow.parquet.ParquetFile(source)
    except (OSError, arrow.ArrowException) as error:
        raise BadParquetFile(f"{path}: is no parquet file: {first_line(error)}") from error


def read_row_group(file: Any, index: int, columns: list[str]) -> Any:
    """A row group as a pyarrow Table of `columns`. Raises BadParquetFile where it is damaged."""
    arrow = _import_pyarrow()
    try:
        return file.read_row_group(index, columns=columns, use_threads=False)
    except (OSError, arrow.ArrowException) as error:
        raise BadParquetFile(f"row group {index} cannot be read: {first_line(error)}") from error


def read_rows(file: Any, columns: list[str], path: str) -> Iterator[dict[str, Any]]:
    """The rows of a file in order, each a dict. Raises BadParquetFile, naming `path`."""
    arrow = _import_pyarrow()
    try:
        for batch in file.iter_batches(batch_size=_ROWS, columns=columns, use_threads=False):
            yield from batch.to_pylist()
    except (OSError, arrow.ArrowException) as error:
        raise BadParquetFile(f"{path}: cannot be read: {first_line(error)}") from error


def find_sound_column(schema: Any, path: str) -> str:
    """The one column that can hold sound files. Raises Mistake where there is not just one."""
    structs = [f.name for f in schema if f.type.num_fields and _has_bytes(f.type)]
    found = structs or [f.name for f in schema if str(f.type) in ("binary", "large_binary")]
    if len(found) != 1:
        names = ", ".join(f.name for f in schema)
        which = f"may be in {' or '.join(found)}" if found else "is in no column of bytes"
        raise Mistake(f"{path}: the sound {which}: name it by --audio; there are {names}")
    return str(found[0])


class _RowGroupCache(threading.local):
    """The file that a thread read last, and the values of one of its row groups."""

    def __init__(self) -> None:
        self._path = ""
        self._file: Any = None
        self._stops: list[int] = []  # rows up to the end of each group
        self._group, self._column = -1, ""  # -1: none
        self._values: Any = None

    def value(self, path: str, row: int, column: str) -> Any:
        if self._path != path:
            file = open_parquet(path)
            sizes = (file.metadata.row_group(i).num_rows for i in range(file.num_row_groups))
            self._path, self._file, self._stops = path, file, list(itertools.accumulate(sizes))
            self._group = -1
        group = bisect.bisect_right(self._stops, row)
        if group == len(self._stops):
            raise IndexError(f"the file has {self._stops[-1] if self._stops else 0} rows")
        if (self._group, self._column) != (group, column):
            name = column or find_sound_column(self._file.schema_arrow, path)
            self._group, self._values = -1, None  # stays so where reading fails
            self._values = read_row_group(self._file, group, [name]).column(0)
            self._group, self._column = group, column
        return self._values[row - (self._stops[group - 1] if group else 0)].as_py()


_row_group_cache = _RowGroupCache()


def _import_pyarrow() -> Any:
    try:
        import pyarrow  # noqa: PLC0415  the extra `parquet`
    except ImportError as error:
        raise Mistake("parquet files need pyarrow: pip install 'melllm_jax[parquet]'") from error
    return pyarrow


def _has_bytes(kind: Any) -> bool:
    return any(kind.field(i).name == "bytes" for i in range(kind.num_fields))
