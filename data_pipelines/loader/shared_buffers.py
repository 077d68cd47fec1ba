"""Batches in memory that several processes share.

`SharedBatchBuffers` owns and reuses it in the process that trains, `MappedBatchBuffers` maps the
same buffers in a worker process, which fills them. Both lay a buffer out by `buffer_bytes` and
`allocate_batch`.
"""

from collections import deque
from collections.abc import Mapping
import mmap
import os
from typing import Any
import weakref

import numpy as np

from data_pipelines.loader import batch_assembly
from melllm_jax.batch import Batch
from melllm_jax.config.run import BaseRun


class SharedBatchBuffers:
    """Buffers that worker processes fill; each is reused once nobody here holds its batch.

    The memory file has no name, so it goes with the processes, however they end, and takes nothing
    of /dev/shm, which has 64 MB in many a container.
    """

    def __init__(self, run: BaseRun, rows: int) -> None:
        self.file = os.memfd_create("melllm-batches")
        self._run, self._rows = run, rows
        self._maps: list[mmap.mmap] = []
        self._free: deque[int] = deque()

    def acquire(self) -> int:
        """The index of a free buffer, a new one if there is none."""
        if self._free:
            return self._free.popleft()
        size, count = buffer_bytes(self._run, self._rows), len(self._maps)
        os.ftruncate(self.file, size * (count + 1))
        self._maps.append(mmap.mmap(self.file, size, offset=size * count))
        return count

    def release(self, index: int) -> None:
        """Marks a buffer as free."""
        self._free.append(index)

    def batch(self, index: int) -> Batch:
        """The batch in a buffer, which is released once none of its arrays is held any more."""
        memory = np.frombuffer(self._maps[index], np.uint8)
        weakref.finalize(memory, self._free.append, index).atexit = False
        return batch_assembly.allocate_batch(self._run, self._rows, memory)

    def close(self) -> None:
        """Closes the file; a mapping of it stays as long as its batch is held."""
        os.close(self.file)
        self._maps.clear()


def buffer_bytes(run: BaseRun, rows: int) -> int:
    """Bytes from one buffer to the next: whole pages."""
    return -(-batch_assembly.batch_bytes(run, rows) // mmap.PAGESIZE) * mmap.PAGESIZE


class MappedBatchBuffers:
    """The same buffers in a worker process, each mapped at its first use."""

    def __init__(self, run: BaseRun, setup: Mapping[str, Any]) -> None:
        self._run, self._rows, self._file = run, setup["rows"], setup["memory"]
        self._batches: dict[int, Batch] = {}

    def __getitem__(self, index: int) -> Batch:
        if index not in self._batches:
            size = buffer_bytes(self._run, self._rows)
            memory = np.frombuffer(mmap.mmap(self._file, size, offset=size * index), np.uint8)
            self._batches[index] = batch_assembly.allocate_batch(self._run, self._rows, memory)
        return self._batches[index]
