"""Moves blocks of weights between two layouts: reorders them in memory, a few at a time."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
import threading
from typing import TypeVar

import numpy as np

from melllm_jax import interrupts

MAX_ELEMENTS = 1 << 24  # elements of a block: 32 MB of bfloat16
THREADS = 3  # blocks under way: one waits for the disk while two are put in order

Item = TypeVar("Item")


def to_contiguous(values: np.ndarray) -> np.ndarray:
    """`values` in C order, copied 64 columns at a time where they are transposed.

    Copied at once, every number written touches another line of the cache: 0.25 GB/s on one core
    against 1.4.
    """
    if values.flags.c_contiguous:
        return values
    out = np.empty(values.shape, values.dtype)
    bits = np.dtype(f"u{values.itemsize}")  # NumPy copies bfloat16 by calls, integers by moves
    source = _join_axes(values.view(bits))
    target = out.view(bits).reshape(source.shape)
    for start in range(0, source.shape[-1], 64):
        columns = np.s_[..., start : start + 64]
        target[columns] = source[columns]
    return out


def with_lengths(directions: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Rows [x …] of a weight-normed matrix: directions of the given lengths [x 1 …], in float32.

    Rounded once, to the dtype of `directions`.
    """
    rows = directions.astype(np.float32)
    norm = np.sqrt(np.square(rows).sum(axis=tuple(range(1, rows.ndim)), keepdims=True))
    return (rows * (lengths.astype(np.float32) / norm)).astype(directions.dtype)


def merge_lora(
    rows: np.ndarray,
    a: np.ndarray,
    b: np.ndarray,
    scale: float,
    dtype: np.dtype,
    lengths: np.ndarray | None = None,
) -> np.ndarray:
    """Rows [x, in] of a matrix with scale · B[x, r] · A[r, in] added, in float32.

    With `lengths` [x], DoRA's (arXiv 2402.09353), each row of the sum is given its own. The result
    is rounded once, to `dtype`.
    """
    low, high = a.astype(np.float32), b.astype(np.float32)
    total = rows.astype(np.float32) + np.float32(scale) * (high @ low)
    if lengths is not None:
        norm = np.linalg.norm(total, axis=1, keepdims=True)
        total *= lengths.astype(np.float32)[:, None] / norm
    return total.astype(dtype)


def _join_axes(x: np.ndarray) -> np.ndarray:
    """The same numbers, with neighbouring axes joined where one stride walks them all."""
    shape: list[int] = []
    before = None
    for length, stride in zip(x.shape, x.strides, strict=True):
        if before == length * stride:
            shape[-1] *= length
        else:
            shape.append(length)
        before = stride
    return x.reshape(shape)


def run_in_threads(
    move: Callable[[Item], int],
    items: Iterator[Item],
    progress: Callable[[int], None],
) -> None:
    """Run `move` on all items in a few threads; the first error stops the rest.

    `move` returns the bytes that it moved, with which `progress` is called. However it ends, no
    thread is at work any more.
    """
    lock = threading.Lock()
    trouble: list[BaseException] = []

    def work() -> None:
        while not trouble:
            with lock:
                item = next(items, None)
            if item is None:
                return
            try:
                size = move(item)
            except BaseException as error:
                trouble.append(error)
                raise
            with lock:
                progress(size)

    pool = ThreadPoolExecutor(THREADS)
    try:
        with interrupts.defer_interrupts():  # a pool forgets a thread whose start was interrupted
            done = [pool.submit(work) for _ in range(THREADS)]
        for future in done:
            future.result()
    except BaseException as error:  # Control-C reaches this thread alone
        trouble.append(error)
        raise
    finally:
        with interrupts.defer_interrupts():
            pool.shutdown()
