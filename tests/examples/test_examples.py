"""The scripts of examples/ run as they stand, on data made here."""

import functools
import json
import runpy
import sys

import numpy as np
import pytest
import soundfile

from launch import api
from tests.support.corpora import heard_once
from tests.support.paths import ROOT
from tests.support.runs import (
    SMALL,
    compiled_once,
    compiled_quickly,
    corpus,
    lines,
    one_device,
    traced_once,
)

once = pytest.fixture(scope="module", autouse=True)(compiled_once)
traced = pytest.fixture(scope="module", autouse=True)(traced_once)
heard = pytest.fixture(scope="module", autouse=True)(heard_once)
quick = pytest.fixture(scope="module", autouse=True)(compiled_quickly)
alone = pytest.fixture(scope="module", autouse=True)(one_device)
CHANGES = {name: int(value) if value.isdigit() else value for name, value in SMALL.items()}
CHANGES["optim.steps"] = 2


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return corpus(tmp_path_factory.mktemp("data"), 24)


@pytest.fixture
def run_example(monkeypatch, capsys):
    """A function that runs examples/NAME.py with words, and says what it printed."""

    def run(name, *words):
        monkeypatch.setattr(sys, "argv", [name, *map(str, words)])
        runpy.run_path(str(ROOT / f"examples/{name}.py"), run_name="__main__")
        return capsys.readouterr().out

    return run


def test_tour_loads_transcribes_and_makes_an_update(data, tmp_path, run_example):
    api.train("digits", data, tmp_path, CHANGES)
    told = run_example("tour", tmp_path, next((data / "audio").glob("*.flac")))
    assert " weights, 2 updates\nheard: " in told
    assert "\nfirst token: '" in told
    assert "\n(8, 64) positions, loss " in told


def test_custom_objective_trains_and_reports_its_figures(data, tmp_path, run_example):
    words = [f"{name}={json.dumps(value)}" for name, value in CHANGES.items()]
    told = run_example("custom_objective", "digits", data, tmp_path, *words)
    assert told.startswith(f"2 updates in {tmp_path}, loss ")
    for line in lines(tmp_path):
        # Of an untrained model, every token's cross-entropy is near that of the spread target.
        assert line["loss"] == pytest.approx(line["cross_entropy"], rel=0.1)
        assert line["loss"] != line["cross_entropy"]


def test_custom_importer_makes_shards_of_a_foreign_layout(tmp_path, run_example, monkeypatch):
    few = functools.partial(api.batches, overrides={"data.bins": 1, "data.threads": 1})
    monkeypatch.setattr(api, "batches", few)  # what is read for a batch takes most of the time
    rng = np.random.default_rng(0)
    for speaker in ("ann", "bob", "eve"):
        (tmp_path / "voices" / speaker).mkdir(parents=True)
        for number in range(2):
            place = tmp_path / "voices" / speaker / f"{number}.wav"
            soundfile.write(place, rng.normal(0.0, 0.1, 4000), 8000)
            place.with_suffix(".txt").write_text(f"number {number} by {speaker}\n")
    told = run_example("custom_importer", tmp_path / "voices", tmp_path / "out")
    assert told.startswith("test: 2 utterances\ntrain: 4 utterances\nbatch: (8, 128) positions, ")
    first = api.open_corpus(tmp_path / "out/shards", "test")[0]
    assert (first.id, first.text, first.duration) == ("ann-0", "number 0 by ann", 0.5)
