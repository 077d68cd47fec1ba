"""The arrays of a batch in one stretch of memory, which several processes may see."""

from collections.abc import Iterator
import math

from jaxtyping import UInt8
import numpy as np

from data_pipelines.examples import WIRE
from melllm_jax.batch import Batch
from melllm_jax.config import Run

ALIGNED = 64  # bytes: where an array may start, as XLA wants it of memory that it takes over


def size(run: Run, rows: int) -> int:
    """Bytes of a batch of so many rows."""
    return max(start + count for _, _, start, count in _places(run, rows))


def blank(run: Run, rows: int, memory: UInt8[np.ndarray, "bytes"] | None = None) -> Batch:
    """A batch of so many rows in `memory`, or in new memory, with whatever lies there."""
    if memory is None:
        memory = np.empty(size(run, rows), np.uint8)
    return Batch(
        *(
            memory[start : start + count].view(dtype).reshape(shape)
            for shape, dtype, start, count in _places(run, rows)
        )
    )


def _places(run: Run, rows: int) -> Iterator[tuple[tuple[int, ...], np.dtype, int, int]]:
    """Shape, type, first byte and number of bytes of each array, in the order of Batch."""
    special = {
        "patches": ((run.mel.r * run.mel.m,), WIRE[run.data.wire]),
        "loss_weight": ((), np.dtype(np.float32)),
    }
    start = 0
    for name in Batch._fields:
        rest, dtype = special.get(name, ((), np.dtype(np.int32)))
        shape = (rows, run.data.t, *rest)
        count = math.prod(shape) * dtype.itemsize
        yield shape, dtype, start, count
        start += -(-count // ALIGNED) * ALIGNED
