"""Splits a run's stream into lanes: independent chains, whichever host runs them.

Lane j of L draws one of every L consecutive examples and gives rows j·b/L to (j+1)·b/L of each
global batch. A host runs some lanes and saves a state for each of them, so that another number of
hosts continues with the same batches.
"""

from collections.abc import Awaitable, Callable, Sequence
import json
from queue import SimpleQueue
import threading
from typing import Any, Protocol
import weakref

from etils import epath
import grain
from grain import experimental

from data_pipelines.loader.batch_assembly import LaneBatcher
from data_pipelines.loader.mixture import Mixture, MixtureChange
from data_pipelines.loader.packing import draw_range
from data_pipelines.loader.prefetch import ReaderPool
from data_pipelines.loader.reject_counts import LaneCounts, stream_counts
from data_pipelines.loader.worker_pool import WorkerPool, WorkerSetup
from melllm_jax.batch import Batch
from melllm_jax.config.run import BaseRun
from melllm_jax.errors import Fault, Mistake


class PendingDirectory(Protocol):
    """A checkpoint's folder that is still being created, as Orbax passes it."""

    async def await_creation(self) -> epath.Path:
        """Waits for the folder and returns it."""


class _IteratorAsDataset(grain.IterDataset):
    """An iterator as a dataset, which continues from the iterator's present state."""

    def __init__(self, iterator: grain.DatasetIterator) -> None:
        super().__init__()
        self._iterator = iterator

    def __iter__(self) -> grain.DatasetIterator:
        return self._iterator


Chain = Callable[[int, Mixture, ReaderPool, list[LaneCounts]], grain.IterDataset]


class Lanes(grain.IterDataset):
    """Batches of the rows of some lanes, prefetched by a thread or by worker processes.

    `chain` makes the dataset of a lane's rows of each batch, given the lane's index, the mixture
    that all draw from, the threads that read for them, and the list of their counts.
    """

    def __init__(
        self,
        chain: Chain,
        run: BaseRun,
        lanes: Sequence[int],
        mixture: Mixture,
        workers: WorkerSetup,
    ) -> None:
        super().__init__()
        self._chain, self._run, self._lanes = chain, run, tuple(lanes)
        self._mixture, self._workers = mixture, workers

    def batcher(self) -> LaneBatcher:
        """Assembles batches of the lanes in this process, from the start, with its own mixture."""
        mixture, counts = self._mixture.fork(), list[LaneCounts]()
        readers = ReaderPool(self._run.data.threads, len(self._lanes))
        chain = lambda lane: self._chain(lane, mixture, readers, counts)
        lanes = {lane: chain(lane).__iter__() for lane in self._lanes}
        return LaneBatcher(self._run, lanes, mixture, readers, counts)

    def __iter__(self) -> "LanesIterator":
        batcher, data = self.batcher(), self._run.data
        batches = (
            WorkerPool(batcher, self._run, self._workers)
            if data.workers
            else experimental.ThreadPrefetchIterDataset(
                _IteratorAsDataset(batcher), prefetch_buffer_size=data.ahead
            ).__iter__()
        )
        return LanesIterator(batches, data.lane_count, batcher.mixture)


class LanesIterator(grain.DatasetIterator):
    """A host's batches; the state is saved in one file a lane, which any host can read."""

    def __init__(self, parent: grain.DatasetIterator, count: int, mixture: Mixture) -> None:
        super().__init__(parent)
        self._count, self._mixture = count, mixture
        # The index that each source had in the restored state; -1: none.
        self.carried = list(range(len(mixture.sources)))
        # An iterator that nobody holds may be collected in one of the threads that closing waits
        # for: so another thread closes the parent.
        dropped = SimpleQueue[None]()
        self._closer = threading.Thread(target=_close_after, args=(dropped, parent), daemon=True)
        self._closer.start()
        self._drop = weakref.finalize(self, dropped.put, None)
        weakref.finalize(self, _close, weakref.ref(self))  # at exit, before modules are torn down

    def __next__(self) -> Batch:
        return next(self._parent)

    def get_state(self) -> dict[str, Any]:
        """State by lane, `of` how many, `sources` with their `sizes`, and the mixture's phases."""
        mixture = self._mixture
        rest = {"of": self._count, "sources": mixture.sources, "sizes": mixture.sizes}
        return self._parent.get_state() | rest

    def set_state(self, state: dict[str, Any]) -> None:
        """Continues from a state, which must have all lanes where the mixture has changed since.

        Raises Mistake where the state is of another number of lanes, and as `Mixture.resume` does.
        """
        if state["of"] != self._count:
            raise Mistake(f"data: the saved place has of={state['of']}, the run {self._count}")
        lanes = state["lanes"].values()
        needed, read = zip(*map(draw_range, lanes), strict=True)
        first, reached = min(needed) * self._count, max(read) * self._count
        phases = self._mixture.resume(state["phases"], first, reached)
        if self.change is not None and len(lanes) < self._count:
            raise Fault(f"data: a changed mixture needs the places of all {self._count} lanes")
        known = state["sources"]
        self.carried = [known.index(x) if x in known else -1 for x in self._mixture.sources]
        self._parent.set_state(state | {"phases": phases})

    @property
    def worker_cpu_seconds(self) -> float:
        """CPU time in seconds that the worker processes took for the batches so far."""
        return self._parent.worker_cpu_seconds if isinstance(self._parent, WorkerPool) else 0.0

    def counts(self) -> dict[str, Any]:
        """How far the batches handed out have come: see `reject_counts.stream_counts`."""
        return stream_counts(self)

    @property
    def sizes(self) -> list[int]:
        """Examples of each source."""
        return self._mixture.sizes

    @property
    def change(self) -> MixtureChange | None:
        """How the mixture changed when the state was set; None if it did not."""
        return self._mixture.change

    async def save(self, directory: PendingDirectory) -> Awaitable[None]:
        """Takes the state now and writes it once `directory` exists, as Orbax expects."""
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
        """Restores the state saved in `directory`, by any hosts, as Orbax expects."""

        async def read() -> None:
            # Of all lanes: a changed mixture starts where the lane farthest ahead has come to.
            lanes: dict[str, Any] = {}
            state: dict[str, Any] = {"of": 1}
            while len(lanes) < state["of"]:
                path = directory / f"lane-{len(lanes)}.json"
                if not path.exists():
                    raise Fault(f"{path}: the place of that lane in the data is missing")
                state = json.loads(path.read_text())
                lanes |= state["lanes"]
            self.set_state(state | {"lanes": lanes})

        return read()

    def close(self) -> None:
        """Ends the readers and forgets them: Grain cannot close its own iterators again at exit."""
        self._closed = True
        self._parents = ()
        self._drop()
        self._closer.join()

    def __del__(self) -> None:
        """Does nothing: Grain's own would close in this thread, now."""


def _close_after(dropped: SimpleQueue[None], parent: grain.DatasetIterator) -> None:
    dropped.get()
    parent.close()


def _close(reference: weakref.ref[LanesIterator]) -> None:
    if (iterator := reference()) is not None:
        iterator.close()
