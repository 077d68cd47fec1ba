"""Shards read at random: a bounded number open, by many threads, and none of them mixed up."""

from concurrent.futures import ThreadPoolExecutor
import os

from etils import epath
import numpy as np
import pytest

from data_pipelines.corpora import shard_index, shard_reader, shard_writer
from data_pipelines.corpora.utterance import Utterance, encode_record


def write(folder, count, per_shard):
    writer = shard_writer.ShardWriter(epath.Path(folder), "train", per_shard=per_shard)
    for number in range(count):
        writer.add(encode_record(Utterance(f"id{number}", "text", 1.0, "", audio=b"x")), 1.0)
    shard_index.write_index(
        epath.Path(folder), shard_index.ShardIndex(None, {"train": writer.close()})
    )


def opened(folder, **more):
    folder = epath.Path(folder)
    return shard_reader.ShardReader(folder, shard_index.read_index(folder), "train", **more)


def descriptors(folder):
    """Files of a folder that this process holds open."""
    found = []
    for entry in os.listdir("/proc/self/fd"):
        try:
            found.append(os.readlink(f"/proc/self/fd/{entry}"))
        except FileNotFoundError:  # the listing's own
            continue
    return sum(path.startswith(str(folder)) for path in found)


def test_reader_holds_no_more_files_open_than_it_may(tmp_path, monkeypatch):
    write(tmp_path, 60, 3)
    monkeypatch.setattr(shard_reader, "MAX_OPEN_SHARDS", 4)
    source = opened(tmp_path)
    order = np.random.default_rng(0).permutation(60).tolist() * 3
    assert [source[i].id for i in order] == [f"id{i}" for i in order]
    assert descriptors(tmp_path) == 4


def test_reader_keeps_open_what_was_read_last(tmp_path, monkeypatch):
    write(tmp_path, 9, 3)
    monkeypatch.setattr(shard_reader, "MAX_OPEN_SHARDS", 2)
    counts, plain = [], shard_reader.ArrayRecordReader
    monkeypatch.setattr(
        shard_reader,
        "ArrayRecordReader",
        lambda path, **how: counts.append(path) or plain(path, **how),
    )
    source = opened(tmp_path)
    for index in (0, 3, 1, 4, 2):  # two shards in turn
        assert source[index].id == f"id{index}"
    assert len(counts) == 2
    source[6]  # the third takes the place of the second, which was read before the first
    source[0]
    assert len(counts) == 3
    source[3]
    assert len(counts) == 4


def test_reader_is_read_by_many_threads_at_once(tmp_path, monkeypatch):
    write(tmp_path, 60, 3)
    monkeypatch.setattr(shard_reader, "MAX_OPEN_SHARDS", 2)  # files go while others read from them
    source = opened(tmp_path)
    order = np.random.default_rng(0).integers(0, 60, 3000).tolist()
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda index: source[index].id, order))
    assert found == [f"id{index}" for index in order]


def test_reader_that_skips_raises_only_where_a_damaged_shard_is_read(tmp_path):
    write(tmp_path, 9, 3)
    (tmp_path / "train-00001.array_record").unlink()
    path = tmp_path / "train-00002.array_record"
    path.write_bytes(path.read_bytes()[:-1])
    source = opened(tmp_path, skip=True)
    assert [source[i].id for i in (0, 1, 2)] == ["id0", "id1", "id2"]
    for index, trouble in ((3, "is missing"), (5, "is missing"), (6, "has "), (8, "has ")):
        with pytest.raises(shard_reader.DamagedShard, match=trouble) as caught:
            source[index]
        assert caught.value.path.endswith(f"train-0000{index // 3}.array_record")
