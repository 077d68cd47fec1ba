"""Lanes: whoever runs them, the batches are the same, and a place is read by any hosts."""

import asyncio
import dataclasses
import gc
import json
import threading
import time
import weakref

import numpy as np
import pytest

from data_pipelines.examples.asr_example import ExampleMaker
from data_pipelines.loader.pipeline import train_batches
from data_pipelines.loader.prefetch import LaneSampler
from data_pipelines.loader.reject_counts import stream_counts
from data_pipelines.text.load_tokenizer import load_tokenizer
from melllm_jax.batch import Batch
from melllm_jax.errors import Fault, Mistake
from tests.support.corpora import heard_once, run_over, write_corpus

once = pytest.fixture(scope="module", autouse=True)(heard_once)
BYTES = load_tokenizer("bytes")
HOSTS = {1: [[0, 1, 2, 3]], 2: [[0, 1], [2, 3]], 4: [[0], [1], [2], [3]]}


@pytest.fixture(scope="module")
def forty(tmp_path_factory):
    """Forty utterances, each with a text of its own, one of them without its audio."""
    changes = {7: {"audio_filepath": "none.flac"}}
    return write_corpus(tmp_path_factory.mktemp("forty"), 40, seconds=0.15, changes=changes)


def over(folder, **data):
    small = {"lanes": 4, "b": 4, "t": 48, "bins": 2, "max_reject_share": 0.5}  # 16 a batch
    return run_over(folder, **small | data)


def side(run, hosts):
    """Iterators of so many hosts."""
    return [iter(train_batches(run, BYTES, lanes=lanes)) for lanes in HOSTS[hosts]]


def batch(iterators):
    """The global batch that hosts give together."""
    return Batch(*map(np.concatenate, zip(*map(next, iterators), strict=True)))


def same(left, right):
    return all(map(np.array_equal, left, right))


class There:
    """A folder of a checkpoint that is made already."""

    def __init__(self, folder):
        self._folder = folder

    async def await_creation(self):
        return self._folder


def saved(iterators, folder):
    folder.mkdir()
    for iterator in iterators:
        writing = asyncio.run(iterator.save(There(folder)))
        next(iterator)  # the place is of when it was asked for
        asyncio.run(await_(writing))


async def await_(coroutine):
    await coroutine


def loaded(iterators, folder):
    async def load_one(iterator):
        await (await iterator.load(folder))

    for iterator in iterators:
        asyncio.run(load_one(iterator))


@pytest.mark.parametrize("hosts", [2, 4])
def test_global_batch_is_the_same_for_any_number_of_hosts(forty, hosts):
    run = over(forty)
    one, several = side(run, 1), side(run, hosts)
    for _ in range(8):
        assert same(batch(one), batch(several))


@pytest.mark.parametrize(("before", "after"), [(2, 1), pytest.param(2, 4, marks=pytest.mark.slow)])
def test_place_saved_by_some_hosts_is_gone_on_from_by_others(forty, tmp_path, before, after):
    run = over(forty)
    for step in (1, 9):  # in the first rows, and past them
        straight, stopped, resumed = side(run, 1), side(run, before), side(run, after)
        for _ in range(step):
            batch(straight), batch(stopped)
        saved(stopped, tmp_path / f"{step}")
        loaded(resumed, tmp_path / f"{step}")
        for _ in range(6):
            assert same(batch(straight), batch(resumed)), step


def test_counts_of_hosts_add_up_to_those_of_one(forty):
    run = over(forty)
    one, two = side(run, 1), side(run, 2)
    for _ in range(9):
        batch(one), batch(two)
    (whole,), halves = map(stream_counts, one), list(map(stream_counts, two))
    assert whole["seen"] == sum(half["seen"] for half in halves) > 100
    assert whole["bad"]["missing"] == sum(half["bad"].get("missing", 0) for half in halves) > 2
    epochs = [half["sources"][0]["epoch"] for half in halves]
    assert whole["sources"][0]["epoch"] == pytest.approx(sum(epochs) / 2)


def test_place_without_the_file_of_a_lane_is_a_fault(forty, tmp_path):
    run = over(forty)
    saved(side(run, 2)[:1], tmp_path / "half")
    with pytest.raises(Fault, match=r"lane-2.json: the place of that lane in the data is missing"):
        loaded(side(run, 1), tmp_path / "half")


def test_place_of_other_lanes_or_data_is_refused(forty, tmp_path):
    two = iter(train_batches(over(forty, lanes=2), BYTES))
    (four,) = side(over(forty), 1)
    with pytest.raises(Mistake, match="data: the saved place has of=2, the run 4"):
        four.set_state(json.loads(json.dumps(two.get_state())))
    other = write_corpus(tmp_path, 9, seconds=0.15)
    with pytest.raises(Mistake, match=r"data.sources: none of those of the saved place: .*forty"):
        side(over(other), 1)[0].set_state(four.get_state())


def test_share_gives_each_example_to_one_lane_and_no_lane_a_fixed_one():
    shares = [LaneSampler(lane, 4, seed=5) for lane in range(4)]
    for turn in range(100):
        assert sorted(share[turn] for share in shares) == [4 * turn + i for i in range(4)]
    places = np.bincount([shares[0][turn] % 4 for turn in range(4000)], minlength=4)
    assert places.min() > 900  # of 1000 expected


def test_lanes_that_do_not_divide_the_rows_are_refused(forty):
    data = over(forty, b=8).data
    with pytest.raises(Mistake, match="data.lanes=3: does not divide data.b=8"):
        dataclasses.replace(data, lanes=3)
    assert [dataclasses.replace(data, lanes=0, b=b).lane_count for b in (8, 12, 3, 64)] == [
        8,
        4,
        1,
        8,
    ]


@pytest.mark.parametrize("ahead", [0, 2])
def test_an_iterator_may_be_collected_in_a_thread_of_its_own(forty, monkeypatch, ahead):
    """Closing there would wait for itself; Python could only print what that raises."""
    # A thread must be making an example when the iterator is let go, which the last one may not be.
    assert any(_collected_by_its_own(forty, monkeypatch, ahead) for _ in range(10))


def _collected_by_its_own(forty, monkeypatch, ahead):
    """Let an iterator go while its threads wait to make examples: whether one collected it."""
    permits, plain, inside = threading.Semaphore(0), ExampleMaker.train, []
    dropped, alone = threading.Event(), threading.Lock()

    def train(self, *args):
        inside.append(1)
        permits.acquire()
        with alone:  # what one thread asks for, another's collection finds in use
            if dropped.is_set() and gone():
                gc.collect()
        inside.pop()
        return plain(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(ExampleMaker, "train", train)
        before = threading.active_count()
        gc.disable()
        gc.freeze()  # what was there before is not looked through at each collection
        iterator = iter(train_batches(over(forty, threads=8, ahead=ahead), BYTES))
        iterator.itself = iterator
        gone = weakref.ref(iterator)
        try:
            asking = threading.Thread(target=next, args=(iterator,))
            asking.start()
            while asking.is_alive():
                permits.release()
                asking.join(0.002)
            del asking, iterator
            dropped.set()
            permits.release(1000)
            while inside:  # those that waited in `train` when it was let go
                time.sleep(0.001)
            collected = gone() is None
            gc.collect()
        finally:
            gc.unfreeze()
            gc.enable()
        while threading.active_count() > before:
            time.sleep(0.01)
    return collected
