"""Reads sound from rows of parquet files, as datasets on the Hugging Face hub hold it.

The sound is a column of structs with `bytes`, or of binary values: whole sound files. Or it is
decoded: structs of `array` and `sampling_rate`, or lists of samples alone, in one channel.
"""

import bisect
from collections.abc import Iterator
import itertools
import threading
from typing import Any, Literal

from etils import epath
import numpy as np

from data_pipelines.corpora.utterance import AudioReference
from data_pipelines.reject import Unusable, first_line
from melllm_jax.errors import Mistake

_ROWS = 64  # turned into Python at a time


class BadParquetFile(Mistake):
    """A parquet file that is missing or cannot be read."""


def read_row_audio(location: AudioReference) -> tuple[bytes | np.ndarray, int | None]:
    """The sound file in a row, or its samples, and their rate in Hz if the row says it.

    Raises Unusable, and Mistake where the extra is not installed.

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
    found, rate = value if isinstance(value, tuple) else (value, None)
    if not isinstance(found, bytes | np.ndarray):
        raise Unusable("missing", f"{where}: holds no sound")
    return found, rate


def open_parquet(path: str) -> Any:
    """The pyarrow ParquetFile at `path`. Raises Mistake where the extra is not installed."""
    arrow = _import_pyarrow()
    import pyarrow.parquet  # noqa: PLC0415  the extra `parquet`

    try:
        source = epath.Path(path).open("rb") if "://" in path else path
        return pyarrow.parquet.ParquetFile(source)
    except (OSError, ImportError, arrow.ArrowException) as error:
        raise BadParquetFile(f"{path}: is no parquet file: {first_line(error)}") from error


def read_row_group(file: Any, index: int, columns: list[str]) -> Any:
    """A row group as a pyarrow Table of `columns`. Raises BadParquetFile where it is damaged."""
    arrow = _import_pyarrow()
    try:
        return file.read_row_group(index, columns=columns, use_threads=False)
    except (OSError, arrow.ArrowException) as error:
        raise BadParquetFile(f"row group {index} cannot be read: {first_line(error)}") from error


def read_rows(file: Any, columns: list[str], sound: str, path: str) -> Iterator[dict[str, Any]]:
    """The rows of a file in order, each a dict. Raises BadParquetFile, naming `path`.

    Of samples in the column `sound` a row has their number alone.
    """
    arrow = _import_pyarrow()
    try:
        for batch in file.iter_batches(batch_size=_ROWS, columns=columns, use_threads=False):
            yield from _count_samples(batch, sound).to_pylist()
    except (OSError, arrow.ArrowException) as error:
        raise BadParquetFile(f"{path}: cannot be read: {first_line(error)}") from error


def find_sound_column(schema: Any, path: str) -> str:
    """The one column that can hold sound. Raises Mistake where there is not just one.

    Sound files come before samples; samples that do not say their rate have to be named.
    """
    kinds = {field.name: sound_kind(field.type) for field in schema}
    found: list[str] = []
    for kind in ("file in a struct", "file", "samples with a rate"):
        found = found or [name for name, held in kinds.items() if held == kind]
    if len(found) != 1:
        which = f"may be in {' or '.join(found)}" if found else "is in no column of files"
        raise Mistake(
            f"{path}: the sound {which}: name it by --audio; there are {', '.join(kinds)}"
        )
    return found[0]


SoundKind = Literal["file in a struct", "file", "samples with a rate", "samples", "none"]


def sound_kind(kind: Any) -> SoundKind:
    """The form of sound that a column of this pyarrow type can hold."""
    types = _import_pyarrow().types
    if types.is_struct(kind):
        inner = {kind.field(i).name: kind.field(i).type for i in range(kind.num_fields)}
        if "bytes" in inner:
            return "file in a struct"
        samples = {"array", "sampling_rate"} <= inner.keys() and _is_samples(inner["array"])
        return "samples with a rate" if samples else "none"
    if types.is_binary(kind) or types.is_large_binary(kind):
        return "file"
    return "samples" if _is_samples(kind) else "none"


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
        return _sound(self._values[row - (self._stops[group - 1] if group else 0)])


_row_group_cache = _RowGroupCache()


def _import_pyarrow() -> Any:
    try:
        import pyarrow  # noqa: PLC0415  the extra `parquet`
    except ImportError as error:
        raise Mistake("parquet files need pyarrow: pip install 'melllm_jax[parquet]'") from error
    return pyarrow


def _is_samples(kind: Any) -> bool:
    types = _import_pyarrow().types
    lists = (types.is_list, types.is_large_list, types.is_fixed_size_list)
    if not any(is_list(kind) for is_list in lists):
        return False
    number = kind.value_type  # of 8 bits it is a byte, not a sample
    return types.is_floating(number) or types.is_integer(number) and number.bit_width > 8


def _sound(value: Any) -> Any:
    """What a pyarrow scalar holds: a sound file, samples, or samples and their rate."""
    kind = sound_kind(value.type)
    if kind == "file in a struct":
        return value["bytes"].as_py() if value.is_valid else None
    if kind == "samples with a rate" and value.is_valid:
        return _samples(value["array"]), value["sampling_rate"].as_py()
    return _samples(value) if kind == "samples" else value.as_py()


def _samples(value: Any) -> np.ndarray | None:
    return None if value.values is None else value.values.to_numpy(zero_copy_only=False)


def _count_samples(batch: Any, sound: str) -> Any:
    """The batch with the number of samples in place of each list of them."""
    arrow = _import_pyarrow()
    import pyarrow.compute  # noqa: PLC0415  the extra `parquet`

    index = batch.schema.get_field_index(sound)
    if index < 0:
        return batch
    column = batch.column(index)
    kind = sound_kind(column.type)
    if kind == "samples":
        return batch.set_column(index, sound, pyarrow.compute.list_value_length(column))
    if kind != "samples with a rate":
        return batch
    parts = dict(zip((field.name for field in column.type), column.flatten(), strict=True))
    parts["array"] = pyarrow.compute.list_value_length(parts["array"])
    counted = arrow.StructArray.from_arrays(list(parts.values()), list(parts))
    return batch.set_column(index, sound, counted)
