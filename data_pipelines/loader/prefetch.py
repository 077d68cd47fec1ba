"""Reading ahead: the threads of a process, and the examples of a lane in their order."""

from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
import dataclasses
from typing import Any, Protocol, runtime_checkable

import grain

from data_pipelines.loader.mixture import Mixture

BUFFER = 8  # examples read ahead by each thread


ExampleFn = Callable[[int], Any]  # the example of a number


@runtime_checkable
class PendingExample(Protocol):
    """An example under way: a future, or what is `PrefetchDataset` already."""

    def result(self) -> Any:
        """The example, once it is there."""

    def cancel(self) -> bool:
        """Leave it unread if nobody has begun to."""


@dataclasses.dataclass(frozen=True)
class _ReadyExample:
    """An example that was read when it was asked for."""

    example: Any

    def result(self) -> Any:
        return self.example

    def cancel(self) -> bool:
        return False


class ReaderPool:
    """The threads of a process, which read for all its lanes; of 0 threads, whoever asks reads."""

    def __init__(self, threads: int, lanes: int) -> None:
        self._pool = ThreadPoolExecutor(threads) if threads else None
        # A lane packs alone: what is read ahead for it must keep every thread busy.
        self.lookahead = max(threads, BUFFER * threads // lanes)

    def read(self, examples: ExampleFn, number: int) -> PendingExample:
        """The example of that number, under way."""
        if self._pool is None:
            return _ReadyExample(examples(number))
        return self._pool.submit(examples, number)

    def close(self) -> None:
        """Let the threads end; what nobody has begun to read is left."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)


@dataclasses.dataclass(frozen=True)
class LaneSampler:
    """Which examples are a lane's: one of each `lanes` in turn, and which of them is chance.

    A mix of two corpora alternates: without the chance, two lanes would get one each.
    """

    lane: int
    lanes: int
    seed: int

    def __getitem__(self, draw_index: int) -> int:
        """The index of the example of a turn, by SplitMix64 (Steele, Lea, Flood 2014)."""
        mixed = (self.seed + draw_index * 0x9E3779B97F4A7C15) % 2**64
        mixed = (mixed ^ mixed >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        mixed = (mixed ^ mixed >> 27) * 0x94D049BB133111EB % 2**64
        return draw_index * self.lanes + (self.lane + (mixed ^ mixed >> 31)) % self.lanes


class PrefetchDataset(grain.IterDataset):
    """A lane's examples in order, each with its turn, read ahead by `readers`."""

    def __init__(
        self, examples: ExampleFn, mixture: Mixture, share: LaneSampler, readers: ReaderPool
    ) -> None:
        super().__init__()
        self._how = examples, mixture, share, readers

    def reread(self, draw_index: int) -> PendingExample:
        """The example of a turn, under way once more."""
        examples, _, share, readers = self._how
        return readers.read(examples, share[draw_index])

    def __iter__(self) -> grain.DatasetIterator:
        return _PrefetchIterator(*self._how)


class _PrefetchIterator(grain.DatasetIterator):
    def __init__(
        self, examples: ExampleFn, mixture: Mixture, share: LaneSampler, readers: ReaderPool
    ) -> None:
        super().__init__()
        self._examples, self._mixture = examples, mixture
        self._share, self._readers = share, readers
        self._at = 0
        self._coming: deque[PendingExample] = deque()

    def __next__(self) -> tuple[int, Any]:
        end = len(self._mixture)
        if self._share[self._at] >= end:
            raise StopIteration
        while len(self._coming) < max(self._readers.lookahead, 1):
            index = self._share[self._at + len(self._coming)]
            if index >= end:
                break
            self._coming.append(self._readers.read(self._examples, index))
        example = self._coming.popleft().result()
        self._at += 1
        return self._at - 1, example

    def get_state(self) -> dict[str, Any]:
        return {"next": self._at}

    def set_state(self, state: dict[str, Any]) -> None:
        for future in self._coming:
            future.cancel()
        self._coming.clear()
        self._at = state["next"]
