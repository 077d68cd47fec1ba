"""A vocoder from recordings to sound: trained, scored, loaded, exported, and refused elsewhere."""

import json
import pathlib

import numpy as np
import pytest
import safetensors.numpy

from launch import cli
from launch.runs.fit import fit
from launch.sweep import budgets, cost, final_eval, spec
from launch.sweep.ledger import Eval
from melllm_jax import vocoder_flops
from melllm_jax.errors import Mistake
from melllm_jax.presets import catalog
from melllm_jax.vocoders.stored_vocoder import load_vocoder
from tests.support.corpora import write_corpus
from tests.support.runs import compiled_once, find_one_device, losses, refused

once = pytest.fixture(scope="module", autouse=True)(compiled_once)
TINY = {
    "data.t": "4",
    "data.b": "2",
    "data.bins": "1",
    "data.threads": "1",
    "adversarial.periods": "2",
    "adversarial.period_channels": "4",
    "adversarial.resolutions": (),
    "adversarial.resolution_channels": "2",
    "hifi_gan.channels": "16",
    "hifi_gan.rates": ("256",),
    "hifi_gan.kernels": ("512",),
    "optim.warmup": "1",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A corpus, `data`, and a HiFi-GAN trained on it for two updates, `run`."""
    folder = tmp_path_factory.mktemp("vocoder")
    write_corpus(folder / "data", 8)
    write_corpus(folder / "data", 3, split="test", first=20)
    with pytest.MonkeyPatch.context() as patch:
        find_one_device(patch)
        assert cli.main(words(folder, "run")) == 0
    return folder


def words(folder, name, *more):
    named = [("vocoder." if key.startswith("hifi") else "") + key for key in TINY]
    flags = zip(named, TINY.values(), strict=True)
    small = [
        word
        for key, value in flags
        for word in (f"--{key}", *([value] if isinstance(value, str) else value))
    ]
    places = ["--data", str(folder / "data"), "--workdir", str(folder / name), "--steps", "2"]
    return ["train", "vocoder_hifi_gan", *places, "--compiled", "", *small, *more]


def test_training_writes_what_each_term_came_to(folder):
    found = [json.loads(x) for x in (folder / "run/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in found] == [1, 2]
    assert all(line["loss"] == pytest.approx(45 * line["mel"], rel=1e-5) for line in found)
    assert {"adversarial", "feature", "discriminator"} <= found[0].keys()


def test_the_run_makes_sound_of_mel(folder):
    spec, synthesize = load_vocoder(str(folder / "run"))
    assert (spec.kind, spec.rate, spec.hop) == ("hifi_gan", 16_000, 256)
    mel = np.random.default_rng(0).normal(-3, 1, (5, 80)).astype(np.float32)
    wave = synthesize(mel)
    assert wave.shape == (5 * 256,) and np.isfinite(wave).all() and wave.std() > 0


def test_the_vocoder_goes_out_without_its_discriminators(folder, tmp_path, capsys):
    assert cli.main(["convert", "export", str(folder / "run"), str(tmp_path / "hf")]) == 0
    capsys.readouterr()
    tensors = safetensors.numpy.load_file(tmp_path / "hf/model.safetensors")
    assert tensors["conv_pre.weight"].shape == (16, 80, 7)
    config = json.loads((tmp_path / "hf/config.json").read_text())
    assert (config["architectures"], config["upsample_rates"]) == (["SpeechT5HifiGan"], [256])
    assert not any("discriminator" in name for name in tensors)


def test_it_goes_on_from_where_it_was_and_starts_another(folder, monkeypatch, capsys):
    find_one_device(monkeypatch)
    again = words(folder, "other", "--init", str(folder / "run"), "--optim.lr", "0")
    assert cli.main(again) == 0
    assert losses(folder / "other")[1] < losses(folder / "run")[1]
    said = refused(words(folder, "run", "--adversarial.mel", "3"), capsys)
    assert "adversarial.mel=3.0 (it has 45.0)" in said


@pytest.mark.parametrize("command", ["transcribe", "evaluate", "generate", "plan", "logits"])
def test_what_needs_a_decoder_says_so_in_one_line(folder, tmp_path, command, capsys):
    run, ids = str(folder / "run"), tmp_path / "ids.npy"
    np.save(ids, np.ones((1, 2), np.int32))
    given = {
        "transcribe": ["--run", run, str(folder / "data/audio/1.flac")],
        "evaluate": ["--run", run, "--data", str(folder / "data"), "--split", "test"],
        "generate": ["--checkpoint", run, "one"],
        "plan": ["vocoder", "--topology", "v5e:8x8"],
        "logits": ["--checkpoint", run, "--tokens", str(ids), "--out", str(tmp_path / "o.npy")],
    }[command]
    assert "vocoder" in refused([command, *given], capsys)


@pytest.mark.slow
def test_a_sweeps_cell_ends_with_the_held_out_mel(folder, tmp_path, monkeypatch):
    find_one_device(monkeypatch)
    run = spec.run({"preset": "vocoder"}, {})
    small = {
        "data.sources": [{"path": str(folder / "data")}],
        "data.t": 4,
        "data.b": 2,
        "optim.steps": 1,
        "vocoder.vocos.d": 8,
        "vocoder.vocos.f": 8,
        "vocoder.vocos.l": 1,
        "adversarial.periods": [2],
        "adversarial.period_channels": [4],
        "adversarial.resolutions": [],
    }
    run = spec.run({"preset": "vocoder"}, small)
    left = fit(run, str(tmp_path / "run"))
    found = final_eval.evaluate(left, pathlib.Path(tmp_path / "run"), Eval(split="test"))
    assert found["loss"] == pytest.approx(45 * found["mel"])
    assert (found["wer"], found["utterances"], found["step"]) == (None, 3, 1)
    assert found["params"] == vocoder_flops.generator_parameters(run)
    assert found["flops"] == vocoder_flops.vocoder_update_flops(run)


def test_a_sweep_costs_what_its_cells_compute(tmp_path):
    file = tmp_path / "two.py"
    file.write_text(
        'def cells():\n    return [{"preset": "vocoder", "optim.lr": x} for x in (1e-3, 2e-3)]'
    )
    sweep = spec.load(str(file), {})
    (one, _) = cost.plan_cells(sweep, "", 0.0, lambda _: 1e12)
    run = catalog.any_preset("vocoder")
    assert one["flops"] == vocoder_flops.vocoder_update_flops(run) * run.optim.steps
    assert one["hours"] == pytest.approx(one["flops"] / 1e12 / 3600)
    (pod, _) = cost.plan_cells(sweep, "v5e:8x8", 0.0)
    assert pod["hours"] == pytest.approx(one["flops"] / (64 * 197e12) / 3600)
    with pytest.raises(Mistake, match="preset=vocoder: has no decoder to budget for"):
        budgets.chinchilla([{"preset": "vocoder"}], [20.0], budgets.RowShares(0.8, 0.9))
