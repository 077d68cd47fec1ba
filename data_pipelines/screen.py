"""What is unusable is counted, in the iterator's state, and stops the run where it is too much.

Counted twice, for two questions. `Screen` counts what was read, to stop a run whose data is bad
even where nothing good ever comes; it runs ahead of the training. `Tally` counts what is in the
batches handed out, so that the figures of a run stopped and resumed are those of one that was not.
"""

from collections import Counter
import dataclasses
from typing import Any
import weakref

import grain

from data_pipelines.examples import Reject, reasons
from melllm_jax.batch import Batch
from melllm_jax.config import Data
from melllm_jax.errors import Mistake

FEWEST = 100  # examples seen before a share of bad ones means anything
NAMED = 5  # bad examples that the message names


@dataclasses.dataclass(frozen=True)
class Lost:
    """The bad examples between a good one and the one before it: (source, reason) of each."""

    rejects: tuple[tuple[int, str], ...]


def progress(iterator: grain.DatasetIterator) -> dict[str, Any]:
    """How far the batches handed out have come: counts of this host's examples.

    seen: examples drawn, bad ones included; bad: unusable ones by reason; sources: by corpus,
    in the order of Data.sources, `seen`, and `epoch`, how often all hosts have drawn it if they
    have drawn as much as this one. A bad example counts with the good one after it, so that what
    is read or packed ahead does not count yet; the counts lie in the iterator's state.
    """
    state = iterator.get_state()
    while "drawn" not in state:
        state = state["parent"]
    drawn, lengths = state["drawn"], state["lengths"]
    sources = [
        {"seen": count, "epoch": count * state["hosts"] / length}
        for count, length in zip(drawn, lengths, strict=True)
    ]
    bad = {reason: count for reason, count in state["bad"].items() if count}
    return {"seen": sum(drawn), "bad": bad, "sources": sources}


class Screen(grain.IterDataset):
    """Examples without the Rejects, which it counts; each carries those before it as `lost`."""

    def __init__(self, parent: grain.IterDataset, cfg: Data) -> None:
        super().__init__(parent)
        self._cfg = cfg

    def __iter__(self) -> grain.DatasetIterator:
        return _ScreenIterator(self._parent.__iter__(), self._cfg)


class _ScreenIterator(grain.DatasetIterator):
    def __init__(self, parent: grain.DatasetIterator, cfg: Data) -> None:
        super().__init__(parent)
        self._cfg, self._seen = cfg, 0
        self._bad = dict.fromkeys(reasons(cfg), 0)
        self._first = [""] * NAMED  # of a fixed length: Orbax and Grain want states of one form

    def __next__(self) -> dict[str, Any]:
        lost = []
        while True:
            example = next(self._parent)
            self._seen += 1
            if isinstance(example, Reject):
                name = f"{example.id} ({example.reason})"
                if "" in self._first and name not in self._first:
                    self._first[self._first.index("")] = name
                self._bad[example.reason] += 1
                lost.append((example.source, example.reason))
            self._check_share()
            if not isinstance(example, Reject):
                return example | {"lost": Lost(tuple(lost))}

    def _check_share(self) -> None:
        total = sum(self._bad.values())
        if self._seen < FEWEST or total <= self._cfg.bad * self._seen:
            return
        counts = ", ".join(f"{count} {reason}" for reason, count in self._bad.items() if count)
        first = ", ".join(filter(None, self._first))
        share = f"{total} of {self._seen} examples ({total / self._seen:.1%})"
        raise Mistake(f"data.bad={self._cfg.bad}: {share} are unusable: {counts}. First: {first}")

    def get_state(self) -> dict[str, Any]:
        parent, bad = self._parent.get_state(), dict(self._bad)
        return {"parent": parent, "seen": self._seen, "bad": bad, "first": list(self._first)}

    def set_state(self, state: dict[str, Any]) -> None:
        self._parent.set_state(state["parent"])
        self._seen, self._bad = state["seen"], dict(state["bad"])
        self._first = list(state["first"])


class Tally(grain.IterDataset):
    """Batches as they are handed out, counted on the consumer's side of all that runs ahead."""

    def __init__(
        self, parent: grain.IterDataset, cfg: Data, lengths: list[int], hosts: int
    ) -> None:
        super().__init__(parent)
        self._cfg, self._lengths, self._hosts = cfg, lengths, hosts

    def __iter__(self) -> grain.DatasetIterator:
        return _TallyIterator(self._parent.__iter__(), self._cfg, self._lengths, self._hosts)


class _TallyIterator(grain.DatasetIterator):
    def __init__(
        self, parent: grain.DatasetIterator, cfg: Data, lengths: list[int], hosts: int
    ) -> None:
        super().__init__(parent)
        self._fixed = {"lengths": lengths, "hosts": hosts}
        self._drawn = [0] * len(lengths)
        self._bad = dict.fromkeys(reasons(cfg), 0)
        weakref.finalize(self, _close, weakref.ref(self))  # at exit, before modules are taken down

    def __next__(self) -> Batch:
        batch, losts = next(self._parent)
        firsts = batch.sources[(batch.segments > 0) & (batch.positions == 0)]
        drawn = Counter(firsts.tolist())
        for lost in losts:
            for source, reason in lost.rejects:
                drawn[source] += 1
                self._bad[reason] += 1
        self._drawn = [count + drawn[i] for i, count in enumerate(self._drawn)]
        return batch

    def get_state(self) -> dict[str, Any]:
        parent = self._parent.get_state()
        return {"parent": parent, "drawn": self._drawn, "bad": dict(self._bad)} | self._fixed

    def set_state(self, state: dict[str, Any]) -> None:
        for name, now in self._fixed.items():
            if state[name] != now:
                raise Mistake(f"{name}={now}: the saved place in the data is of {state[name]}")
        self._parent.set_state(state["parent"])
        self._drawn, self._bad = list(state["drawn"]), dict(state["bad"])

    def close(self) -> None:
        """Stops the readers and lets go of them: Grain's own cannot close again at exit."""
        super().close()
        self._parents = ()


def _close(reference: weakref.ref[_TallyIterator]) -> None:
    if (iterator := reference()) is not None:
        iterator.close()
