import json

import pytest
from runs import corpus, everything, refused

from data_pipelines.sources import open_source
from launch import cli

GONE = {"audio_filepath": "audio/none.flac"}


@pytest.fixture
def data(tmp_path):
    folder = corpus(tmp_path / "data", 4)
    corpus(folder, 2, split="test", first=50)
    return folder


def prepare(data, out, *more):
    return ["prepare", str(data), "--out", str(out), *more]


def test_prepare_prints_one_json_object_and_leaves_shards_of_every_split(data, tmp_path, capsys):
    assert cli.main(prepare(data, tmp_path / "out", "--json", "--per-shard", "3")) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["out"] == str(tmp_path / "out")
    assert {split: found["utterances"] for split, found in told["splits"].items()} == {
        "train": 4,
        "test": 2,
    }
    seconds = sum(utterance.duration for utterance in open_source(data, "train"))
    assert told["splits"]["train"]["hours"] == pytest.approx(seconds / 3600)
    assert len(open_source(tmp_path / "out", "train")) == 4


def test_prepare_says_a_line_a_split(data, tmp_path, capsys):
    assert cli.main(prepare(data, tmp_path / "out")) == 0
    lines = capsys.readouterr().out.splitlines()
    assert sorted(line.partition(" utterances, ")[0] for line in lines) == ["test: 2", "train: 4"]


def test_prepare_as_mel_keeps_how_it_was_made(data, tmp_path, capsys):
    flags = ["--store", "mel", "--mel.kind", "plain", "--mel.m", "8"]
    assert cli.main(prepare(data, tmp_path / "out", *flags)) == 0
    corpus_of_mel = open_source(tmp_path / "out", "train")
    assert (corpus_of_mel.mel.kind, corpus_of_mel.mel.m) == ("plain", 8)


@pytest.mark.parametrize(
    ("flags", "rule"),
    [
        (["--per-shard", "0"], "per_shard=0: must be positive"),
        (["--kind", "kaldi"], "kind"),
        (["--mel.m", "81"], "mel.m=81: is no band count of phi4"),
        (["--stor", "mel"], "unknown flag --stor: did you mean --store?"),
    ],
    ids=lambda x: " ".join(x) if isinstance(x, list) else "",
)
def test_prepare_refuses_what_does_not_fit_and_writes_nothing(data, tmp_path, capsys, flags, rule):
    assert rule in refused(prepare(data, tmp_path / "out", *flags), capsys)
    assert not (tmp_path / "out").exists()


def test_prepare_of_a_missing_folder_is_refused(tmp_path, capsys):
    said = refused(prepare(tmp_path / "none", tmp_path / "out"), capsys)
    assert said == f"data={tmp_path / 'none'}: is no folder"
    assert not (tmp_path / "out").exists()


def test_prepare_into_whole_shards_is_refused_and_touches_nothing(data, tmp_path, capsys):
    assert cli.main(prepare(data, tmp_path / "out")) == 0
    before = everything(tmp_path / "out")
    assert "choose another folder" in refused(prepare(data, tmp_path / "out"), capsys)
    assert everything(tmp_path / "out") == before


def test_prepare_of_too_much_unusable_audio_says_how_much_and_why(tmp_path, capsys):
    data = corpus(tmp_path / "data", 4, changes={1: GONE})
    said = refused(prepare(data, tmp_path / "out"), capsys)
    assert said.startswith("bad=0.01: 1 of 4 utterances (25.0%) are unusable: 1 missing.")
    assert cli.main(prepare(data, tmp_path / "again", "--bad", "0.5")) == 0
    assert len(open_source(tmp_path / "again", "train")) == 3
