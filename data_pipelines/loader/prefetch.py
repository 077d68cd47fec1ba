"""Prefetches a lane's examples in the threads of its process and yields them in draw order."""

from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
import dataclasses
from typing import Any, Protocol, runtime_checkable

import grain

from data_pipelines.loader.mixture import Mixture

BUFFER = 8  # examples prefetched by each thread

ExampleFn = Callable[[int], Any]  # makes the example of a global index


@runtime_checkable
class PendingExample(Protocol):
    """An example being read: a future, or an example that has been read already."""

    def result(self) -> Any:
        """Waits for the example and returns it."""

    def cancel(self) -> bool:
        """Skips the reading if no thread has begun it; returns whether it was skipped."""


@dataclasses.dataclass(frozen=True)
class _ReadyExample:
    """An example that was read by the thread that requested it."""

    example: Any

    def result(self) -> Any:
        return self.example

    def cancel(self) -> bool:
        return False


class ReaderPool:
    """The reader threads of a process, shared by its lanes; with 0, the caller reads by itself."""

    def __init__(self, threads: int, lanes: int) -> None:
        self._pool = ThreadPoolExecutor(threads) if threads else None
        # Lanes are packed one after another: one lane's look-ahead must keep every thread busy.
        self.lookahead = max(threads, BUFFER * threads // lanes)

    def read(self, make_example: ExampleFn, index: int) -> PendingExample:
        """Starts to read the example of a global index."""
        if self._pool is None:
            return _ReadyExample(make_example(index))
        return self._pool.submit(make_example, index)

    def close(self) -> None:
        """Ends the threads; examples that none has begun to read are dropped."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)


@dataclasses.dataclass(frozen=True)
class LaneSampler:
    """The global index of each draw of a lane.

    Of every `lanes` consecutive examples each lane draws one; a random rotation decides which.
    Without it, a mixture that alternates between two corpora would give each of two lanes one only.
    """

    lane: int
    lanes: int
    seed: int

    def __getitem__(self, draw_index: int) -> int:
        """The global index of a draw, by SplitMix64 (Steele, Lea, Flood 2014)."""
        mixed = (self.seed + draw_index * 0x9E3779B97F4A7C15) % 2**64
        mixed = (mixed ^ mixed >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        mixed = (mixed ^ mixed >> 27) * 0x94D049BB133111EB % 2**64
        return draw_index * self.lanes + (self.lane + (mixed ^ mixed >> 31)) % self.lanes


class PrefetchDataset(grain.IterDataset):
    """A lane's examples in draw order, each as (draw index, example), prefetched by `readers`."""

    def __init__(
        self, make_example: ExampleFn, mixture: Mixture, sampler: LaneSampler, readers: ReaderPool
    ) -> None:
        super().__init__()
        self._arguments = make_example, mixture, sampler, readers

    def reread(self, draw_index: int) -> PendingExample:
        """Starts to read the example of a draw once more."""
        make_example, _, sampler, readers = self._arguments
        return readers.read(make_example, sampler[draw_index])

    def __iter__(self) -> grain.DatasetIterator:
        return _PrefetchIterator(*self._arguments)


class _PrefetchIterator(grain.DatasetIterator):
    def __init__(
        self, make_example: ExampleFn, mixture: Mixture, sampler: LaneSampler, readers: ReaderPool
    ) -> None:
        super().__init__()
        self._make_example, self._mixture = make_example, mixture
        self._sampler, self._readers = sampler, readers
        self._next_draw = 0
        self._pending: deque[PendingExample] = deque()

    def __next__(self) -> tuple[int, Any]:
        end = len(self._mixture)
        if self._sampler[self._next_draw] >= end:
            raise StopIteration
        while len(self._pending) < max(self._readers.lookahead, 1):
            index = self._sampler[self._next_draw + len(self._pending)]
            if index >= end:
                break
            self._pending.append(self._readers.read(self._make_example, index))
        example = self._pending.popleft().result()
        self._next_draw += 1
        return self._next_draw - 1, example

    def get_state(self) -> dict[str, Any]:
        return {"next": self._next_draw}

    def set_state(self, state: dict[str, Any]) -> None:
        for pending in self._pending:
            pending.cancel()
        self._pending.clear()
        self._next_draw = state["next"]
