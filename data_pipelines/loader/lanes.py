"""A run's stream in lanes: chains of their own, whichever host runs them.

Lane j of L draws every L-th example from the j-th on and gives rows j·b/L … of each global batch.
A host runs some lanes and saves a place for each of them, so that another number of hosts goes on
with the same batches.
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
from melllm_jax.config.run import Run
from melllm_jax.errors import Fault, Mistake


class PendingDirectory(Protocol):
    """A folder of a checkpoint that is still being made."""

    async def await_creation(self) -> epath.Path:
        """The folder, once it is there."""


class _IteratorAsDataset(grain.IterDataset):
    """An iterator as a dataset: it goes on where it is."""

    def __init__(self, iterator: grain.DatasetIterator) -> None:
        super().__init__()
        self._iterator = iterator

    def __iter__(self) -> grain.DatasetIterator:
        return self._iterator


Chain = Callable[[int, Mixture, ReaderPool, list[LaneCounts]], grain.IterDataset]


class Lanes(grain.IterDataset):
    """Batches of these lanes' rows, made ahead by one thread or by processes.

    `chain` gives a lane's rows of each batch; it is told the number of the lane, what all draw
    from, who reads for them, and the counts of what they have read.
    """

    def __init__(
        self, chain: Chain, run: Run, lanes: Sequence[int], mixture: Mixture, elsewhere: WorkerSetup
    ) -> None:
        super().__init__()
        self._chain, self._run, self._lanes = chain, run, tuple(lanes)
        self._mixture, self._elsewhere = mixture, elsewhere

    def batcher(self) -> LaneBatcher:
        """The lanes side by side, from the start, with a mixture of their own."""
        mixture, counts = self._mixture.fork(), list[LaneCounts]()
        readers = ReaderPool(self._run.data.threads, len(self._lanes))
        chain = lambda lane: self._chain(lane, mixture, readers, counts)
        lanes = {lane: chain(lane).__iter__() for lane in self._lanes}
        return LaneBatcher(self._run, lanes, mixture, readers, counts)

    def __iter__(self) -> "LanesIterator":
        batcher, data = self.batcher(), self._run.data
        batches = (
            WorkerPool(batcher, self._run, self._elsewhere)
            if data.workers
            else experimental.ThreadPrefetchIterDataset(
                _IteratorAsDataset(batcher), prefetch_buffer_size=data.ahead
            ).__iter__()
        )
        return LanesIterator(batches, data.lane_count, batcher.mixture)


class LanesIterator(grain.DatasetIterator):
    """A host's batches; its place is saved in one file a lane, and any host reads any of them."""

    def __init__(self, parent: grain.DatasetIterator, count: int, mixture: Mixture) -> None:
        super().__init__(parent)
        self._count, self._mixture = count, mixture
        # The number that each source had in the place it went on from; -1: none.
        self.carried = list(range(len(mixture.sources)))
        # What is no longer held may be collected in a thread that closing would wait for.
        gone = SimpleQueue[None]()
        self._closer = threading.Thread(target=_close_after, args=(gone, parent), daemon=True)
        self._closer.start()
        self._gone = weakref.finalize(self, gone.put, None)
        weakref.finalize(self, _close, weakref.ref(self))  # at exit, before modules are taken down

    def __next__(self) -> Batch:
        return next(self._parent)

    def get_state(self) -> dict[str, Any]:
        """By lane, `of` how many, `sources` with their `sizes`, and the phases of the mixture."""
        mixture = self._mixture
        rest = {"of": self._count, "sources": mixture.sources, "sizes": mixture.sizes}
        return self._parent.get_state() | rest

    def set_state(self, state: dict[str, Any]) -> None:
        """Go to a place, of all lanes where the mixture is another one now.

        Raises Mistake where the place is of another number of lanes, and as `Mixture.resumed` does.
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
        """Seconds of cores that processes other than this one took for the batches so far."""
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
        """What changed in the mixture at the place that it went on from."""
        return self._mixture.change

    async def save(self, directory: PendingDirectory) -> Awaitable[None]:
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
            # Of all lanes: where a changed mixture starts follows from the one farthest on.
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
        """Stops who reads and lets go of them: Grain's own cannot close again at exit."""
        self._closed = True
        self._parents = ()
        self._gone()
        self._closer.join()

    def __del__(self) -> None:
        """Grain's closes here and now."""


def _close_after(gone: SimpleQueue[None], parent: grain.DatasetIterator) -> None:
    gone.get()
    parent.close()


def _close(reference: weakref.ref[LanesIterator]) -> None:
    if (iterator := reference()) is not None:
        iterator.close()
