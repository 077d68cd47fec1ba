import json
import sys
import typing

import pytest

from data_pipelines.corpora.corpus import open_corpus
from data_pipelines.importers import write_manifests
from launch import cli
from launch.commands.data.import_corpus import ImportCorpusArguments
from launch.commands.prepare import Kind, PrepareArguments
from tests.support.runs import corpus, everything, refused

GONE = {"audio_filepath": "audio/none.flac"}


@pytest.fixture
def data(tmp_path):
    folder = corpus(tmp_path / "data", 4)
    corpus(folder, 2, split="test", first=50)
    return folder


def prepare(data, out, *more):
    return ["prepare", str(data), "--out", str(out), "--runner", "inline", *more]


def test_prepare_prints_one_json_object_and_leaves_shards_of_every_split(data, tmp_path, capsys):
    assert cli.main(prepare(data, tmp_path / "out", "--json", "--per-shard", "3")) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["out"] == str(tmp_path / "out")
    assert {split: found["utterances"] for split, found in told["splits"].items()} == {
        "train": 4,
        "test": 2,
    }
    seconds = sum(utterance.duration for utterance in open_corpus(data, "train"))
    assert told["splits"]["train"]["hours"] == pytest.approx(seconds / 3600)
    assert len(open_corpus(tmp_path / "out", "train")) == 4


def test_prepare_says_a_line_a_split(data, tmp_path, capsys):
    assert cli.main(prepare(data, tmp_path / "out")) == 0
    lines = capsys.readouterr().out.splitlines()
    assert sorted(line.partition(" utterances, ")[0] for line in lines) == ["test: 2", "train: 4"]


def test_prepare_as_mel_keeps_how_it_was_made(data, tmp_path, capsys):
    flags = ["--store", "mel", "--mel.kind", "plain", "--mel.m", "8"]
    assert cli.main(prepare(data, tmp_path / "out", *flags)) == 0
    corpus_of_mel = open_corpus(tmp_path / "out", "train")
    assert (corpus_of_mel.mel.kind, corpus_of_mel.mel.m) == ("plain", 8)


@pytest.mark.parametrize(
    ("flags", "rule"),
    [
        (["--per-shard", "0"], "per_shard=0: must be positive"),
        (["--kind", "kaldi"], "has no wav.scp"),
        (["--kind", "wav"], "kind"),
        (["--bad", "2"], "bad=2.0: must lie in [0, 1]"),
        (["--long", "split"], "long=split: cuts only what has no text"),
        (["--tokenizer", "none"], "text.tokenizer=none: is neither bytes nor"),
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
    assert len(open_corpus(tmp_path / "again", "train")) == 3


def test_prepare_tells_what_it_left_out_by_reason_and_source(tmp_path, capsys):
    changes = {1: GONE, 2: GONE, 3: {"text": " ", "source": "read"}}
    data = corpus(tmp_path / "data", 6, changes=changes)
    assert cli.main(prepare(data, tmp_path / "out", "--bad", "0.5")) == 0
    lines = [line.split("  ") for line in capsys.readouterr().out.splitlines()]
    assert [line[-2:] for line in lines[2:]] == [
        ["missing", "(train)"],
        ["empty transcript", "(train read)"],
    ]
    assert cli.main(prepare(data, tmp_path / "again", "--bad", "0.5", "--json")) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["rejects"] == [
        {"split": "train", "source": "", "reason": "missing", "count": 2},
        {"split": "train", "source": "read", "reason": "empty transcript", "count": 1},
    ]


def test_prepare_without_beam_says_which_extra_to_install(data, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    said = refused(["prepare", data, "--out", tmp_path / "out"], capsys)
    assert 'pip install "melllm_jax[beam]", or --runner inline' in said
    assert not (tmp_path / "out").exists()


def test_prepare_takes_every_kind_that_is_imported():
    assert set(typing.get_args(Kind)) == {"jsonl", *write_manifests.IMPORTERS}


def test_prepare_takes_the_options_of_an_import(data, tmp_path, capsys):
    rows = (data / "train.jsonl").read_text().replace('"text"', '"said"')
    for file in data.glob("*.jsonl"):
        file.unlink()
    (data / "a_manifest.json").write_text(rows)
    options = ["--kind", "nemo", "--text", "said", "--name", "mine", "--language", "en"]
    assert cli.main(["data", "import", str(data), "--out", str(tmp_path / "one"), *options]) == 0
    assert cli.main(prepare(data, tmp_path / "two", *options, "--fastest", "1000")) == 0
    one, two = (open_corpus(tmp_path / name, "a") for name in ("one", "two"))
    told = lambda corpus: sorted((u.id, u.text, u.source, u.language) for u in corpus)
    assert told(one) == told(two) and {u.source for u in two} == {"mine"}
    one, two = (typing.get_type_hints(kind) for kind in (ImportCorpusArguments, PrepareArguments))
    assert one["layout"] == two["layout"]


def test_prepare_of_manifests_refuses_an_option_of_importers(data, tmp_path, capsys):
    assert cli.main(prepare(data, tmp_path / "out", "--text", "said")) == 2
    rule = "text=said: is for corpora of another kind than jsonl: give --kind"
    assert capsys.readouterr().err == f"melllm prepare: error: {rule}\n"
    assert not (tmp_path / "out").exists()
