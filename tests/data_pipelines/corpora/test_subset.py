"""Hours of a corpus by hash: nested, the same in whatever order and form the utterances lie."""

import dataclasses
import json

from etils import epath
import numpy as np
import pytest

from data_pipelines.corpora import shard_index, shard_writer, subset
from data_pipelines.corpora.corpus import open_corpus
from data_pipelines.corpora.utterance import Utterance, encode_record
from data_pipelines.loader.pipeline import train_batches
from data_pipelines.text.load_tokenizer import load_tokenizer
from melllm_jax.errors import Fault, Mistake
from tests.support.corpora import run_over, write_corpus

BYTES = load_tokenizer("bytes")
COUNT = 900


def rows(seed=0):
    """Utterances of 1 to 20 s, of two sources, some ids in both."""
    rng = np.random.default_rng(seed)
    return [
        Utterance(f"id{n % 600}", "text", round(float(rng.uniform(1, 20)), 3), "", b"x" * 50)
        for n in range(COUNT)
    ]


def source(number):
    return "a" if number < 600 else "b"


def manifest(folder, order):
    folder.mkdir()
    utterances = rows()
    lines = [
        json.dumps(
            {
                "id": utterances[n].id,
                "text": "text",
                "duration": utterances[n].duration,
                "speaker": "",
                "audio_filepath": f"{n}.flac",
                "source": source(n),
            }
        )
        for n in order
    ]
    (folder / "train.jsonl").write_text("\n".join(lines))
    return open_corpus(folder, "train")


def prepared(folder, order):
    folder.mkdir()
    writer = shard_writer.ShardWriter(epath.Path(folder), "train", per_shard=200)
    utterances, columns = rows(), np.zeros(COUNT, shard_index.COLUMNS_DTYPE)
    for place, n in enumerate(order):
        said = utterances[n]
        writer.add(encode_record(said), said.duration)
        columns[place] = shard_index.utterance_hash(source(n), said.id), said.duration, 4
    np.save(folder / f"train{shard_index.COLUMNS_SUFFIX}", columns)
    shard_index.write_index(
        epath.Path(folder), shard_index.ShardIndex(None, {"train": writer.close()})
    )
    return open_corpus(folder, "train")


def members(chosen, order):
    """Numbers of the utterances in a subset of a corpus in that order."""
    return {order[int(row)] for row in chosen._rows}


@pytest.mark.parametrize("bits", [16, 2])
def test_subsets_are_nested_and_as_long_as_was_asked_for(tmp_path, monkeypatch, bits):
    monkeypatch.setattr(subset, "BITS", bits)
    order = list(range(COUNT))
    corpus = manifest(tmp_path / "a", order)
    found = [(hours, subset.draw_subset(corpus, hours)) for hours in (0.25, 0.5, 1.0, 2.0)]
    utterances = rows()
    for hours, chosen in found:
        seconds = sum(utterances[n].duration for n in members(chosen, order))
        assert hours * 3600 - 20 < seconds <= hours * 3600
        assert chosen.hours == pytest.approx(seconds / 3600)
        assert [chosen[i].id for i in (0, len(chosen) - 1)] == [
            utterances[int(chosen._rows[i])].id for i in (0, -1)
        ]
    for (_, smaller), (_, larger) in zip(found, found[1:], strict=False):
        assert members(smaller, order) < members(larger, order)


def test_subset_is_the_first_by_hash_without_a_gap(tmp_path):
    order = list(range(COUNT))
    chosen = members(subset.draw_subset(manifest(tmp_path / "a", order), 1.5), order)
    utterances = rows()
    ranked = sorted(order, key=lambda n: shard_index.utterance_hash(source(n), utterances[n].id))
    assert set(ranked[: len(chosen)]) == chosen


def test_subset_of_shards_in_another_order_is_that_of_the_manifest(tmp_path, monkeypatch):
    order = list(range(COUNT))
    mixed = np.random.default_rng(1).permutation(COUNT).tolist()
    one = members(subset.draw_subset(manifest(tmp_path / "a", order), 1.5), order)
    assert members(subset.draw_subset(prepared(tmp_path / "b", mixed), 1.5), mixed) == one
    monkeypatch.setattr(subset, "CHUNK", 250)
    assert members(subset.draw_subset(open_corpus(tmp_path / "b", "train"), 1.5), mixed) == one


@pytest.mark.parametrize("bits", [16, 1])
def test_subset_that_an_utterance_just_fills_has_it(tmp_path, monkeypatch, bits):
    """With one bit many hashes share a bucket, so that the end lies in one and between two."""
    monkeypatch.setattr(subset, "BITS", bits)
    line = {"text": "text", "duration": 3.6, "audio_filepath": "a.flac"}
    lines = (json.dumps(line | {"id": f"id{n}"}) for n in range(8))
    (tmp_path / "train.jsonl").write_text("\n".join(lines))
    corpus = open_corpus(tmp_path, "train")
    found = [subset.draw_subset(corpus, count / 1000) for count in range(1, 9)]
    assert [len(chosen) for chosen in found] == list(range(1, 9))


def test_subset_of_all_hours_is_all(tmp_path):
    corpus = manifest(tmp_path / "a", range(COUNT))
    whole = subset.total_hours(corpus)
    assert whole == pytest.approx(sum(u.duration for u in rows()) / 3600)
    assert len(subset.draw_subset(corpus, whole)) == COUNT
    with pytest.raises(Mistake, match=rf"data.sources.hours=99: .*train.jsonl has {whole:.2f}"):
        subset.draw_subset(corpus, 99.0)


def test_subset_too_short_for_any_utterance_is_refused(tmp_path):
    corpus = manifest(tmp_path / "a", range(COUNT))
    with pytest.raises(Mistake, match=r"hours=0.0001: .* has no utterance that short"):
        subset.draw_subset(corpus, 0.0001)


def test_columns_that_do_not_fit_the_shards_are_a_fault(tmp_path):
    corpus = prepared(tmp_path / "a", range(COUNT))
    path = tmp_path / f"a/train{shard_index.COLUMNS_SUFFIX}"
    np.save(path, np.load(path)[:-1])
    with pytest.raises(Fault, match=r"train.columns.npy: has 899 rows for 900 records"):
        subset.draw_subset(corpus, 1.0)


def test_chain_over_some_hours_draws_from_them_alone(tmp_path):
    folder = write_corpus(tmp_path, 40, seconds=0.5)
    run = run_over(folder, epochs=1, t=32, b=1, bins=1, lanes=1)
    (whole,) = run.data.sources
    found = {}
    for hours in (0.001, 0.003):
        some = dataclasses.replace(whole, hours=hours)
        data = dataclasses.replace(run.data, sources=(some,))
        seconds, found[hours] = 0.0, set()
        for batch in train_batches(dataclasses.replace(run, data=data), BYTES):
            seconds += float(batch.frames.sum()) / 100
            for segment in range(1, batch.segments.max() + 1):
                found[hours].add(BYTES.decode(batch.tokens[batch.segments == segment].tolist()))
        # A frame of 25 ms every 10 ms, and the last one padded: 10 ms more for some.
        assert hours * 3600 - 1 < seconds <= hours * 3600 + 0.01 * len(found[hours])
    assert 0 < len(found[0.001]) < len(found[0.003])
    assert found[0.001] < found[0.003]
