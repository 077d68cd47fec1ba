import json

import numpy as np
import pytest

from data_pipelines.audio.file_io import to_flac
from data_pipelines.corpora.corpus import open_corpus
from launch.commands.data import import_corpus
from melllm_jax.errors import Mistake


@pytest.fixture
def tree(tmp_path):
    """LibriSpeech's layout: two sounds of half a second, one that is none."""
    chapter = tmp_path / "tree/dev/84/1"
    chapter.mkdir(parents=True)
    wave = np.random.default_rng(0).normal(0.0, 0.1, 8000).astype(np.float32)
    for name in ("84-1-0", "84-1-1"):
        (chapter / f"{name}.flac").write_bytes(to_flac(wave))
    (chapter / "84-1-2.flac").write_bytes(b"noise")
    (chapter / "84-1.trans.txt").write_text("84-1-0 ONE\n84-1-1 TWO\n84-1-2 THREE\n")
    return tmp_path / "tree"


def argv(tree, out, *more):
    return [str(tree), "--kind", "librispeech", "--out", str(out), *more]


def test_import_prints_one_json_object_and_leaves_manifests(tree, tmp_path, capsys):
    assert import_corpus.main(argv(tree, tmp_path / "out", "--json", "--language", "en")) == 0
    told = json.loads(capsys.readouterr().out)
    assert told == {
        "out": str(tmp_path / "out"),
        "splits": {"dev": 3},
        "hours": pytest.approx(1 / 3600),
        "unknown": 1,
    }
    assert [heard.language for heard in open_corpus(tmp_path / "out", "dev")] == ["en"] * 3


def test_import_says_a_line_a_split_and_what_it_does_not_know(tree, tmp_path, capsys):
    assert (
        import_corpus.main(argv(tree, tmp_path / "out", "--splits", "dev", "--name", "books")) == 0
    )
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        "dev: 3 utterances",
        "0.00 h in all",
        "1 utterances of no known duration: preparing says what is wrong with them",
    ]
    assert open_corpus(tmp_path / "out", "dev")[0].source == "books"


@pytest.mark.parametrize(
    ("more", "rule"),
    [
        (["--splits", "train"], "splits=train: "),
        (["--kind", "tar"], "kind"),
        (["--rate", "fast"], "rate"),
    ],
)
def test_import_that_is_a_mistake_says_which(tree, tmp_path, capsys, more, rule):
    with pytest.raises(Mistake, match=rule):
        import_corpus.main(argv(tree, tmp_path / "out", *more))
    assert capsys.readouterr().out == ""
