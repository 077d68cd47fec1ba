import json

import pytest

from data_pipelines.corpora.corpus import open_corpus
from data_pipelines.text.load_tokenizer import load_tokenizer
from data_pipelines.text.tokenizer import SPECIALS
from launch import cli
from tests.support.runs import corpus, everything, refused


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """200 numbers spelt out, and a split with a character that no number has."""
    folder = corpus(tmp_path_factory.mktemp("data"), 200, seconds=0.01)
    changes = {901: {"text": "nine ☃"}, 902: {"text": " "}, 903: {"text": "lone \ud800"}}
    return corpus(folder, 6, split="test", first=900, seconds=0.01, changes=changes)


def train(data, out, *words):
    return ["data", "tokenizer", str(data), "--out", str(out), *map(str, words)]


def figures(capsys, data, out, *words):
    assert cli.main([*train(data, out, *words), "--json"]) == 0
    printed = capsys.readouterr()
    assert printed.out.count("\n") == 1 and printed.err == ""
    return json.loads(printed.out)


def test_tokenizer_is_one_that_runs_load_and_its_figures_are_what_it_does(data, tmp_path, capsys):
    found = figures(capsys, data, tmp_path / "out", "--size", 30)
    tokenizer = load_tokenizer(tmp_path / "out")
    assert found["size"] == tokenizer.size == 30 and found["digest"] == tokenizer.digest()
    assert found["specials"] == {name: tokenizer.special(name) for name in SPECIALS}
    assert found["bytes"] == (tmp_path / "out/tokenizer.model").stat().st_size
    texts = [one.text for one in map(open_corpus(data, "train").__getitem__, range(200))]
    tokens = sum(len(tokenizer.encode(one)) for one in texts)
    characters = sum(map(len, texts))
    train = found["splits"]["train"]
    assert (train["texts"], train["tokens"], train["characters"]) == (200, tokens, characters)
    assert train["characters_per_token"] == pytest.approx(characters / tokens)
    assert (train["refused"], train["empty"], train["unknown"]) == (0, 0, {})


def test_tokenizer_counts_what_a_held_out_split_has_and_it_lacks(data, tmp_path, capsys):
    test = figures(capsys, data, tmp_path / "out", "--size", 0)["splits"]["test"]
    assert (test["texts"], test["refused"], test["empty"]) == (6, 2, 1)
    assert test["unknown"] == {"☃": 1, "\ud800": 1}
    assert cli.main(train(data, tmp_path / "again", "--size", 0)) == 0
    told = capsys.readouterr()
    assert "2 hold what the table lacks: ☃ \\ud800" in told.out
    assert told.err.endswith("training on 200 texts of train\n")


def test_tokenizer_with_bytes_lacks_nothing_that_is_text(data, tmp_path, capsys):
    test = figures(capsys, data, tmp_path / "out", "--size", 0, "--byte-fallback")["splits"]["test"]
    assert test["unknown"] == {"\ud800": 1}


@pytest.mark.parametrize("kind", ["bpe", "char", "word"])
def test_tokenizer_of_each_kind_is_the_same_twice(data, tmp_path, capsys, kind):
    once = figures(capsys, data, tmp_path / "a", "--size", 0, "--kind", kind)
    again = figures(capsys, data, tmp_path / "b", "--size", 0, "--kind", kind)
    assert (once["kind"], once["digest"]) == (kind, again["digest"])
    assert everything(tmp_path / "a").keys() != set()


def test_tokenizer_of_a_sample_reads_so_many_texts(data, tmp_path, capsys):
    found = figures(capsys, data, tmp_path / "out", "--size", 0, "--sentences", 50)
    assert found["texts"] == found["splits"]["train"]["texts"] == 50
    assert found["splits"]["train"]["utterances"] == 200
    other = figures(
        capsys, data, tmp_path / "b", "--size", 0, "--sentences", 50, "--seed", 1, "--kind", "char"
    )
    assert other["splits"]["train"]["characters"] != found["splits"]["train"]["characters"]


@pytest.mark.parametrize(
    ("flags", "rule"),
    [
        (["--size", "5"], "size=5: is too few for the characters of the texts: at least "),
        (["--size", "5000"], "size=5000: is more than the texts yield: at most "),
        (["--size", "-1"], "size=-1: must be 0 or more"),
        (["--split", "dev"], "split=dev: "),
        (["--kind", "bep"], "kind"),
    ],
    ids=lambda x: " ".join(x) if isinstance(x, list) else "",
)
def test_tokenizer_refuses_what_does_not_fit_and_writes_nothing(
    data, tmp_path, capsys, flags, rule
):
    assert rule in refused(train(data, tmp_path / "out", *flags), capsys)
    assert not (tmp_path / "out").exists()


def test_tokenizer_into_a_folder_with_one_is_refused_and_touches_nothing(data, tmp_path, capsys):
    figures(capsys, data, tmp_path / "out", "--size", 0)
    before = everything(tmp_path / "out")
    said = refused(train(data, tmp_path / "out", "--size", 30), capsys)
    assert said.endswith("already holds tokenizer.model: choose another folder")
    assert everything(tmp_path / "out") == before
