"""Reads the records of prepared shards at random, with a bounded number of files open."""

import bisect
from collections import OrderedDict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
import contextlib
import itertools
import os
import resource
import threading

from array_record.python.array_record_module import ArrayRecordReader
from etils import epath

from data_pipelines.corpora import shard_index
from data_pipelines.corpora.utterance import Utterance, decode_record
from melllm_jax.errors import Fault

# An open shard of 5,000 records takes 46 KiB and a file descriptor, opening it 0.3 ms: for 190 MB,
# 20 million utterances are read without opening any shard twice.
MAX_OPEN_SHARDS = 4096
STAT_THREADS = 32  # requests for the sizes of files in a bucket at a time


class DamagedShard(Fault):
    """A shard, or a record of it, cannot be read; `path` is the shard's."""

    def __init__(self, path: str, trouble: str) -> None:
        super().__init__(f"{path}: {trouble}")
        self.path = path


class ShardReader:
    """Random access to the records of one split, for any number of threads.

    Opening compares every file's size with the index and raises DamagedShard, naming the shard,
    where one is missing or cut off; so does reading a damaged record (ArrayRecord hashes each).
    With `skip` opening does not raise: reading a record of such a shard does.
    """

    def __init__(
        self, folder: epath.Path, index: shard_index.ShardIndex, split: str, *, skip: bool = False
    ) -> None:
        self.path, self.mel, self.split = folder, index.mel, split
        self.tokenizer = index.tokenizer  # digest of the tokenizer whose ids the records hold
        listed = index.splits[split]
        self.hours = sum(shard.seconds for shard in listed) / 3600
        self._paths = [os.fspath(folder / shard.name) for shard in listed]
        self._stops = list(itertools.accumulate(shard.count for shard in listed))
        self._readers: OrderedDict[int, ArrayRecordReader] = OrderedDict()
        self._lock = threading.Lock()
        self._max_open = min(MAX_OPEN_SHARDS, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2)
        self._damaged: dict[int, str] = {}  # position of a damaged shard → what is wrong
        for position, (size, shard) in enumerate(
            zip(_file_sizes(self._paths), listed, strict=True)
        ):
            if size != shard.size:
                trouble = f"has {size} bytes, {shard_index.INDEX} says {shard.size}"
                self._damaged[position] = (
                    trouble
                    if size is not None
                    else f"is missing, though {shard_index.INDEX} names it"
                )
                if not skip:
                    raise DamagedShard(self._paths[position], self._damaged[position])

    def __len__(self) -> int:
        return self._stops[-1]

    def __getitem__(self, index: int) -> Utterance:
        position = bisect.bisect_right(self._stops, index)
        row = index - (self._stops[position - 1] if position else 0)
        if position in self._damaged:
            raise DamagedShard(self._paths[position], self._damaged[position])
        try:
            return decode_record(self._reader(position).read([row])[0])
        except (RuntimeError, LookupError, TypeError, ValueError) as error:
            trouble = f"record {row} cannot be read: {error}"
            raise DamagedShard(self._paths[position], trouble) from error

    def _reader(self, position: int) -> ArrayRecordReader:
        with self._lock:
            if position in self._readers:
                self._readers.move_to_end(position)
                return self._readers[position]
        # Opened without the lock: two threads may both open it, and one of the two is dropped.
        reader = ArrayRecordReader(
            self._paths[position], options="readahead_buffer_size:0", file_reader_buffer_size=32768
        )
        with self._lock:
            self._readers[position] = reader
            self._readers.move_to_end(position)
            # A thread that still reads from the dropped one holds it open.
            dropped = (
                self._readers.popitem(last=False) if len(self._readers) > self._max_open else None
            )
        del dropped  # closes its file, not under the lock
        return reader


def _file_sizes(paths: list[str]) -> Iterator[int | None]:
    """Bytes of each file, None for a missing one."""
    if not paths or "://" not in paths[0]:
        yield from map(_file_size, paths)
        return
    with ThreadPoolExecutor(STAT_THREADS) as pool:  # a bucket takes 50 ms for each
        yield from pool.map(_file_size, paths)


def _file_size(path: str) -> int | None:
    try:
        return int(epath.Path(path).stat().length if "://" in path else os.stat(path).st_size)
    except FileNotFoundError:
        return None


def read_records(path: epath.Path) -> Iterator[bytes]:
    """The records of one shard, in order. Raises Fault, naming the shard."""
    try:
        with contextlib.closing(ArrayRecordReader(os.fspath(path))) as reader:
            for row in range(reader.num_records()):
                yield reader.read([row])[0]
    except (RuntimeError, LookupError) as error:
        raise Fault(f"{path}: cannot be read: {error}") from error
