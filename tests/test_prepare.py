import json

from corpora import write_corpus
import ml_dtypes
import numpy as np
import pytest

from data_pipelines.audio import decode
from data_pipelines.mel import log_mel
from data_pipelines.prepare import prepare
from data_pipelines.sources import open_source
from melllm_jax.config import Mel
from melllm_jax.errors import Mistake

GONE = {"audio_filepath": "none.flac"}


def test_prepare_to_flac_keeps_every_16_bit_sample(tmp_path):
    raw = write_corpus(tmp_path / "raw", 3)
    prepare(raw, tmp_path / "out")
    for before, after in zip(
        open_source(raw, "train"), open_source(tmp_path / "out", "train"), strict=True
    ):
        assert np.array_equal(decode(after.audio), decode(before.audio))


def test_prepare_to_mel_keeps_it_as_bfloat16_and_says_how_it_was_made(tmp_path):
    raw = write_corpus(tmp_path / "raw", 2)
    cfg = Mel(kind="plain", m=16, normalize="none")
    prepare(raw, tmp_path / "out", mel=cfg)
    stored = open_source(tmp_path / "out", "train")
    assert stored.mel == cfg
    mel = log_mel(decode(open_source(raw, "train")[1].audio), cfg)
    assert np.array_equal(stored[1].mel, mel.astype(ml_dtypes.bfloat16).astype(np.float32))


def test_prepare_tells_how_many_are_done(tmp_path):
    raw = write_corpus(tmp_path / "raw", 3)
    write_corpus(tmp_path / "raw", 2, split="test")
    done = []
    index = prepare(raw, tmp_path / "out", tick=done.append)
    assert done == [1, 2, 3, 4, 5]
    assert {split: part[0].count for split, part in index.splits.items()} == {"train": 3, "test": 2}


def test_prepare_leaves_bad_utterances_out_and_lists_them(tmp_path):
    raw = write_corpus(tmp_path / "raw", 4, changes={2: GONE})
    prepare(raw, tmp_path / "out", bad=0.25)
    ids = [utterance.id for utterance in open_source(tmp_path / "out", "train")]
    assert ids == ["id0", "id1", "id3"]
    (line,) = (tmp_path / "out/rejects.jsonl").read_text().splitlines()
    reject = json.loads(line)
    assert (reject["split"], reject["id"], reject["reason"]) == ("train", "id2", "missing")
    assert "none.flac" in reject["detail"]


def test_prepare_of_too_many_bad_utterances_stops_without_an_index(tmp_path):
    raw = write_corpus(tmp_path / "raw", 4, changes={2: GONE, 3: {"offset": 99.0}})
    with pytest.raises(Mistake, match=r"bad=0.49: 2 of 4 .*50.0%.* 1 missing, 1 empty"):
        prepare(raw, tmp_path / "out", bad=0.49)
    assert not (tmp_path / "out/index.json").exists()
    assert len((tmp_path / "out/rejects.jsonl").read_text().splitlines()) == 2


def test_prepare_of_many_bad_utterances_stops_early(tmp_path):
    changes = {number: GONE for number in range(150)}
    raw = write_corpus(tmp_path / "raw", 150, seconds=0.05, changes=changes)
    done = []
    with pytest.raises(Mistake, match="100 of 100 utterances"):
        prepare(raw, tmp_path / "out", tick=done.append)
    assert len(done) == 99


def test_prepare_of_a_split_with_nothing_usable_is_refused(tmp_path):
    raw = write_corpus(tmp_path / "raw", 2)
    write_corpus(tmp_path / "raw", 1, split="test", changes={0: GONE})
    with pytest.raises(Mistake, match="split=test: none of its 1 utterances is usable"):
        prepare(raw, tmp_path / "out", bad=1.0)


def test_prepare_into_a_whole_folder_is_refused(tmp_path):
    raw = write_corpus(tmp_path / "raw", 2)
    prepare(raw, tmp_path / "out")
    with pytest.raises(Mistake, match=r"out=.*: already holds a whole index.json"):
        prepare(raw, tmp_path / "out")


def test_prepare_from_ready_mel_is_refused(tmp_path):
    prepare(write_corpus(tmp_path / "raw", 2), tmp_path / "mel", mel=Mel())
    with pytest.raises(Mistake, match="holds ready mel"):
        prepare(tmp_path / "mel", tmp_path / "out")


def test_prepare_after_a_killed_job_writes_the_same_files(tmp_path):
    raw = write_corpus(tmp_path / "raw", 7)

    def killed(done):
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(raw, tmp_path / "out", per_shard=2, tick=killed)
    prepare(raw, tmp_path / "out", per_shard=2)
    prepare(raw, tmp_path / "again", per_shard=2)
    files = [{p.name: p.read_bytes() for p in (tmp_path / n).iterdir()} for n in ("out", "again")]
    assert files[0] == files[1]
