"""An index of many shards: it opens without reading them, and its state stays small anywhere.

Here it has 2 million utterances in 400 names of one shard; benchmarks/index.py measures 50 million.
"""

import dataclasses
import json
import os

from etils import epath
import numpy as np
import pytest

from data_pipelines.corpora import shard_index, shard_writer
from data_pipelines.corpora.shard_reader import ShardReader
from data_pipelines.corpora.utterance import Utterance, encode_record
from data_pipelines.loader.pipeline import train_batches
from data_pipelines.text.load_tokenizer import load_tokenizer
from tests.support.corpora import MEL, run_over

SHARDS, RECORDS = 400, 5000


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A folder of shards whose records are ready mel of 0.2 s, their number its text."""
    folder = epath.Path(tmp_path_factory.mktemp("large"))
    writer = shard_writer.ShardWriter(folder, "one", per_shard=RECORDS)
    mel = np.ones((20, MEL.m), np.float32)
    for number in range(RECORDS):
        writer.add(encode_record(Utterance(f"id{number}", f"{number}", 0.2, "", mel=mel)), 0.2)
    (one,) = writer.close()
    listed = [
        dataclasses.replace(one, name=shard_index.shard_name("train", number))
        for number in range(SHARDS)
    ]
    for shard in listed:
        os.link(folder / one.name, folder / shard.name)
    shard_index.write_index(folder, shard_index.ShardIndex(MEL, {"train": tuple(listed)}))
    return folder


def at(state, turn):
    """The same place `turn` turns on."""
    for lane in state["lanes"].values():
        while "next" not in lane:
            lane = lane["parent"]
        lane["next"] = turn
    return state


@pytest.fixture
def read(monkeypatch):
    """The numbers of the records that are read, in a list that grows."""
    numbers, plain = [], ShardReader.__getitem__
    monkeypatch.setattr(
        ShardReader, "__getitem__", lambda self, i: numbers.append(i) or plain(self, i)
    )
    return numbers


def test_place_far_on_in_a_large_index_is_gone_to_at_once_and_small(large, read):
    run = run_over(large, lanes=4, b=4)
    first = iter(train_batches(run, load_tokenizer("bytes")))
    next(first)
    opened = len(read)
    turn = int(np.random.default_rng().integers(100_000, SHARDS * RECORDS // 4))
    first.set_state(at(first.get_state(), turn))
    for _ in range(3):
        next(first)
    state = json.dumps(first.get_state())
    # 4 to 5 KB, by what lies in open rows; one digit a turn passed would be 100 KB.
    assert len(state) < 10_000, f"turn {turn}"
    resumed = iter(train_batches(run, load_tokenizer("bytes")))
    expected = next(first)
    before = len(read)
    resumed.set_state(json.loads(state))
    batch = next(resumed)
    passed = len(read) - before
    assert all(map(np.array_equal, batch, expected)), f"turn {turn}"
    assert batch.segments.any()
    # A batch, those on their way, and the open rows: of 2 million, so no search through the index.
    assert 0 < opened < 5_000
    assert 0 < passed < 5_000


def test_lanes_of_a_large_index_see_every_utterance_once(large):
    """A turn of all lanes draws as many different ones, over the whole of the index."""
    mixed = train_batches(run_over(large, lanes=4, b=4), load_tokenizer("bytes"))._mixture
    phase, drawn = mixed.phases[0], []
    assert len(mixed) > 1 << 62
    for number in range(0, SHARDS * RECORDS, 997):
        part, place = phase.choice(number)
        drawn.append((part, place))
    assert len(set(drawn)) == len(drawn)
    texts = {mixed[number][1].text for number in range(300)}
    assert len(texts) > 280  # of 5,000 different ones: drawn evenly, 9 coincide
