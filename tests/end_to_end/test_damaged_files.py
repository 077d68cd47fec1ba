"""A thousand damaged files: none crashes or hangs a worker, and each is kept whole or counted."""

import json

import numpy as np
import pytest

from data_pipelines.audio.file_io import decode_audio
from data_pipelines.corpora import shard_index
from data_pipelines.corpora.corpus import open_corpus
from data_pipelines.prepare.prepare_corpus import prepare
from data_pipelines.prepare.validate import Limits
from tests.support.damaged_audio import SECONDS, write_damaged

LIMITS = Limits(duplicates="keep")


def check(raw, out, done, **changes):
    index = prepare(raw, out, limits=LIMITS, bad=1.0, **changes)
    kept = {utterance.id: utterance for utterance in open_corpus(out, "train")}
    lines = map(json.loads, (out / shard_index.REJECTS).read_text().splitlines())
    rejects = {line["id"]: line for line in lines}
    assert kept.keys() | rejects.keys() == done.keys()
    assert not kept.keys() & rejects.keys()
    assert sum(index.facts["train"].rejects.values()) == len(rejects)
    for name, how in done.items():
        assert how not in ("empty", "text") or name in rejects
    for name, line in rejects.items():
        assert line["source"] == name.partition(".")[2]
        assert line["reason"] in {
            "empty": {"empty"},
            "text": {"undecodable"},
        }.get(done[name], {"undecodable", "empty", "rate", "not finite", "wrong duration"})
    for utterance in kept.values():
        wave = decode_audio(utterance.audio)
        assert np.isfinite(wave).all()
        assert wave.size == round(utterance.duration * 16_000)
        assert abs(utterance.duration - SECONDS) <= LIMITS.tolerance
    assert np.isfinite(index.statistics.mean).all() and np.isfinite(index.statistics.invstd).all()
    assert len(kept) > len(done) / 20
    return rejects


def test_a_hundred_damaged_files_are_kept_whole_or_counted(tmp_path):
    done = write_damaged(tmp_path / "raw", 100, seed=1)
    rejects = check(tmp_path / "raw", tmp_path / "out", done)
    assert {line["source"] for line in rejects.values()} == {
        "flac",
        "wav",
        "float.wav",
        "mp3",
        "ogg",
        "opus",
    }


@pytest.mark.slow
@pytest.mark.parametrize("seed", [2, 3])
def test_a_thousand_damaged_files_crash_no_worker(tmp_path, seed):
    done = write_damaged(tmp_path / "raw", 1000, seed=seed)
    rejects = check(tmp_path / "raw", tmp_path / "out", done, runner="direct", per_shard=250)
    assert not [line for line in rejects.values() if "its decoder" in line["detail"]]
