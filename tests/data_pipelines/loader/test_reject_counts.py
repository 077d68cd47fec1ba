import contextlib
import json

import pytest

from data_pipelines.loader.pipeline import train_batches
from data_pipelines.loader.reject_counts import (
    DAMAGED,
    LaneCounts,
    all_reject_reasons,
    check_reject_share,
    stream_counts,
)
from data_pipelines.text.load_tokenizer import load_tokenizer
from melllm_jax.config.data import Data
from melllm_jax.errors import Mistake
from tests.support.corpora import heard_once, run_over, write_corpus

once = pytest.fixture(scope="module", autouse=True)(heard_once)
BYTES = load_tokenizer("bytes")
GONE = {"audio_filepath": "none.flac"}


def started(*folders, **fields):
    # One lane: examples come in the order in which they are drawn.
    return iter(train_batches(run_over(*folders, **{"lanes": 1} | fields), BYTES))


def segments(batch):
    return int(batch.segments.max(axis=1).sum())


def test_progress_counts_what_was_handed_out_and_not_what_was_made_ahead(tmp_path):
    changes = {3: GONE, 7: {"text": ""}}
    folder = write_corpus(tmp_path, 10, seconds=0.1, changes=changes)
    iterator = started(folder, max_reject_share=0.5, bins=1, b=1, t=40)
    assert stream_counts(iterator) == {"seen": 0, "bad": {}, "sources": [{"seen": 0, "epoch": 0.0}]}
    used = 0
    for _ in range(20):
        used += segments(next(iterator))
        counts = stream_counts(iterator)
        (source,) = counts["sources"]
        bad = sum(counts["bad"].values())
        assert counts["seen"] == source["seen"] == used + bad
        assert source["epoch"] == counts["seen"] / 10
        assert 2 * (counts["seen"] // 10) <= bad <= 2 * (counts["seen"] // 10 + 1)
    assert used > 20
    assert set(counts["bad"]) == {"missing", "empty transcript"}


def test_progress_of_two_corpora_counts_each(tmp_path):
    changes = {n: GONE for n in range(100, 102)}
    a = write_corpus(tmp_path / "a", 10, seconds=0.1)
    b = write_corpus(tmp_path / "b", 4, seconds=0.1, first=100, changes=changes)
    iterator = started(a, b, max_reject_share=0.5, bins=2, ahead=0)
    used = [0, 0]
    for _ in range(3):
        batch = next(iterator)
        firsts = batch.sources[(batch.positions == 0) & (batch.segments > 0)]
        used = [used[i] + int((firsts == i).sum()) for i in (0, 1)]
    first, second = stream_counts(iterator)["sources"]
    assert first["seen"] == used[0]
    assert second["seen"] == used[1] + stream_counts(iterator)["bad"]["missing"]
    assert second["epoch"] == second["seen"] / 4


def test_progress_after_a_resume_is_that_of_not_stopping(tmp_path):
    folder = write_corpus(tmp_path, 10, seconds=0.1, changes={3: GONE})
    fields = {"max_reject_share": 0.5, "b": 2, "t": 48, "bins": 2}
    straight = started(folder, **fields)
    for _ in range(3):
        next(straight)
    state = json.loads(json.dumps(straight.get_state()))
    resumed = started(folder, **fields)
    resumed.set_state(state)
    for _ in range(3):
        assert stream_counts(resumed) == stream_counts(straight)
        next(resumed)
        next(straight)


@pytest.mark.parametrize(("bad", "stops"), [(0.09, True), (0.1, True), (0.11, False), (0.2, False)])
def test_screen_stops_where_the_share_of_bad_examples_is_exceeded(tmp_path, bad, stops):
    folder = write_corpus(tmp_path, 10, seconds=0.05, changes={4: GONE})
    # The share passes 1 in 10 wherever the bad one is early.
    iterator = started(folder, max_reject_share=bad)
    if stops:
        with pytest.raises(Mistake, match=rf"data.max_reject_share={bad}: 1\d of 1\d\d examples"):
            for _ in range(100):
                next(iterator)
    else:
        for _ in range(4):
            next(iterator)
        assert stream_counts(iterator)["bad"]["missing"] > 10


@pytest.mark.parametrize(("bad", "stops"), [((2, 2), False), ((2, 3), True)])
def test_screen_lets_a_share_pass_that_all_lanes_just_reach(bad, stops):
    cfg = Data(t=8, b=1, max_reject_share=0.01)
    lanes = [
        LaneCounts(dict.fromkeys(all_reject_reasons(cfg), 0) | {DAMAGED: count}, seen=200)
        for count in bad
    ]
    with pytest.raises(Mistake, match="5 of 400") if stops else contextlib.nullcontext():
        check_reject_share(cfg, lanes)


def test_screen_of_nothing_but_bad_examples_stops_and_says_why(tmp_path):
    changes = {0: GONE, 1: {"text": ""}}
    with pytest.raises(Mistake) as caught:
        next(started(write_corpus(tmp_path, 2, changes=changes)))
    message = str(caught.value)
    assert message.startswith(
        "data.max_reject_share=0.01: 100 of 100 examples (100.0%) are unusable: "
    )
    assert "50 missing, 50 empty transcript" in message
    assert "id0 (missing)" in message
    assert message.count("id0") == 1  # seen in every epoch, named once


def test_screen_remembers_after_a_resume_what_it_saw(tmp_path):
    folder = write_corpus(tmp_path, 10, seconds=0.05, changes={4: GONE})

    fields = {"max_reject_share": 0.1, "ahead": 0, "bins": 1, "b": 1}

    def batches_before_stopping(stop_at):
        iterator, count = started(folder, **fields), 0
        with pytest.raises(Mistake, match="data.max_reject_share") as caught:
            while True:
                next(iterator)
                count += 1
                if count == stop_at:
                    state = iterator.get_state()
                    iterator = started(folder, **fields)
                    iterator.set_state(state)
        return count, str(caught.value)

    straight = batches_before_stopping(None)
    assert straight[0] >= 1
    assert batches_before_stopping(1) == straight


def test_state_of_other_data_is_refused(tmp_path):
    state = started(write_corpus(tmp_path, 10)).get_state()
    with pytest.raises(Mistake, match=r"data.sources=.*: its content, or hours, is not what"):
        started(write_corpus(tmp_path, 9)).set_state(state)


def test_counts_of_a_state_without_a_reason_start_it_at_none(tmp_path):
    changes = {n: {"duration": -1.0} for n in range(1, 6)}
    folder = write_corpus(tmp_path, 6, seconds=0.1, changes=changes)
    iterator = started(folder, max_reject_share=0.9, b=1, t=48, bins=2)
    state = iterator.get_state()
    for lane in state["lanes"].values():
        while "parent" in lane:
            lane = lane.get("parent")  # noqa: PLW2901
            for counts in (lane.get("bad"), lane.get("read", {}).get("bad")):
                if counts:
                    del counts["malformed row"]
    iterator.set_state(state)
    next(iterator)
    assert stream_counts(iterator)["bad"].keys() == {"malformed row"}
