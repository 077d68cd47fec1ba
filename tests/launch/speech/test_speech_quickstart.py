"""Quickstart for speech, all four steps at the smallest sizes, and again."""

import contextlib

import pytest

from launch.speech import speech_quickstart
from melllm_jax.config.overrides import override
from melllm_jax.presets import catalog
from tests.support.runs import compiled_once, compiled_quickly, one_device

pytest.importorskip("espeakng_loader")
once = pytest.fixture(scope="module", autouse=True)(compiled_once)
quick = pytest.fixture(scope="module", autouse=True)(compiled_quickly)
alone = pytest.fixture(scope="module", autouse=True)(one_device)
READER = {"d": 16, "n": 2, "k": 2, "h": 8, "f": 16, "l": 1}
HEAD = {"prenet": 8, "hidden": 8, "channels": 4, "convolutions": 2}
VOCODER = {"d": 8, "f": 16, "l": 1}
ADVERSARIAL = {"periods": [2], "period_channels": [2, 2, 2, 2, 2], "resolution_channels": 2}


@pytest.fixture
def smallest(monkeypatch):
    """Presets and corpus as small as they get, of two updates."""
    reader = {f"model.{name}": size for name, size in READER.items()}
    reader |= {f"model.mel_head.{name}": size for name, size in HEAD.items()}
    vocoder = {f"vocoder.vocos.{name}": size for name, size in VOCODER.items()}
    vocoder |= {f"adversarial.{name}": size for name, size in ADVERSARIAL.items()}
    common = {"data.b": 2, "optim.steps": 2, "optim.warmup": 1}
    presets = {
        "quickstart_tts": override(catalog.preset("quickstart_tts"), reader | common),
        "quickstart_vocoder": override(
            catalog.any_preset("quickstart_vocoder"), vocoder | common | {"data.t": 8}
        ),
    }
    monkeypatch.setattr(catalog, "preset", presets.__getitem__)
    monkeypatch.setattr(catalog, "any_preset", presets.__getitem__)
    monkeypatch.setattr(speech_quickstart, "COUNTS", {"train": 60, "dev": 2, "test": 2})


@pytest.mark.slow
def test_it_trains_speaks_and_says_how_far_that_is_and_goes_on(smallest, tmp_path, capsys):
    steps = []

    @contextlib.contextmanager
    def timer(what):
        steps.append(what)
        yield

    speech_quickstart.run(tmp_path, 0, timer)
    out = capsys.readouterr().out
    assert len(steps) == 4
    assert "2 sentences it never saw: " in out
    assert "dB from the voice's own" in out
    assert (tmp_path / "mel.png").read_bytes().startswith(b"\x89PNG")
    spoken = tmp_path / "spoken" / "spoken.jsonl"
    before = spoken.read_text()
    assert len(before.splitlines()) == 2
    speech_quickstart.run(tmp_path, 0, timer)
    assert spoken.read_text() == before
