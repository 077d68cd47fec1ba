"""A run's stream in lanes: chains of their own, whichever host runs them.

Lane j of L draws every L-th example from the j-th on and gives rows j·b/L … of each global batch.
A host runs some lanes and saves a place for each of them, so that another number of hosts goes on
with the same batches. What lanes share on one host, its reading threads, is here too.
"""

from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
import dataclasses
import json
from queue import SimpleQueue
import threading
from typing import Any, Protocol
import weakref

from etils import epath
import grain
from grain import experimental
import numpy as np

from data_pipelines.screen import Count
from melllm_jax.batch import Batch
from melllm_jax.config import Data
from melllm_jax.errors import Fault, Mistake

BUFFER = 8  # examples read ahead by each thread


class Creating(Protocol):
    """A folder of a checkpoint that is still being made."""

    async def await_creation(self) -> epath.Path:
        """The folder, once it is there."""


class Readers:
    """The threads of a host, which read for all its lanes; of 0 threads, whoever asks reads."""

    def __init__(self, threads: int, lanes: int) -> None:
        self._pool = ThreadPoolExecutor(threads) if threads else None
        # A lane packs alone: what is read ahead for it must keep every thread busy.
        self.ahead = max(threads, BUFFER * threads // lanes)

    def read(self, examples: grain.MapDataset, index: int) -> "Future[Any]":
        """The example at `index`, under way."""
        if self._pool is not None:
            return self._pool.submit(examples.__getitem__, index)
        done: Future[Any] = Future()
        done.set_result(examples[index])
        return done

    def close(self) -> None:
        """Let the threads end; what nobody has begun to read is left."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)


@dataclasses.dataclass(frozen=True)
class Share:
    """Which examples are a lane's: one of each `lanes` in turn, and which of them is chance.

    A mix of two corpora alternates: without the chance, two lanes would get one each.
    """

    lane: int
    lanes: int
    seed: int

    def __getitem__(self, turn: int) -> int:
        """The index of the example of a turn, by SplitMix64 (Steele, Lea, Flood 2014)."""
        mixed = (self.seed + turn * 0x9E3779B97F4A7C15) % 2**64
        mixed = (mixed ^ mixed >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        mixed = (mixed ^ mixed >> 27) * 0x94D049BB133111EB % 2**64
        return turn * self.lanes + (self.lane + (mixed ^ mixed >> 31)) % self.lanes


class Read(grain.IterDataset):
    """A lane's examples in order, read ahead by `readers`."""

    def __init__(self, examples: grain.MapDataset, share: Share, readers: Readers) -> None:
        super().__init__()
        self._examples, self._share, self._readers = examples, share, readers

    def __iter__(self) -> grain.DatasetIterator:
        return _ReadIterator(self._examples, self._share, self._readers)


class _ReadIterator(grain.DatasetIterator):
    def __init__(self, examples: grain.MapDataset, share: Share, readers: Readers) -> None:
        super().__init__()
        self._examples, self._share, self._readers = examples, share, readers
        self._at = 0
        self._coming: deque[Future[Any]] = deque()

    def __next__(self) -> Any:
        while len(self._coming) < max(self._readers.ahead, 1):
            index = self._share[self._at + len(self._coming)]
            self._coming.append(self._readers.read(self._examples, index))
        self._at += 1
        return self._coming.popleft().result()

    def get_state(self) -> dict[str, Any]:
        return {"next": self._at}

    def set_state(self, state: dict[str, Any]) -> None:
        for future in self._coming:
            future.cancel()
        self._coming.clear()
        self._at = state["next"]


class Packed(grain.IterDataset):
    """Rows of examples, packed first-fit into `bins` rows at a time; at first into `first`.

    Lanes whose first packs differ in size do not pack all at once for ever after, which would stop
    the batches for as long as that takes. `how` is as for Grain's FirstFitPackIterDataset.
    """

    def __init__(self, parent: grain.IterDataset, first: int, bins: int, **how: Any) -> None:
        super().__init__(parent)
        self._first, self._bins, self._how = first, bins, how

    def __iter__(self) -> grain.DatasetIterator:
        examples = self._parent.__iter__()
        head, tail = (
            experimental.FirstFitPackIterDataset(
                _Begun(examples), num_packing_bins=bins, **self._how
            ).__iter__()
            for bins in (self._first, self._bins)
        )
        return _PackedIterator(head, tail, self._first)


class _Begun(grain.IterDataset):
    """An iterator as a dataset: it goes on where it is."""

    def __init__(self, iterator: grain.DatasetIterator) -> None:
        super().__init__()
        self._iterator = iterator

    def __iter__(self) -> grain.DatasetIterator:
        return self._iterator


class _PackedIterator(grain.DatasetIterator):
    def __init__(
        self, head: grain.DatasetIterator, tail: grain.DatasetIterator, first: int
    ) -> None:
        super().__init__([head, tail])
        self._head, self._tail, self._first = head, tail, first
        self._rows = 0  # handed out

    @property
    def _now(self) -> grain.DatasetIterator:
        return self._head if self._rows < self._first else self._tail

    def __next__(self) -> Any:
        row = next(self._now)
        self._rows += 1
        if self._rows == self._first:
            self._tail.set_state(self._head.get_state())
        return row

    def get_state(self) -> dict[str, Any]:
        return {"parent": self._now.get_state(), "rows": self._rows}

    def set_state(self, state: dict[str, Any]) -> None:
        self._rows = state["rows"]
        self._now.set_state(state["parent"])


Chain = Callable[[int, Readers, list[Count]], grain.IterDataset]


class Lanes(grain.IterDataset):
    """Batches of these lanes' rows, made ahead by one thread.

    `chain` makes a lane from its number, the host's readers and the counts that its lanes share.
    `sizes` are the lengths of the corpora; a saved place must be of the same.
    """

    def __init__(self, chain: Chain, cfg: Data, lanes: Sequence[int], sizes: Sequence[int]) -> None:
        super().__init__()
        self._chain, self._cfg, self._lanes, self._sizes = chain, cfg, tuple(lanes), list(sizes)

    def __iter__(self) -> grain.DatasetIterator:
        readers, counts = Readers(self._cfg.threads, len(self._lanes)), list[Count]()
        lanes = {lane: self._chain(lane, readers, counts).__iter__() for lane in self._lanes}
        ahead = experimental.ThreadPrefetchIterDataset(
            _Begun(_Side(lanes)), prefetch_buffer_size=self._cfg.ahead
        ).__iter__()
        return LanesIterator(ahead, readers, self._cfg.streams, self._sizes)


class _Side(grain.DatasetIterator):
    """Lanes side by side: a batch of each, stacked in their order."""

    def __init__(self, lanes: dict[int, grain.DatasetIterator]) -> None:
        super().__init__(list(lanes.values()))
        self._lanes = lanes

    def __next__(self) -> Batch:
        parts = [next(lane) for lane in self._lanes.values()]
        return (
            parts[0] if len(parts) == 1 else Batch(*map(np.concatenate, zip(*parts, strict=True)))
        )

    def get_state(self) -> dict[str, Any]:
        return {str(number): lane.get_state() for number, lane in self._lanes.items()}

    def set_state(self, state: dict[str, Any]) -> None:
        for number, lane in self._lanes.items():
            lane.set_state(state[str(number)])


class LanesIterator(grain.DatasetIterator):
    """A host's batches; its place is saved in one file a lane, and any host reads any of them."""

    def __init__(
        self, parent: grain.DatasetIterator, readers: Readers, count: int, sizes: list[int]
    ) -> None:
        super().__init__(parent)
        self._count, self._sizes = count, sizes
        # What is no longer held may be collected in a thread that closing would wait for.
        gone = SimpleQueue[None]()
        self._closer = threading.Thread(
            target=_close_after, args=(gone, parent, readers), daemon=True
        )
        self._closer.start()
        self._gone = weakref.finalize(self, gone.put, None)
        weakref.finalize(self, _close, weakref.ref(self))  # at exit, before modules are taken down

    def __next__(self) -> Batch:
        return next(self._parent)

    def get_state(self) -> dict[str, Any]:
        """By lane, `of` how many, and the sizes of the corpora."""
        return {"lanes": self._parent.get_state(), "of": self._count, "sizes": self._sizes}

    def set_state(self, state: dict[str, Any]) -> None:
        """Raises Mistake where the place is of other lanes or of corpora of other sizes."""
        for name, now in (("of", self._count), ("sizes", self._sizes)):
            if state[name] != now:
                raise Mistake(f"data: the saved place has {name}={state[name]}, the run {now}")
        self._parent.set_state(state["lanes"])

    async def save(self, directory: Creating) -> Awaitable[None]:
        """As Orbax asks: take the place now, write it once `directory` is there."""
        state = self.get_state()
        parts = {
            name: json.dumps(state | {"lanes": {name: lane}})
            for name, lane in state["lanes"].items()
        }

        async def write() -> None:
            folder = await directory.await_creation()
            for name, text in parts.items():
                (folder / f"lane-{name}.json").write_text(text)

        return write()

    async def load(self, directory: epath.Path) -> Awaitable[None]:
        """As Orbax asks: go to the place saved in `directory`, by whichever hosts."""

        async def read() -> None:
            lanes: dict[str, Any] = {}
            state = self.get_state()
            for name in state["lanes"]:
                path = directory / f"lane-{name}.json"
                if not path.exists():
                    raise Fault(f"{path}: the place of that lane in the data is missing")
                state = json.loads(path.read_text())
                lanes |= state["lanes"]
            self.set_state(state | {"lanes": lanes})

        return read()

    def close(self) -> None:
        """Stops the readers and lets go of them: Grain's own cannot close again at exit."""
        self._closed = True
        self._parents = ()
        self._gone()
        self._closer.join()

    def __del__(self) -> None:
        """Grain's closes here and now."""


def _close_after(gone: SimpleQueue[None], parent: grain.DatasetIterator, readers: Readers) -> None:
    gone.get()
    parent.close()
    readers.close()


def _close(reference: weakref.ref[LanesIterator]) -> None:
    if (iterator := reference()) is not None:
        iterator.close()
