"""One run that hears, speaks and reads: its weights transcribe, talk and write, and it resumes."""

import json

import pytest

from launch import cli
from launch.runs.run_inputs import complete_run
from melllm_jax.checkpoints import run_folder
from melllm_jax.config.overrides import override
from tests.support.corpora import heard_once
from tests.support.runs import (
    ask_to_stop_at,
    compiled_once,
    compiled_quickly,
    corpus,
    losses,
    one_device,
    refused,
    tiny,
    trained,
)

once = pytest.fixture(scope="module", autouse=True)(compiled_once)
heard = pytest.fixture(scope="module", autouse=True)(heard_once)
quick = pytest.fixture(scope="module", autouse=True)(compiled_quickly)
alone = pytest.fixture(scope="module", autouse=True)(one_device)
HEAD = {"prenet": 8, "hidden": 8, "channels": 4, "convolutions": 2, "taps": 3}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """`data`, and `run`, of four updates over it: heard, spoken and read."""
    folder = tmp_path_factory.mktemp("unified")
    corpus(folder / "data")
    run = unified(folder)
    run_folder.claim(str(folder / "run"), run)
    trained(run, folder / "run")
    return folder


def unified(folder):
    uses = [{"path": str(folder / "data"), "use": use} for use in ("asr", "tts", "text")]
    changes = {"model.writes": "speech", "mel.normalize": "global", "data.sources": uses}
    changes |= {f"model.mel_head.{name}": size for name, size in HEAD.items()}
    return complete_run(override(tiny(folder / "data", steps=4), changes)).run


def test_metrics_tell_of_each_kind(folder):
    line = json.loads((folder / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert {"mel_l1", "mel_l2", "kl", "flux", "stop", "accuracy", "loss"} <= line.keys()
    counts = [line[f"examples/{folder / 'data'}:{use}"] for use in ("asr", "tts", "text")]
    assert sum(counts) == line["examples"]
    assert 0 < line["speech_share"] < 1
    assert all(line[name] == line[name] for name in ("mel_l1", "stop", "loss"))  # no NaN


def test_a_run_that_is_stopped_goes_on_with_the_same_losses_to_the_bit(folder, tmp_path):
    run = unified(folder)
    trained(run, tmp_path, ask_to_stop_at(2))
    assert max(losses(tmp_path)) < 4
    trained(run, tmp_path)
    assert losses(tmp_path) == losses(folder / "run")


@pytest.mark.slow
def test_one_checkpoint_hears_speaks_and_writes(folder, capsys, tmp_path):
    run, data = folder / "run", folder / "data"
    assert cli.main(["evaluate", "--run", f"{run}", "--data", f"{data}", "--split", "train"]) == 0
    assert "WER" in capsys.readouterr().out
    out = tmp_path / "a.wav"
    limit = ["--speaking.extra", "0.3", "--speaking.per-letter", "0"]
    assert cli.main(["speak", "--run", f"{run}", "hi", "--out", f"{out}", *limit]) == 0
    assert out.stat().st_size > 44
    words = ["generate", "--checkpoint", f"{run}", "--tokens", "3", "one"]
    assert cli.main(words) == 0


def test_an_export_says_what_has_no_place_and_leaves_it_out_if_told(folder, capsys, tmp_path):
    words = ["convert", "export", folder / "run", tmp_path / "out"]
    assert 'model.writes="speech": no class of transformers' in refused(words, capsys)
    assert cli.main([*map(str, words), "--front", "drop"]) == 0
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["architectures"] == ["Phi3ForCausalLM"]
