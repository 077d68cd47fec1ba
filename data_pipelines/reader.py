"""The records of prepared shards, read at random."""

import bisect
import itertools
import os
import threading

from array_record.python.array_record_module import ArrayRecordReader
from etils import epath

from data_pipelines import shards
from data_pipelines.utterance import Utterance, decode
from melllm_jax.errors import Fault


class Shards:
    """The records of one split in random order, read by any number of threads.

    Opening compares every file's size with the index and raises Fault, naming the shard, where
    one is missing or cut; so does the reading of a damaged record (ArrayRecord hashes each).
    """

    def __init__(self, folder: epath.Path, index: shards.Index, split: str) -> None:
        self.path, self.mel = folder, index.mel
        self._paths = [folder / shard.name for shard in index.splits[split]]
        self._stops = list(itertools.accumulate(shard.count for shard in index.splits[split]))
        self._readers: list[ArrayRecordReader | None] = [None] * len(self._paths)
        self._lock = threading.Lock()
        for path, shard in zip(self._paths, index.splits[split], strict=True):
            if not path.exists():
                raise Fault(f"{path}: is missing, though {shards.INDEX} names it")
            if (size := path.stat().length) != shard.size:
                raise Fault(f"{path}: has {size} bytes, {shards.INDEX} says {shard.size}")

    def __len__(self) -> int:
        return self._stops[-1]

    def __getitem__(self, index: int) -> Utterance:
        place = bisect.bisect_right(self._stops, index)
        row = index - (self._stops[place - 1] if place else 0)
        try:
            return decode(self._reader(place).read([row])[0])
        except (RuntimeError, LookupError, TypeError, ValueError) as error:
            path = self._paths[place]
            raise Fault(f"{path}: record {row} cannot be read: {error}") from error

    def _reader(self, place: int) -> ArrayRecordReader:
        with self._lock:
            if (reader := self._readers[place]) is None:
                reader = ArrayRecordReader(
                    os.fspath(self._paths[place]),
                    options="readahead_buffer_size:0",
                    file_reader_buffer_size=32768,
                )
                self._readers[place] = reader
            return reader
