"""Writes the records of a split to ArrayRecord shards, and its columns beside them.

A file appears whole or not at all; the index (`shard_index.write_index`) is written last.
"""

from collections.abc import Iterable
import hashlib
import os
from typing import Any

from array_record.python.array_record_module import ArrayRecordWriter
from etils import epath
import numpy as np

from data_pipelines.corpora.shard_index import COLUMNS_DTYPE, COLUMNS_SUFFIX, Shard, shard_name
from melllm_jax.errors import Fault
from melllm_jax.files import move_into_place, new_file, scratch_path

_OPTIONS = "group_size:1,uncompressed"  # FLAC and mel are dense already: zstd only takes time


class ShardWriter:
    """Appends the records of one split to numbered shards; each appears whole or not at all."""

    def __init__(self, folder: epath.Path, split: str, *, per_shard: int) -> None:
        self._folder, self._split, self._per_shard = folder, split, per_shard
        self._shards: list[Shard] = []
        self._writer: Any = None  # ArrayRecordWriter, opened with the first record of a shard
        self._count, self._seconds = 0, 0.0

    def add(self, record: bytes, seconds: float) -> None:
        """Appends a record of `seconds` of sound."""
        try:
            if self._writer is None:
                self._name = shard_name(self._split, len(self._shards))
                self._part = scratch_path(self._folder / self._name)
                self._writer = ArrayRecordWriter(os.fspath(self._part), _OPTIONS)
            self._writer.write(record)
        except RuntimeError as error:
            raise Fault(f"{self._part}: cannot be written: {error}") from error
        self._count += 1
        self._seconds += seconds
        if self._count == self._per_shard:
            self._finish()

    def close(self) -> tuple[Shard, ...]:
        """The shards written, the last one finished."""
        if self._count:
            self._finish()
        return tuple(self._shards)

    def _finish(self) -> None:
        try:
            self._writer.close()
        except RuntimeError as error:
            raise Fault(f"{self._part}: cannot be written: {error}") from error
        self._writer = None
        with open(self._part, "rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        size = self._part.stat().st_size
        move_into_place(self._part, self._folder / self._name)
        self._shards.append(Shard(self._name, self._count, self._seconds, size, sha256))
        self._count, self._seconds = 0, 0.0


def write_columns(folder: epath.Path, split: str, parts: Iterable[np.ndarray], count: int) -> None:
    """Writes SPLIT.columns.npy of `count` rows, which `parts` gives shard by shard."""
    final = folder / f"{split}{COLUMNS_SUFFIX}"
    described = np.lib.format.dtype_to_descr(COLUMNS_DTYPE)
    header = {"descr": described, "fortran_order": False, "shape": (count,)}
    with new_file(final) as scratch, open(scratch, "wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        for rows in parts:
            file.write(rows.tobytes())
