"""Packing: rows written out, how full they get, and a place in the middle of open ones."""

from concurrent.futures import Future
import json

import grain
from grain import experimental
import numpy as np
import pytest

from data_pipelines.loader.packing import BestFitPacking, draw_range, pack_row
from data_pipelines.loader.reject_counts import RejectsBefore
from data_pipelines.reject import Reject
from melllm_jax.errors import Fault


def example(turn, length):
    """Columns of that length, filled with the turn."""
    tokens = np.full(length, turn, np.int32)
    patches = np.full((length, 2), turn, np.float32)
    return {"tokens": tokens, "patches": patches}


class Lengths(grain.IterDataset):
    """Examples of these lengths; with the third something was lost."""

    def __init__(self, lengths):
        super().__init__()
        self.lengths = lengths

    def __iter__(self):
        return _Lengths(self.lengths)


class _Lengths(grain.DatasetIterator):
    def __init__(self, lengths):
        super().__init__()
        self._lengths, self._at = lengths, 0

    def __next__(self):
        if self._at == len(self._lengths):
            raise StopIteration
        turn, self._at = self._at, self._at + 1
        lost = RejectsBefore(((0, "missing"),) if turn == 2 else ())
        return example(turn, self._lengths[turn]) | {"draw_index": turn, "rejects_before": lost}

    def get_state(self):
        return {"next": self._at}

    def set_state(self, state):
        self._at = state["next"]


def packed(lengths, t, bins, read=None):
    """A dataset of rows, and the turns that were read again."""

    def again(turn):
        if read is not None:
            read.append(turn)
        done = Future()
        done.set_result(example(turn, lengths[turn]))
        return done

    return BestFitPacking(Lengths(lengths), again, t, bins)


def inside(row):
    """The turns in a row, in their order."""
    return [example["draw_index"] for example in row]


def filled(row):
    """Positions of a row that examples take."""
    return sum(len(example["tokens"]) for example in row)


def test_examples_go_where_they_leave_least_room():
    rows = packed([6, 5, 4, 5, 7, 9], t=10, bins=2)
    assert [inside(row) for row in rows] == [[0, 2], [1, 3], [5], [4]]


def test_rows_of_one_bin_keep_the_order():
    rows = [inside(row) for row in packed([6, 5, 4, 5, 7, 1], t=10, bins=1)]
    assert rows == [[0], [1, 2], [3], [4, 5]]


def test_row_says_where_each_example_lies_and_is_zero_behind():
    row = pack_row(
        [
            example(turn, 2) | {"draw_index": turn, "rejects_before": RejectsBefore(())}
            for turn in (7, 9)
        ],
        t=6,
    )
    assert row["tokens"].tolist() == [7, 7, 9, 9, 0, 0]
    assert row["segments"].tolist() == [1, 1, 2, 2, 0, 0]
    assert row["positions"].tolist() == [0, 1, 0, 1, 0, 0]
    assert row["patches"].tolist() == [[7, 7], [7, 7], [9, 9], [9, 9], [0, 0], [0, 0]]
    assert len(row["rejects_before"]) == 2


def test_every_example_comes_once_and_no_row_is_too_long():
    lengths = np.random.default_rng(0).integers(1, 60, 500).tolist()
    rows = list(packed(lengths, t=64, bins=5))
    assert sorted(sum(map(inside, rows), [])) == list(range(500))
    assert max(map(filled, rows)) <= 64


def test_rows_restored_at_any_place_go_on_alike():
    lengths = np.random.default_rng(1).integers(1, 40, 60).tolist()
    experimental.assert_equal_output_after_checkpoint(packed(lengths, t=64, bins=3))


def test_place_reads_again_what_lies_in_open_rows_alone():
    lengths, read = [6, 5, 4, 5, 7, 9, 8, 3], []
    iterator = iter(packed(lengths, t=10, bins=2))
    assert inside(next(iterator)) == [0, 2]
    state = json.loads(json.dumps(iterator.get_state()))
    assert draw_range(state) == (1, 5)
    resumed = iter(packed(lengths, t=10, bins=2, read=read))
    resumed.set_state(state)
    assert resumed.get_state() == state
    assert [inside(row) for row in resumed] == [inside(row) for row in iterator]
    assert read == [1, 3, 4]


def test_place_whose_examples_are_gone_since_is_a_fault():
    iterator = iter(packed([6, 5, 7], t=10, bins=2))
    next(iterator)
    state = iterator.get_state()
    done = Future()
    done.set_result(Reject(0, "id1", "missing", "a.flac: no such file"))
    resumed = iter(BestFitPacking(Lengths([6, 5, 7]), lambda turn: done, 10, 2))
    resumed.set_state(state)
    with pytest.raises(Fault, match="a.flac: no such file: it could be read before"):
        next(resumed)


# Utterances as long as LibriSpeech's: 12.6 s on average, 35 s at most.
def speech(count, rng):
    near = np.clip(rng.normal(14.6, 1.2, count), 1.3, 35)
    short = rng.uniform(1.3, 16.5, count)
    long = np.clip(rng.normal(15.8, 3.0, count), 1.3, 35)
    kind = rng.random(count)
    return np.where(kind < 0.55, near, np.where(kind < 0.92, short, long))


@pytest.mark.parametrize("t", [1024, 4096])
def test_rows_of_read_speech_are_97_percent_full(t):
    """Patches of 80 ms, and 3.5 tokens a second as of a table of 32,000 pieces."""
    rng = np.random.default_rng(2)
    seconds = speech(4000, rng)
    lengths = (np.ceil(seconds * 12.5) + np.rint(seconds * 3.5) + 4).astype(int).tolist()
    rows = list(packed(lengths, t, bins=8))[:-8]  # those before the end of the data
    assert np.mean(list(map(filled, rows))) / t > 0.97
