"""Which example comes when: whole streams written out, and changed in the middle."""

from collections import Counter
import dataclasses
import json

import numpy as np
import pytest

from data_pipelines.loader.mixture_phases import (
    ENDLESS,
    MixturePart,
    Phase,
    draw_counts,
    from_tree,
    integer_shares,
    resume_phases,
    to_tree,
)


def begun(parts, epochs):
    """The first phase of a stream of (name, size, share) in each of its parts."""
    seeds = range(7, 99)
    made = [
        MixturePart(n, f"/{n}", 0.0, size, share, seed=seed)
        for (n, size, share), seed in zip(parts, seeds, strict=False)
    ]
    return Phase(0, epochs, tuple(made))


def stream(phases, start, stop):
    """(name, place in its corpus's stream) of every example from `start` on."""
    found = []
    for number in range(start, stop):
        phase = [p for p in phases if p.start <= number][-1]
        part, place = phase.choice(number)
        found.append((phase.parts[part].name, place))
    return found


def test_shares_of_three_to_one_alternate_so():
    phase = begun([("a", 9, 3), ("b", 9, 1)], 0)
    assert "".join(name for name, _ in stream([phase], 0, 12)) == "aaabaaabaaab"
    assert phase.stop == ENDLESS


def test_every_example_is_one_more_of_a_single_part():
    rng = np.random.default_rng(0)
    for _ in range(50):
        shares = rng.integers(0, 1000, 5).tolist() + [1]
        counts = [draw_counts(count, shares) for count in range(200)]
        assert all(sum(c) == i for i, c in enumerate(counts))
        steps = np.diff(counts, axis=0)
        assert steps.min() == 0
        ideal = np.outer(np.arange(200), np.array(shares) / sum(shares))
        assert np.abs(np.array(counts) - ideal).max() < len(shares)


def test_source_drops_out_after_its_epochs_and_the_stream_ends_with_the_last():
    phase = begun([("a", 2, 1), ("b", 5, 1), ("c", 1, 2)], 2)
    assert phase.stop == 2 * (2 + 5 + 1)
    found = stream([phase], 0, phase.stop)
    assert sorted(found) == sorted(
        [("a", i) for i in range(4)] + [("b", i) for i in range(10)] + [("c", i) for i in range(2)]
    )
    assert [name for name, _ in found[-6:]] == ["b"] * 6


def test_whole_shares_keep_to_the_given_ones_and_none_is_lost():
    assert integer_shares([1.0, 1.0]) == [1 << 31, 1 << 31]
    tiny = integer_shares([1e-30, 1.0])
    assert tiny[0] == 1


@pytest.mark.parametrize("epochs", [0, 3])
def test_changed_shares_lose_and_double_nothing(epochs):
    old = begun([("a", 50, 3), ("b", 50, 1)], epochs)
    now = begun([("a", 50, 1), ("b", 50, 5)], epochs)
    phases = resume_phases([old], now, first=30, reached=41)
    assert [phase.start for phase in phases] == [0, 41]
    assert stream(phases, 0, 41) == stream([old], 0, 41)  # who is behind draws as before
    found = stream(phases, 0, 141)
    for name in "ab":
        places = [place for other, place in found if other == name]
        assert places == list(range(len(places)))
    counts = Counter(name for name, _ in found[41 : 41 + 60])
    assert counts == {"a": 10, "b": 50}


def test_source_taken_out_and_put_back_goes_on_where_it_was():
    first = begun([("a", 50, 1), ("b", 50, 1)], 0)
    without = resume_phases([first], begun([("a", 50, 1)], 0), first=20, reached=20)
    assert {name for name, _ in stream(without, 20, 40)} == {"a"}
    back = resume_phases(without, begun([("b", 50, 1), ("a", 50, 1), ("c", 9, 2)], 0), 30, 30)
    assert {part.name: part.seed for part in back[-1].parts}["b"] == first.parts[1].seed
    found = stream(back, 30, 60)
    assert next(place for name, place in found if name == "b") == 10
    assert next(place for name, place in found if name == "a") == 20
    assert next(place for name, place in found if name == "c") == 0


def test_phases_that_no_lane_needs_are_let_go():
    one, two, three = (begun([("a", 50, 1), ("b", 50, n)], 0) for n in (1, 2, 3))
    phases = resume_phases([one], two, first=5, reached=20)
    kept = resume_phases(phases, three, first=19, reached=40)
    assert [phase.start for phase in kept] == [0, 20, 40]
    assert [phase.start for phase in resume_phases(kept, three, first=20, reached=44)] == [20, 40]
    assert [phase.start for phase in resume_phases(kept, three, first=40, reached=44)] == [40]


def test_change_taken_back_before_anything_was_drawn_under_it_was_none():
    one, two = (begun([("a", 50, 1), ("b", 50, n)], 0) for n in (1, 2))
    phases = resume_phases([one], two, first=5, reached=20)
    assert resume_phases(phases, one, first=5, reached=20) == (one,)
    fresh = resume_phases([one], two, first=0, reached=0)
    assert fresh == (dataclasses.replace(two, start=0),)


def test_stream_that_has_ended_goes_on_with_more_epochs():
    old, now = (begun([("a", 3, 1), ("b", 4, 1)], epochs) for epochs in (1, 2))
    phases = resume_phases([old], now, first=7, reached=8)  # a turn of 4 lanes reaches past the end
    assert phases[-1].start == old.stop == 7
    assert phases[-1].stop == 14
    found = stream([old, *phases], 0, 14)
    assert sorted(found) == sorted([("a", i) for i in range(6)] + [("b", i) for i in range(8)])


def test_stream_with_fewer_epochs_than_were_drawn_ends_at_once():
    old, now = (begun([("a", 3, 1)], epochs) for epochs in (0, 1))
    (_, phase) = resume_phases([old], now, first=4, reached=5)
    assert phase.stop == 5


def test_phases_come_back_from_json():
    phases = resume_phases([begun([("a", 3, 1)], 2)], begun([("a", 3, 2), ("b", 1, 1)], 1), 1, 2)
    assert from_tree(json.loads(json.dumps(to_tree(phases)))) == phases
