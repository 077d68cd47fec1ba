"""Counts unusable examples, in the iterator's state, and stops a run that has too many of them.

They are counted twice, for two questions. `RejectFilter` counts what a lane has read, which is
ahead of its rows: after each batch `check_reject_share` stops a run whose share of bad examples
over all lanes of the host is too large. `RejectCounter` counts what is in the batches of a lane, so
that the figures of a run that was stopped and resumed equal those of one that was not.
"""

from collections import Counter
from collections.abc import Callable, Sequence
import dataclasses
import itertools
from typing import Any

import grain

from data_pipelines.examples.asr_example import reject_reasons
from data_pipelines.loader.mixture import Mixture
from data_pipelines.reject import Reject
from melllm_jax.config.data import Data
from melllm_jax.errors import Mistake

DAMAGED = "damaged shard"  # the reason of records of a shard that cannot be read
MIN_EXAMPLES = 100  # examples seen before a share of bad ones means anything
MAX_NAMED = 5  # bad examples that the message names


@dataclasses.dataclass(frozen=True)
class RejectsBefore:
    """The (source, reason) of each bad example between a good one and the good one before it."""

    rejects: tuple[tuple[int, str], ...]


@dataclasses.dataclass
class LaneCounts:
    """What a lane has read: examples, the unusable ones by reason, and the first of those."""

    bad: dict[str, int]
    seen: int = 0
    # Of a fixed length: Orbax and Grain want states of one structure.
    first: list[str] = dataclasses.field(default_factory=lambda: [""] * MAX_NAMED)

    def add(self, reject: Reject[int]) -> None:
        """Counts an unusable example, which `seen` includes already."""
        name = f"{reject.id} ({reject.reason})"
        if "" in self.first and name not in self.first:
            self.first[self.first.index("")] = name
        self.bad[reject.reason] += 1


class LogOnce:
    """Logs what is wrong with a shard, once for each; `log` is called with a line for people."""

    def __init__(self, log: Callable[[str], None]) -> None:
        self._log, self._shards = log, set[str]()

    def __call__(self, shard: str, text: str) -> None:
        if shard not in self._shards:
            self._shards.add(shard)
            self._log(text)


def all_reject_reasons(cfg: Data) -> tuple[str, ...]:
    """Every reason that is counted."""
    return (*reject_reasons(cfg), DAMAGED)


def stream_counts(iterator: grain.DatasetIterator) -> dict[str, Any]:
    """Counts of the examples in the batches handed out, over this host's lanes.

    seen: examples drawn, bad ones included; bad: unusable ones by reason; sources: by corpus,
    in the order of Data.sources, `seen`, and `epoch`, how often all lanes have drawn it if each
    has drawn as much as these. A bad example counts with the good one after it, so that examples
    read or packed ahead do not count yet. The counts are part of the iterator's state.
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


def lane_counts(state: dict[str, Any]) -> LaneCounts:
    """Counts of what a lane has read, from its state."""
    while "read" not in state:
        state = state["parent"]
    return LaneCounts(**state["read"])


def check_reject_share(cfg: Data, counts: Sequence[LaneCounts]) -> None:
    """Raises Mistake where bad examples in all of `counts` exceed data.max_reject_share."""
    seen = sum(count.seen for count in counts)
    total = sum(sum(count.bad.values()) for count in counts)
    if seen < MIN_EXAMPLES or total <= cfg.max_reject_share * seen:
        return
    bad = {reason: sum(count.bad[reason] for count in counts) for reason in all_reject_reasons(cfg)}
    names = dict.fromkeys(name for count in counts for name in count.first if name)
    kinds = ", ".join(f"{count} {reason}" for reason, count in bad.items() if count)
    share = f"{total} of {seen} examples ({total / seen:.1%})"
    first = ", ".join(list(names)[:MAX_NAMED])
    limit = f"data.max_reject_share={cfg.max_reject_share}"
    raise Mistake(f"{limit}: {share} are unusable: {kinds}. First: {first}")


class RejectFilter(grain.IterDataset):
    """Removes Rejects from the examples and counts them; the next good one has them beside it.

    It has them as `rejects_before`. The counts are appended to `counts`; `log_once` is called with
    every damaged shard. Raises Mistake where the lane alone exceeds the allowed share by as many
    bad examples as MIN_EXAMPLES in a row would: a batch, after which `check_reject_share` is
    called, may never come.
    """

    def __init__(
        self,
        parent: grain.IterDataset,
        cfg: Data,
        counts: list[LaneCounts],
        log_once: Callable[[str, str], None],
    ) -> None:
        super().__init__(parent)
        self._cfg, self._counts, self._log_once = cfg, counts, log_once

    def __iter__(self) -> grain.DatasetIterator:
        count = LaneCounts(dict.fromkeys(all_reject_reasons(self._cfg), 0))
        self._counts.append(count)
        return _RejectFilterIterator(self._parent.__iter__(), self._cfg, count, self._log_once)


class _RejectFilterIterator(grain.DatasetIterator):
    def __init__(
        self,
        parent: grain.DatasetIterator,
        cfg: Data,
        count: LaneCounts,
        log_once: Callable[[str, str], None],
    ) -> None:
        super().__init__(parent)
        self._cfg, self._count, self._log_once = cfg, count, log_once

    def __next__(self) -> dict[str, Any]:
        rejects: list[tuple[int, str]] = []
        while True:
            draw_index, example = next(self._parent)
            self._count.seen += 1
            if not isinstance(example, Reject):
                before = RejectsBefore(tuple(rejects))
                return example | {"draw_index": draw_index, "rejects_before": before}
            if example.reason == DAMAGED:
                text = f"{example.detail}: what cannot be read of it is skipped"
                self._log_once(example.id, text)
            self._count.add(example)
            rejects.append((example.source, example.reason))
            bad, allowed = sum(self._count.bad.values()), self._cfg.max_reject_share
            if bad - allowed * self._count.seen >= MIN_EXAMPLES * (1 - allowed):
                check_reject_share(self._cfg, [self._count])

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
        # A state saved by an older version lacks reasons.
        bad = dict.fromkeys(self._count.bad, 0) | read["bad"]
        self._count.seen, self._count.bad = read["seen"], bad
        self._count.first = list(read["first"])


class RejectCounter(grain.IterDataset):
    """Counts the examples in a lane's rows by corpus, and the rejects before them by reason."""

    def __init__(self, parent: grain.IterDataset, cfg: Data, mixture: Mixture) -> None:
        super().__init__(parent)
        self._cfg, self._mixture = cfg, mixture

    def __iter__(self) -> grain.DatasetIterator:
        return _RejectCounterIterator(self._parent.__iter__(), self._cfg, self._mixture)


class _RejectCounterIterator(grain.DatasetIterator):
    def __init__(self, parent: grain.DatasetIterator, cfg: Data, mixture: Mixture) -> None:
        super().__init__(parent)
        self._mixture = mixture
        self._drawn = dict.fromkeys(mixture.names, 0)
        self._bad = dict.fromkeys(all_reject_reasons(cfg), 0)

    def __next__(self) -> list[list[dict[str, Any]]]:
        rows: list[list[dict[str, Any]]] = next(self._parent)
        drawn: Counter[int] = Counter()
        for example in itertools.chain.from_iterable(rows):
            drawn[int(example["sources"][0])] += 1
            for source, reason in example["rejects_before"].rejects:
                drawn[source] += 1
                self._bad[reason] += 1
        for source, count in drawn.items():
            name = self._mixture.names[source]
            self._drawn[name] = self._drawn.get(name, 0) + count
        return rows

    def get_state(self) -> dict[str, Any]:
        return {
            "parent": self._parent.get_state(),
            "drawn": dict(self._drawn),
            "bad": dict(self._bad),
        }

    def set_state(self, state: dict[str, Any]) -> None:
        self._parent.set_state(state["parent"])
        self._drawn = dict.fromkeys(self._mixture.names, 0) | state["drawn"]
        self._bad = dict.fromkeys(self._bad, 0) | state["bad"]
