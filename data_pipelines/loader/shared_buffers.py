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
from melllm_jax.config.run import Run


class SharedBatchBuffers:
    """Memory of batches that processes fill, used again once nobody here holds such a batch.

    It has no name, so it goes with the processes, however they end; and /dev/shm, of 64 MB in many
    a container, is not asked for it.
    """

    def __init__(self, run: Run, rows: int) -> None:
        self.file = os.memfd_create("melllm-batches")
        self._run, self._rows = run, rows
        self._maps: list[mmap.mmap] = []
        self._free: deque[int] = deque()

    def acquire(self) -> int:
        """A slot that nobody uses."""
        if self._free:
            return self._free.popleft()
        size, count = buffer_bytes(self._run, self._rows), len(self._maps)
        os.ftruncate(self.file, size * (count + 1))
        self._maps.append(mmap.mmap(self.file, size, offset=size * count))
        return count

    def release(self, slot: int) -> None:
        """It is used no more."""
        self._free.append(slot)

    def batch(self, slot: int) -> Batch:
        """What is in a slot; it is used until none of the arrays is held any more."""
        memory = np.frombuffer(self._maps[slot], np.uint8)
        weakref.finalize(memory, self._free.append, slot).atexit = False
        return batch_assembly.allocate_batch(self._run, self._rows, memory)

    def close(self) -> None:
        """Let go of the file; what is mapped of it stays as long as a batch is held."""
        os.close(self.file)
        self._maps.clear()


def buffer_bytes(run: Run, rows: int) -> int:
    """Bytes from one slot to the next: whole pages."""
    return -(-batch_assembly.batch_bytes(run, rows) // mmap.PAGESIZE) * mmap.PAGESIZE


class MappedBatchBuffers:
    """Batches by slot, mapped when they are first asked for."""

    def __init__(self, run: Run, setup: Mapping[str, Any]) -> None:
        self._run, self._rows, self._file = run, setup["rows"], setup["memory"]
        self._found: dict[int, Batch] = {}

    def __getitem__(self, slot: int) -> Batch:
        if slot not in self._found:
            size = buffer_bytes(self._run, self._rows)
            memory = np.frombuffer(mmap.mmap(self._file, size, offset=size * slot), np.uint8)
            self._found[slot] = batch_assembly.allocate_batch(self._run, self._rows, memory)
        return self._found[slot]
