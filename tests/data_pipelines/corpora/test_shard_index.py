import dataclasses
import json

from etils import epath
import numpy as np
import pytest

from data_pipelines.corpora import shard_index, shard_reader, shard_writer
from data_pipelines.corpora.utterance import Utterance, encode_record
from melllm_jax.config.features import Mel
from melllm_jax.errors import Fault, Mistake

FACTS = shard_index.SplitSummary(
    characters=42,
    speakers=1,
    languages={"en": shard_index.Subtotal(7, 0.5)},
    sources={"read": shard_index.Subtotal(7, 0.5)},
    rejects={"missing": 2},
)


def spoken(number):
    sound = bytes(number % 251 for _ in range(30_000))  # a file under 64 KiB is padded to that
    return Utterance(f"id{number}", f"text {number}", 0.5, "x", audio=sound)


def write(folder, count=7, per_shard=3, mel=None):
    folder.mkdir(exist_ok=True)
    writer = shard_writer.ShardWriter(epath.Path(folder), "train", per_shard=per_shard)
    for number in range(count):
        writer.add(encode_record(spoken(number)), 0.5)
    index = shard_index.ShardIndex(mel, {"train": writer.close()}, {"train": FACTS})
    shard_index.write_index(epath.Path(folder), index)
    return index


def opened(folder):
    return shard_reader.ShardReader(
        epath.Path(folder), shard_index.read_index(epath.Path(folder)), "train"
    )


def test_shards_of_seven_records_hold_them_in_order(tmp_path):
    index = write(tmp_path)
    assert [shard.count for shard in index.splits["train"]] == [3, 3, 1]
    source = opened(tmp_path)
    assert len(source) == 7
    assert [source[i] for i in (6, 0, 3, 2)] == [spoken(i) for i in (6, 0, 3, 2)]


def test_index_read_back_equals_the_one_written(tmp_path):
    mel = Mel(kind="plain", m=8, normalize="global", mean=(0.5,) * 8, invstd=(2.0,) * 8)
    assert write(tmp_path, mel=mel) == shard_index.read_index(epath.Path(tmp_path))


def test_index_says_counts_hours_and_what_is_stored(tmp_path):
    write(tmp_path)
    tree = json.loads((tmp_path / "index.json").read_text())
    assert tree["stores"] == "flac"
    assert tree["splits"]["train"]["count"] == 7
    assert tree["splits"]["train"]["hours"] == 3.5 / 3600


def test_writer_stopped_midway_leaves_no_index_and_no_whole_shard(tmp_path):
    writer = shard_writer.ShardWriter(epath.Path(tmp_path), "train", per_shard=3)
    for number in range(4):
        writer.add(encode_record(spoken(number)), 0.5)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"train-00000.array_record", "train-00001.array_record.part"}


def test_writer_on_a_folder_that_is_not_there_is_a_fault_that_names_the_file(tmp_path):
    writer = shard_writer.ShardWriter(epath.Path(tmp_path / "none"), "train", per_shard=3)
    with pytest.raises(Fault, match=r"train-00000.array_record.part: cannot be written"):
        writer.add(encode_record(spoken(0)), 0.5)


def test_shard_with_one_byte_changed_is_a_fault_that_names_it(tmp_path):
    write(tmp_path)
    path = tmp_path / "train-00001.array_record"
    content = bytearray(path.read_bytes())
    content[content.index(bytes([4] * 50))] ^= 1  # in the sound of record 4, its second
    path.write_bytes(content)
    source = opened(tmp_path)
    assert source[3] == spoken(3)
    with pytest.raises(Fault, match=r"train-00001.array_record: record 1 cannot be read"):
        source[4]


def test_shard_cut_short_is_a_fault_that_names_it(tmp_path):
    write(tmp_path)
    path = tmp_path / "train-00002.array_record"
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(Fault, match=rf"train-00002.array_record: has {size - 1} bytes"):
        opened(tmp_path)


def test_shard_missing_is_a_fault_that_names_it(tmp_path):
    write(tmp_path)
    (tmp_path / "train-00000.array_record").unlink()
    with pytest.raises(Fault, match=r"train-00000.array_record: is missing"):
        opened(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"version": 2}'])
def test_index_damaged_is_a_fault_that_names_it(tmp_path, text):
    (tmp_path / "index.json").write_text(text)
    with pytest.raises(Fault, match=r"index.json: cannot be read"):
        shard_index.read_index(epath.Path(tmp_path))


def test_index_of_another_version_is_refused(tmp_path):
    (tmp_path / "index.json").write_text('{"version": 1}')
    with pytest.raises(Mistake, match="version=1: this release reads 2"):
        shard_index.read_index(epath.Path(tmp_path))


def test_index_holds_the_hash_of_every_shard(tmp_path):
    before = write(tmp_path / "a")
    again = write(tmp_path / "b")
    other = write(tmp_path / "c", count=6)
    hashes = [[shard.sha256 for shard in i.splits["train"]] for i in (before, again, other)]
    assert hashes[0] == hashes[1]
    assert hashes[0][:2] == hashes[2]
    assert dataclasses.astuple(before.splits["train"][0])[:3] == (
        "train-00000.array_record",
        3,
        1.5,
    )


def test_columns_written_shard_by_shard_read_back_as_one(tmp_path):
    rows = np.zeros(5, shard_index.COLUMNS_DTYPE)
    rows["hash"] = [shard_index.utterance_hash("read", f"id{number}") for number in range(5)]
    rows["seconds"], rows["characters"] = np.arange(5) / 4, np.arange(5)
    shard_writer.write_columns(epath.Path(tmp_path), "train", [rows[:2], rows[2:2], rows[2:]], 5)
    np.testing.assert_array_equal(shard_index.read_columns(epath.Path(tmp_path), "train"), rows)
    np.testing.assert_array_equal(np.load(tmp_path / "train.columns.npy"), rows)


@pytest.mark.parametrize("content", [None, b"", b"\x93NUMPY\x01\x00", b"text"])
def test_columns_missing_or_damaged_are_a_fault_that_names_them(tmp_path, content):
    if content is not None:
        (tmp_path / "train.columns.npy").write_bytes(content)
    with pytest.raises(Fault, match=r"train.columns.npy: cannot be read"):
        shard_index.read_columns(epath.Path(tmp_path), "train")


def test_columns_of_another_kind_are_a_fault(tmp_path):
    np.save(tmp_path / "train.columns.npy", np.zeros(3))
    with pytest.raises(Fault, match="has columns None, not"):
        shard_index.read_columns(epath.Path(tmp_path), "train")


def test_records_of_a_shard_come_in_order_and_a_damaged_one_is_a_fault(tmp_path):
    write(tmp_path)
    path = epath.Path(tmp_path / "train-00001.array_record")
    assert list(shard_reader.read_records(path)) == [
        encode_record(spoken(number)) for number in (3, 4, 5)
    ]
    content = bytearray(path.read_bytes())
    content[content.index(bytes([4] * 50))] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(Fault, match=r"train-00001.array_record: cannot be read"):
        list(shard_reader.read_records(path))
