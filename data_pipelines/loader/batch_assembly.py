"""Assembles the rows of several lanes into one batch, in one buffer of memory."""

from collections.abc import Iterator, Mapping, Sequence
import math
from typing import Any

import grain
from jaxtyping import UInt8
import numpy as np

from data_pipelines.examples.asr_example import TRANSFER_DTYPES
from data_pipelines.loader.mixture import Mixture
from data_pipelines.loader.packing import write_rows
from data_pipelines.loader.prefetch import ReaderPool
from data_pipelines.loader.reject_counts import LaneCounts, check_reject_share
from melllm_jax.batch import Batch
from melllm_jax.config.run import BaseRun

ALIGNMENT = 64  # bytes: XLA takes over host memory without a copy only if it is aligned so


def batch_bytes(run: BaseRun, rows: int) -> int:
    """Bytes of a batch with `rows` rows."""
    return max(start + count for _, _, start, count in _array_layout(run, rows))


def allocate_batch(
    run: BaseRun, rows: int, memory: UInt8[np.ndarray, "bytes"] | None = None
) -> Batch:
    """A batch with `rows` rows in `memory`, or in new memory; its content is not initialised."""
    if memory is None:
        memory = np.empty(batch_bytes(run, rows), np.uint8)
    return Batch(
        *(
            memory[start : start + count].view(dtype).reshape(shape)
            for shape, dtype, start, count in _array_layout(run, rows)
        )
    )


def _array_layout(run: BaseRun, rows: int) -> Iterator[tuple[tuple[int, ...], np.dtype, int, int]]:
    """Shape, dtype, first byte and size in bytes of each array, in the order of Batch."""
    special = {
        "patches": ((run.patch_width,), TRANSFER_DTYPES[run.data.wire]),
        "loss_weight": ((), np.dtype(np.float32)),
    }
    start = 0
    for name in Batch._fields:
        rest, dtype = special.get(name, ((), np.dtype(np.int32)))
        shape = (rows, run.data.t, *rest)
        count = math.prod(shape) * dtype.itemsize
        yield shape, dtype, start, count
        start += -(-count // ALIGNMENT) * ALIGNMENT


class LaneBatcher(grain.DatasetIterator):
    """Batches of the rows of some lanes, in the order of the lanes.

    It ends with the lane that ends first. Rows that other lanes have given by then are in no
    batch; the state that a prefetcher took after the last batch still contains them.
    """

    def __init__(
        self,
        run: BaseRun,
        lanes: Mapping[int, grain.DatasetIterator],
        mixture: Mixture,
        readers: ReaderPool,
        counts: Sequence[LaneCounts],
    ) -> None:
        super().__init__(list(lanes.values()))
        self.lane_indices, self.mixture = tuple(lanes), mixture
        self._run, self._lanes, self._readers, self._counts = run, lanes, readers, counts

    @property
    def rows(self) -> int:
        """Rows of these lanes in a batch."""
        return len(self._lanes) * self._run.data.b // self._run.data.lane_count

    def __next__(self) -> Batch:
        batch = allocate_batch(self._run, self.rows)
        self.fill(batch, range(len(self._lanes)))
        check_reject_share(self._run.data, self._counts)
        return batch

    def fill(self, batch: Batch, slots: Sequence[int]) -> None:
        """Writes the next rows of each lane to its slot of a batch, whose other rows stay.

        slots: of each lane, which of the equal parts of the batch is its. Raises StopIteration
        where a lane has ended.
        """
        parts = [next(lane) for lane in self._lanes.values()]
        for slot, rows in zip(slots, parts, strict=True):
            write_rows(batch, slot * len(rows), rows)

    def get_state(self) -> dict[str, Any]:
        lanes = {str(index): lane.get_state() for index, lane in self._lanes.items()}
        return {"lanes": lanes, "phases": self.mixture.state()}

    def set_state(self, state: dict[str, Any]) -> None:
        self.mixture.set_phases(state["phases"], state.get("names", ()))
        for index, lane in self._lanes.items():
            lane.set_state(state["lanes"][str(index)])

    def close(self) -> None:
        """Ends the reader threads."""
        self._readers.close()
