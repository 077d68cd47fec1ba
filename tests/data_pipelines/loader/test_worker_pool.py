"""Processes that make batches: what they give is what this one gives, and none outlives it."""

import gc
import itertools
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from data_pipelines.loader.pipeline import train_batches
from data_pipelines.loader.reject_counts import stream_counts
from data_pipelines.prepare.prepare_corpus import prepare
from data_pipelines.text.load_tokenizer import load_tokenizer
from melllm_jax.errors import Fault, Mistake
from tests.support.corpora import heard_once, run_over, write_corpus
from tests.support.paths import ROOT
from tests.support.patience import HANG

once = pytest.fixture(scope="module", autouse=True)(heard_once)
BYTES = load_tokenizer("bytes")
GONE = {"audio_filepath": "none.flac"}


@pytest.fixture(scope="module")
def forty(tmp_path_factory):
    """Forty utterances, each with a text of its own, one of them without its audio."""
    return write_corpus(tmp_path_factory.mktemp("forty"), 40, seconds=0.15, changes={7: GONE})


@pytest.fixture(scope="module")
def others(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("others"), 9, seconds=0.15, first=100)


@pytest.fixture
def begun():
    """A function that starts a stream, closed when the test ends."""
    streams = []

    def start(*folders, mine=None, log=lambda _: None, **data):
        small = {"lanes": 4, "b": 4, "t": 48, "bins": 2, "threads": 0, "max_reject_share": 0.5}
        run = run_over(*folders, **small | data)
        streams.append(iter(train_batches(run, BYTES, lanes=mine, log=log)))
        return streams[-1]

    yield start
    for stream in streams:
        stream.close()


def same(left, right):
    return all(map(np.array_equal, left, right))


def place(stream):
    return json.loads(json.dumps(stream.get_state()))


def processes():
    """Ids of the reading processes that this one has."""
    mine = pathlib.Path(f"/proc/{os.getpid()}/task").glob("*/children")
    found = [int(word) for path in mine for word in path.read_text().split()]
    return {pid for pid in found if is_worker(pid)}


def is_worker(pid):
    try:
        return b"import worker_process" in pathlib.Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def opened():
    """Pipes and memory without a name that this process has open."""
    links = [
        os.readlink(path) for path in pathlib.Path("/proc/self/fd").glob("*") if path.is_symlink()
    ]
    return sorted(link for link in links if link.startswith(("pipe:", "/memfd:melllm")))


def ended(pids):
    """Whether all of them are gone in time."""
    end = time.monotonic() + HANG
    while any(map(is_worker, pids)) and time.monotonic() < end:
        time.sleep(0.01)
    return not any(map(is_worker, pids))


def test_batches_places_and_the_end_are_the_same_for_any_number_of_processes(forty, begun):
    """A place of one is gone on from by the other, and closing leaves no process and no memory."""
    before = opened()
    here, two = (begun(forty, workers=count, mine=[1, 2, 3], epochs=4) for count in (0, 2))
    assert place(here) == place(two)
    for _ in range(3):
        kept = next(two)
        assert same(next(here), kept)
        assert place(here) == place(two)
        assert stream_counts(here) == stream_counts(two)
    mine = processes()  # only now is it sure that both have their names
    assert len(mine) == 2
    reached = place(two)
    for _ in range(2):
        assert same(next(here), next(two))
    two.set_state(reached)  # while batches are being made ahead
    here.set_state(reached)
    for _ in range(2):
        assert same(next(here), next(two))
    counts = [len(list(itertools.islice(stream, 99))) for stream in (here, two)]
    assert counts[0] == counts[1] > 1
    assert place(here) == place(two)
    assert stream_counts(here) == stream_counts(two)
    assert stream_counts(two)["bad"]["missing"] > 1
    with pytest.raises(StopIteration):
        next(two)

    two.close()
    assert not any(map(is_worker, mine))
    assert kept.tokens.any()
    del kept
    gc.collect()
    assert opened() == before


@pytest.mark.slow
def test_place_of_a_mixture_that_has_changed_is_gone_on_from_alike(forty, others, begun):
    old = begun(forty, bins=4)
    for _ in range(3):
        next(old)
    here, two = (begun(others, forty, bins=4, workers=count) for count in (0, 2))
    for stream in (here, two):
        stream.set_state(place(old))
        next(stream)
    only_here, only_one = (begun(others, bins=4, workers=count) for count in (0, 1))
    for stream in (only_here, only_one):
        stream.set_state(place(two))  # rows hold examples of what is no source any more
    for _ in range(4):
        assert same(next(here), next(two))
        assert same(next(only_here), next(only_one))
    assert place(only_here) == place(only_one)
    assert len(only_one._parent._batcher.mixture.names) == 2


@pytest.mark.slow
def test_batches_stay_as_they_are_while_they_are_held(forty, begun):
    here, apart = (begun(forty, workers=count, lanes=1) for count in (0, 9))
    held = [next(apart).tokens for _ in range(5)]
    assert len(processes()) == 1  # no more than there are lanes
    wanted = [next(here).tokens for _ in range(5)]
    assert all(map(np.array_equal, held, wanted))
    del held
    slots = apart._parent._buffers
    made = len(slots._maps)
    for _ in range(5):
        assert same(next(here), next(apart))
    assert len(slots._maps) == made  # the memory of those let go is used again


def test_too_many_unusable_examples_stop_after_the_same_batch_with_the_same_words(tmp_path, begun):
    folder = write_corpus(tmp_path, 10, seconds=0.05, changes={3: GONE, 4: {"text": ""}})
    found = []
    for count in (0, 2):
        stream, batches = begun(folder, workers=count, max_reject_share=0.19, b=4, bins=1), 0
        with pytest.raises(Mistake, match=r"data.max_reject_share=0.19: .* are unusab") as caught:
            for batches in itertools.count():  # noqa: B007
                next(stream)
        with pytest.raises(Mistake, match=r"data.max_reject_share=0.19: "):
            next(stream)
        found.append((batches, str(caught.value)))
    assert found[0] == found[1]
    assert found[0][0] > 0
    assert "missing, " in found[0][1]
    assert "id3 (missing)" in found[0][1]


@pytest.mark.slow  # by default too many of them stop it, and test_reject_counts has none but them
def test_nothing_but_unusable_examples_stop_without_a_batch(tmp_path, begun):
    folder = write_corpus(tmp_path, 2, seconds=0.05, changes={0: GONE, 1: GONE})
    with pytest.raises(
        Mistake, match=r"max_reject_share=0.5: 100 of 100 examples \(100.0%\) are unusable"
    ):
        next(begun(folder, workers=1))


def test_damaged_shard_that_is_skipped_is_told_once(forty, tmp_path, begun):
    prepare(forty, tmp_path / "out", per_shard=8, bad=0.5)
    shard = sorted(tmp_path.glob("out/*.array_record"))[2]
    shard.write_bytes(shard.read_bytes()[:-20])
    said = []
    stream = begun(tmp_path / "out", workers=2, corrupt="skip", log=said.append)
    for _ in range(8):
        next(stream)
    assert stream_counts(stream)["bad"]["damaged shard"] > 8
    assert len(said) == 1
    assert said[0].startswith(str(shard))


def test_fault_of_a_process_is_a_fault_here(forty, tmp_path, begun):
    prepare(forty, tmp_path / "out", per_shard=40, bad=0.5)
    (shard,) = tmp_path.glob("out/*.array_record")
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 255
    shard.write_bytes(content)
    with pytest.raises(Fault, match=r"train-00000.array_record: record \d+ cannot be read"):
        list(begun(tmp_path / "out", workers=1, epochs=2))


def test_killed_process_is_a_fault_that_names_its_lanes(forty, begun):
    stream = begun(forty, workers=2)
    next(stream)
    os.kill(stream._parent._workers[1]._process.pid, signal.SIGKILL)
    rule = r"data.workers: the process that reads lanes 1, 3 was killed \(SIGKILL\)"
    for _ in range(2):
        with pytest.raises(Fault, match=rule):
            list(itertools.islice(stream, 9))


def test_tokenizer_that_is_not_the_runs_is_a_mistake(forty):
    class Another(type(BYTES)):
        def digest(self):
            return "another"

    stream = iter(train_batches(run_over(forty, workers=1), Another()))
    with pytest.raises(Mistake, match="text.tokenizer=bytes: has digest .*, the run's is another"):
        next(stream)
    stream.close()


def test_a_stream_that_is_let_go_leaves_no_process(forty):
    dropped = iter(train_batches(run_over(forty, workers=1, max_reject_share=0.5), BYTES))
    next(dropped)
    (pid,) = processes()
    del dropped
    gc.collect()
    assert ended([pid])


def test_processes_end_with_the_one_that_started_them(forty):
    """Though they are not at work: nothing is asked of them that they could not answer."""
    script = f"""
import sys
sys.modules["jax"] = None  # the longest part of its start
from tests.support.corpora import run_over
from data_pipelines.loader import pipeline
from data_pipelines.text.load_tokenizer import load_tokenizer
run = run_over({str(forty)!r}, workers=1, max_reject_share=0.5, ahead=0)
stream = iter(pipeline.train_batches(run, load_tokenizer("bytes")))
next(stream)
print(*[worker._process.pid for worker in stream._parent._workers], flush=True)
input()
"""
    with subprocess.Popen(
        [sys.executable, "-W", "error", "-c", script],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        pids = [int(word) for word in process.stdout.readline().split()]
        assert len(pids) == 1
        assert all(map(is_worker, pids))
        process.kill()
    assert ended(pids)
