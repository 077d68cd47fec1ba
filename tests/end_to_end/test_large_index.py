"""An index of many shards: it opens without reading them, and its state stays small anywhere.

Here it has 2 million utterances in 400 names of one shard; benchmarks/index.py measures 50 million.
"""

import dataclasses
import json
import os
import time

from etils import epath
import numpy as np
import pytest

from data_pipelines.corpora import shard_index, shard_writer
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


def test_place_far_on_in_a_large_index_is_gone_to_at_once_and_small(large):
    run = run_over(large, lanes=4, b=4)
    start = time.perf_counter()
    first = iter(train_batches(run, load_tokenizer("bytes")))
    next(first)
    opened = time.perf_counter() - start
    turn = int(np.random.default_rng().integers(100_000, SHARDS * RECORDS // 4))
    first.set_state(at(first.get_state(), turn))
    for _ in range(3):
        next(first)
    state = json.dumps(first.get_state())
    # 4 to 5 KB, by what lies in open rows; one digit a turn passed would be 100 KB.
    assert len(state) < 10_000, f"turn {turn}"
    resumed = iter(train_batches(run, load_tokenizer("bytes")))
    start = time.perf_counter()
    resumed.set_state(json.loads(state))
    batch = next(resumed)
    passed = time.perf_counter() - start
    assert all(map(np.array_equal, batch, next(first))), f"turn {turn}"
    assert batch.segments.any()
    # 30 times what it takes on an idle core: it is no figure, but no search through the index.
    assert opened < 15
    assert passed < 15


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
