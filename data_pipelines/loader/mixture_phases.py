"""Computes which example of which corpus is the n-th of a stream: arithmetic, no state.

A phase is a part of the stream with one set of shares. Where a run is resumed with other shares, a
new phase starts at an index past which nothing has been drawn, and records how many examples of
each corpus had been drawn. So no example is lost or drawn twice, and a lane that is behind still
draws what it would have drawn.
"""

import bisect
from collections.abc import Sequence
import dataclasses
import functools
import itertools
import sys
from typing import Any

ENDLESS = sys.maxsize  # examples of a stream without an end
UNIT = 1 << 32  # about the sum of the shares: the rounding of one is lost below 1e-9


@dataclasses.dataclass(frozen=True)
class MixturePart:
    """A corpus in a phase."""

    name: str  # identifies what is drawn from, by its content and its subset
    path: str  # where it lay then
    hours: float  # of its subset; 0: all of it
    size: int  # examples
    share: int  # of the draws, relative to the other parts; 0: no longer drawn
    seed: int = 0  # of its shuffled order, the same in all phases
    before: int = 0  # examples drawn of it before this phase


@dataclasses.dataclass(frozen=True)
class PhaseSegment:
    """A part of a phase in which the same corpora are drawn."""

    start: int  # index of its first example, from the start of the phase
    shares: tuple[int, ...]  # 0 for a part that is exhausted
    before: tuple[int, ...]  # examples drawn of each part before it


@dataclasses.dataclass(frozen=True)
class Phase:
    """A part of the stream with one set of shares; it ends where the next one starts."""

    start: int  # global index of its first example
    epochs: int  # how often each part is drawn at most, since the stream began; 0: no end
    parts: tuple[MixturePart, ...]

    @functools.cached_property
    def segments(self) -> tuple[PhaseSegment, ...]:
        """The segments in order; a phase that ends has a last one there, without shares."""
        before = tuple(part.before for part in self.parts)
        if not self.epochs:
            return (PhaseSegment(0, tuple(part.share for part in self.parts), before),)
        segments, start = [], 0
        while True:
            left = [p.size * self.epochs - b for p, b in zip(self.parts, before, strict=True)]
            shares = tuple(p.share if x > 0 else 0 for p, x in zip(self.parts, left, strict=True))
            segments.append(PhaseSegment(start, shares, before))
            if not any(shares):
                return tuple(segments)
            length = _count_until_exhausted(shares, left)
            start += length
            counts = draw_counts(length, shares)
            before = tuple(b + c for b, c in zip(before, counts, strict=True))

    @property
    def stop(self) -> int:
        """The index after its last example if no other phase starts before, or ENDLESS."""
        last = self.segments[-1]
        return ENDLESS if any(last.shares) else self.start + last.start

    def counts(self, index: int) -> tuple[int, ...]:
        """Examples drawn of each part before global index `index`, which is `start` or later."""
        segment, inside = self._find_segment(index)
        return tuple(
            b + c for b, c in zip(segment.before, draw_counts(inside, segment.shares), strict=True)
        )

    def choice(self, index: int) -> tuple[int, int]:
        """The part that the example of a global index is drawn from, and its earlier draws."""
        segment, inside = self._find_segment(index)
        counts, after = (draw_counts(inside + more, segment.shares) for more in (0, 1))
        part = next(i for i, count in enumerate(counts) if after[i] > count)
        return part, segment.before[part] + counts[part]

    def _find_segment(self, index: int) -> tuple[PhaseSegment, int]:
        """The segment of a global index, and the examples of the segment before it."""
        inside = index - self.start
        starts = [segment.start for segment in self.segments]
        segment = self.segments[bisect.bisect_right(starts, inside) - 1]
        return segment, inside - segment.start

    def follows(self, other: "Phase") -> bool:
        """Whether it draws from the same corpora in the same shares as `other`: no change."""
        shares = [{p.name: p.share for p in phase.parts if p.share} for phase in (self, other)]
        return shares[0] == shares[1] and self.epochs == other.epochs


def draw_counts(count: int, shares: Sequence[int]) -> list[int]:
    """How many of the first `count` examples come from each part, spread evenly.

    One more example adds one to a single part: each part takes its share of what the parts before
    it have left, rounded up.
    """
    rest, left, counts = sum(shares), count, []
    for share in shares:
        later = left * (rest - share) // rest if share else left
        counts.append(left - later)
        rest, left = rest - share, later
    return counts


def _count_until_exhausted(shares: Sequence[int], left: Sequence[int]) -> int:
    """Examples until the first of the parts with a share has no example left."""

    def exhausts(count: int) -> bool:
        counts = draw_counts(count, shares)
        return any(s and c >= x for s, c, x in zip(shares, counts, left, strict=True))

    limit = next(1 << bits for bits in itertools.count() if exhausts(1 << bits))
    return bisect.bisect_left(range(limit), True, key=exhausts)


def integer_shares(shares: Sequence[float]) -> list[int]:
    """The shares as positive integers that add up to about UNIT."""
    total = sum(shares)
    return [max(round(UNIT * share / total), 1) for share in shares]


def resume_phases(
    saved: Sequence[Phase], now: Phase, first: int, reached: int
) -> tuple[Phase, ...]:
    """The phases of a stream that is resumed with the shares of `now`.

    Those of `saved` stay that examples from global index `first` on need. A new one starts at
    `reached`, past which nothing has been drawn, unless the last one has the wanted shares.
    """
    used = [phase for phase in saved if phase.start < reached] or list(saved[:1])
    needed = [
        phase
        for phase, after in itertools.zip_longest(used, used[1:])
        if after is None or after.start > first
    ]
    last = needed[-1]
    if now.follows(last):
        return tuple(needed)
    start = max(min(reached, last.stop), last.start)
    counts = last.counts(start)
    drawn = {p.name: (p.seed, count) for p, count in zip(last.parts, counts, strict=True)}
    parts = []
    for part in now.parts:
        seed, count = drawn.pop(part.name, (part.seed, 0))
        parts.append(dataclasses.replace(part, seed=seed, before=count))
    removed = [part for part in last.parts if part.name in drawn]
    parts += [dataclasses.replace(p, share=0, before=drawn[p.name][1]) for p in removed]
    new = Phase(start, now.epochs, tuple(parts))
    return (*(phase for phase in needed if phase.start < start), new)


def to_tree(phases: Sequence[Phase]) -> list[dict[str, Any]]:
    """Phases as a JSON tree."""
    return [dataclasses.asdict(phase) | {"parts": _part_dicts(phase.parts)} for phase in phases]


def from_tree(tree: Sequence[dict[str, Any]]) -> tuple[Phase, ...]:
    """Phases from the JSON tree that `to_tree` made."""
    return tuple(
        Phase(x["start"], x["epochs"], tuple(MixturePart(**part) for part in x["parts"]))
        for x in tree
    )


def _part_dicts(parts: Sequence[MixturePart]) -> list[dict[str, Any]]:
    return [dataclasses.asdict(part) for part in parts]
