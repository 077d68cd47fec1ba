import pytest

from data_pipelines.corpora.corpus import (
    indices_longest_first,
    list_splits,
    load_utterance_wave,
    open_corpus,
    split_digest,
)
from data_pipelines.prepare.prepare_corpus import prepare
from data_pipelines.reject import Unusable
from melllm_jax.errors import Mistake
from tests.support.corpora import write_corpus


def test_source_of_a_missing_folder_is_refused(tmp_path):
    with pytest.raises(Mistake, match=r"nowhere: is no folder"):
        open_corpus(tmp_path / "nowhere", "train")


def test_source_of_a_missing_split_names_those_that_exist(tmp_path):
    write_corpus(tmp_path, 1, split="dev")
    write_corpus(tmp_path, 1, split="test")
    with pytest.raises(Mistake, match=r"split=train: .* has dev, test"):
        open_corpus(tmp_path, "train")


def test_source_of_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(Mistake, match=r"holds neither index.json nor SPLIT.jsonl"):
        list_splits(tmp_path)


def test_source_of_manifests_from_macos_has_the_splits_alone(tmp_path):
    write_corpus(tmp_path / "raw", 1)
    (tmp_path / "raw/._train.jsonl").write_bytes(b"\0\5\26\7")
    assert list_splits(f"file://{tmp_path}/raw") == ["train"]


def test_source_of_an_unfinished_folder_of_shards_is_refused(tmp_path):
    prepare(write_corpus(tmp_path / "raw", 2), tmp_path / "out")
    (tmp_path / "out/index.json").unlink()
    with pytest.raises(Mistake, match=r"has shards but no index.json"):
        list_splits(tmp_path / "out")


def test_source_of_shards_has_the_words_of_its_manifest(tmp_path):
    raw = write_corpus(tmp_path / "raw", 5)
    write_corpus(tmp_path / "raw", 2, split="test", first=9)
    prepare(raw, tmp_path / "out", per_shard=2)
    assert list_splits(tmp_path / "out") == ["test", "train"]
    for split in ("train", "test"):
        before = open_corpus(raw, split)
        after = open_corpus(tmp_path / "out", split)
        assert [u.text for u in after] == [u.text for u in before]
        assert [u.duration for u in after] == [u.duration for u in before]


def test_digest_follows_the_content_of_one_split(tmp_path):
    raw = write_corpus(tmp_path / "raw", 3)
    write_corpus(tmp_path / "raw", 3, split="test")
    out = tmp_path / "out"
    prepare(raw, out)
    before = [split_digest(folder, "train") for folder in (raw, out)]
    write_corpus(tmp_path / "raw", 2, split="test")
    assert split_digest(raw, "train") == before[0]
    write_corpus(tmp_path / "raw", 4)
    prepare(raw, tmp_path / "again")
    assert split_digest(raw, "train") != before[0]
    assert split_digest(out, "train") == before[1]
    assert split_digest(tmp_path / "again", "train") != before[1]


def test_sound_with_an_offset_is_that_stretch_of_the_file(tmp_path):
    raw = write_corpus(tmp_path, 1, seconds=1.0)
    whole = load_utterance_wave(open_corpus(raw, "train")[0])
    write_corpus(tmp_path, 1, seconds=1.0, changes={0: {"offset": 0.1, "duration": 0.2}})
    part = load_utterance_wave(open_corpus(raw, "train")[0])
    assert part.tolist() == whole[1600:4800].tolist()


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"audio_filepath": "none.flac"}, "missing"),
        ({"audio_filepath": "a\0.flac"}, "missing"),
        ({"audio_filepath": "a" * 300 + ".flac"}, "missing"),
        ({"audio_filepath": "a" * 300 + ".flac", "offset": 0.0}, "missing"),
        ({"audio_filepath": "a\ud800.flac"}, "missing"),
        ({"audio_filepath": "file:///none.flac"}, "missing"),
        ({"audio_filepath": "/dev/zero"}, "missing"),
        ({"start": 0, "size": 10**12}, "undecodable"),
        ({"start": 10**12, "size": 9}, "undecodable"),
        ({"offset": 9.0}, "empty"),
    ],
    ids=str,
)
def test_sound_that_is_not_there_says_why(tmp_path, fields, reason):
    raw = write_corpus(tmp_path, 1, changes={0: fields})
    with pytest.raises(Unusable) as caught:
        load_utterance_wave(open_corpus(raw, "train")[0])
    assert caught.value.reason == reason


def test_by_length_puts_the_longest_first(tmp_path):
    changes = {n: {"duration": seconds} for n, seconds in enumerate((1.0, 3.0, 2.0, 3.0))}
    corpus = open_corpus(write_corpus(tmp_path, 4, changes=changes), "train")
    assert indices_longest_first(corpus) == [1, 3, 2, 0]
