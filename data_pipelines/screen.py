"""What is unusable is counted, in the iterator's state, and stops the run where it is too much.

Counted twice, for two questions. `Screen` counts what was read, to stop a run whose data is bad
even where nothing good ever comes; it runs ahead of the rows. `Tally` counts what is in the batches
of a lane, so that the figures of a run stopped and resumed are those of one that was not.
"""

from collections import Counter
from collections.abc import Callable
import dataclasses
from typing import Any

import grain

from data_pipelines.examples import Reject, reasons
from data_pipelines.mixture import Mixture
from melllm_jax.batch import Batch
from melllm_jax.config import Data
from melllm_jax.errors import Mistake

DAMAGED = "damaged shard"  # the reason of what cannot be read of one
FEWEST = 100  # examples seen before a share of bad ones means anything
NAMED = 5  # bad examples that the message names


@dataclasses.dataclass(frozen=True)
class Lost:
    """The bad examples between a good one and the one before it: (source, reason) of each."""

    rejects: tuple[tuple[int, str], ...]


@dataclasses.dataclass
class Count:
    """What a lane has read: examples, the unusable ones by reason, and the first of those."""

    bad: dict[str, int]
    seen: int = 0
    # Of a fixed length: Orbax and Grain want states of one form.
    first: list[str] = dataclasses.field(default_factory=lambda: [""] * NAMED)
    damaged: set[str] = dataclasses.field(default_factory=set)  # shards told of since the start

    def add(self, reject: Reject) -> None:
        """Count an unusable example that has been seen."""
        name = f"{reject.id} ({reject.reason})"
        if "" in self.first and name not in self.first:
            self.first[self.first.index("")] = name
        self.bad[reject.reason] += 1


def counted(cfg: Data) -> tuple[str, ...]:
    """Every reason that is counted."""
    return (*reasons(cfg), DAMAGED)


def progress(iterator: grain.DatasetIterator) -> dict[str, Any]:
    """How far the batches handed out have come: counts of the examples of this host's lanes.

    seen: examples drawn, bad ones included; bad: unusable ones by reason; sources: by corpus,
    in the order of Data.sources, `seen`, and `epoch`, how often all lanes have drawn it if they
    have drawn as much as these. A bad example counts with the good one after it, so that what
    is read or packed ahead does not count yet; the counts lie in the iterator's state.
    """
    state = iterator.get_state()
    while "lanes" not in state:
        state = state["parent"]
    lanes, sizes = list(state["lanes"].values()), state["sizes"]
    drawn = [sum(lane["drawn"][name] for lane in lanes) for name in state["sources"]]
    share = len(lanes) / state["of"]
    sources = [
        {"seen": count, "epoch": count / share / size}
        for count, size in zip(drawn, sizes, strict=True)
    ]
    bad: Counter[str] = Counter()
    for lane in lanes:
        bad.update({reason: count for reason, count in lane["bad"].items() if count})
    return {"seen": sum(drawn), "bad": dict(bad), "sources": sources}


class Screen(grain.IterDataset):
    """Examples without the Rejects, which it counts; each carries those before it as `lost`.

    `counts` are those of all lanes of this host, whose share is judged as one: it takes its place
    among them. `say` is told of every damaged shard once.
    """

    def __init__(
        self,
        parent: grain.IterDataset,
        cfg: Data,
        counts: list[Count],
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        super().__init__(parent)
        self._cfg, self._counts, self._say = cfg, counts, say

    def __iter__(self) -> grain.DatasetIterator:
        return _ScreenIterator(self._parent.__iter__(), self._cfg, self._counts, self._say)


class _ScreenIterator(grain.DatasetIterator):
    def __init__(
        self,
        parent: grain.DatasetIterator,
        cfg: Data,
        counts: list[Count],
        say: Callable[[str], None],
    ) -> None:
        super().__init__(parent)
        self._cfg, self._counts, self._say = cfg, counts, say
        self._count = Count(dict.fromkeys(counted(cfg), 0))
        counts.append(self._count)

    def __next__(self) -> dict[str, Any]:
        lost = []
        while True:
            turn, example = next(self._parent)
            self._count.seen += 1
            if isinstance(example, Reject):
                if example.reason == DAMAGED and not any(
                    example.id in count.damaged for count in self._counts
                ):
                    self._count.damaged.add(example.id)
                    self._say(f"{example.detail}: what cannot be read of it is skipped")
                self._count.add(example)
                lost.append((example.source, example.reason))
            self._check_share()
            if not isinstance(example, Reject):
                return example | {"turn": turn, "lost": Lost(tuple(lost))}

    def _check_share(self) -> None:
        seen = sum(count.seen for count in self._counts)
        if seen < FEWEST:
            return
        total = sum(sum(count.bad.values()) for count in self._counts)
        if total <= self._cfg.bad * seen:
            return
        bad = {
            reason: sum(count.bad[reason] for count in self._counts)
            for reason in counted(self._cfg)
        }
        names = dict.fromkeys(name for count in self._counts for name in count.first if name)
        counts = ", ".join(f"{count} {reason}" for reason, count in bad.items() if count)
        share = f"{total} of {seen} examples ({total / seen:.1%})"
        first = ", ".join(list(names)[:NAMED])
        raise Mistake(f"data.bad={self._cfg.bad}: {share} are unusable: {counts}. First: {first}")

    def get_state(self) -> dict[str, Any]:
        return {
            "parent": self._parent.get_state(),
            "read": {
                "seen": self._count.seen,
                "bad": dict(self._count.bad),
                "first": list(self._count.first),
            },
        }

    def set_state(self, state: dict[str, Any]) -> None:
        self._parent.set_state(state["parent"])
        read = state["read"]
        self._count.seen, self._count.bad = read["seen"], dict(read["bad"])
        self._count.first = list(read["first"])


class Tally(grain.IterDataset):
    """A lane's rows, counted by corpus; what it gives is a Batch without their `lost`."""

    def __init__(self, parent: grain.IterDataset, cfg: Data, mixture: Mixture) -> None:
        super().__init__(parent)
        self._cfg, self._mixture = cfg, mixture

    def __iter__(self) -> grain.DatasetIterator:
        return _TallyIterator(self._parent.__iter__(), self._cfg, self._mixture)


class _TallyIterator(grain.DatasetIterator):
    def __init__(self, parent: grain.DatasetIterator, cfg: Data, mixture: Mixture) -> None:
        super().__init__(parent)
        self._mixture = mixture
        self._drawn = dict.fromkeys(mixture.names, 0)
        self._bad = dict.fromkeys(counted(cfg), 0)

    def __next__(self) -> Batch:
        batch, losts = next(self._parent)
        firsts = batch.sources[(batch.segments > 0) & (batch.positions == 0)]
        drawn = Counter(firsts.tolist())
        for lost in losts:
            for source, reason in lost.rejects:
                drawn[source] += 1
                self._bad[reason] += 1
        for number, count in drawn.items():
            name = self._mixture.names[number]
            self._drawn[name] = self._drawn.get(name, 0) + count
        return batch

    def get_state(self) -> dict[str, Any]:
        return {
            "parent": self._parent.get_state(),
            "drawn": dict(self._drawn),
            "bad": dict(self._bad),
        }

    def set_state(self, state: dict[str, Any]) -> None:
        self._parent.set_state(state["parent"])
        self._drawn = dict.fromkeys(self._mixture.names, 0) | state["drawn"]
        self._bad = dict(state["bad"])
