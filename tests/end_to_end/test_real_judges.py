"""A natural voice and espeak-ng's, scored by the real Whisper, and by the real judges if there."""

import importlib.metadata
import json
import os
import pathlib
import signal

import pytest
import soundfile

from data_pipelines.synthetic import espeak, natural_voice
from tests.support import phi_files
from tests.support.runs import done, reached, started

pytestmark = pytest.mark.slow
TEXTS = (
    "The old lighthouse keeper climbed the stairs before the storm arrived.",
    "Nobody expected the train to leave on time.",
    "Fresh bread smells wonderful when it comes out of the oven.",
    "They painted the kitchen a bright shade of yellow.",
    "Winter came early, and the roads were covered with snow.",
    "The doctor asked him to take a deep breath and hold it.",
)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Manifests of six sentences, natural.jsonl and robot.jsonl, and the Whisper imported."""
    folder = pathlib.Path(os.environ.get("MELLLM_MODELS", ""), "whisper-tiny.en")
    if "MELLLM_MODELS" not in os.environ or not folder.is_dir():
        pytest.skip("MELLLM_MODELS names no folder with whisper-tiny.en")
    pytest.importorskip("hibari", reason="the extra natural brings the voice")
    pytest.importorskip("espeakng_loader", reason="the extra demo brings espeak-ng")
    place = tmp_path_factory.mktemp("judged")
    phi_files.told("import", folder, place / "whisper")
    voices = {
        "natural": natural_voice.speak,
        "robot": lambda text: espeak.speak(text, "en-us", 175, 50),
    }
    for name, speak in voices.items():
        rows = []
        for number, text in enumerate(TEXTS):
            file = f"{name}{number}.wav"
            soundfile.write(place / file, speak(text), 16_000, subtype="FLOAT")
            row = {"id": str(number), "text": text, "audio_filepath": file}
            rows.append(row | {"reference": f"natural{number}.wav", "voice": "natural0.wav"})
        (place / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return place


def words(place, name):
    return ["evaluate", "--speech", place / f"{name}.jsonl", "--judge", place / "whisper"]


def scores(place, name):
    status, out, said = done([*map(str, words(place, name)), "--json"])
    assert status == 0, said
    return json.loads(out)


def test_a_natural_voice_is_better_than_a_robot_by_every_score(place):
    natural, robot = scores(place, "natural"), scores(place, "robot")
    assert natural["wer"]["wer"] < 0.05 < robot["wer"]["wer"]
    assert natural["mcd"]["mean"] == 0 and 6 < robot["mcd"]["mean"] < 14
    assert natural["failures"]["files"] == 0
    for name, package in (("mos", "distillmos"), ("similarity", "Resemblyzer")):
        if any(importlib.metadata.distributions(name=package)):
            assert natural[name]["files"] == robot[name]["files"] == len(TEXTS)
        else:
            assert "is not installed" in natural[name]["error"]
    if "mean" in natural["mos"]:
        assert robot["mos"]["mean"] < 3 < 4 < natural["mos"]["mean"]
    if "mean" in natural["similarity"]:
        assert robot["similarity"]["mean"] < 0.7 < 0.8 < natural["similarity"]["mean"]


def test_killed_scoring_goes_on_where_it_was(place, tmp_path):
    out, more = tmp_path / "scores", ["--batch", "1"]
    given = [*map(str, words(place, "natural")), *more, "--out", str(out)]
    kept = out / "measured/speech.jsonl"
    process = started(given)
    reached(process, lambda: kept.exists() and kept.read_bytes().count(b"\n") >= 2)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    before = kept.read_bytes()
    whole = before.count(b"\n")
    assert not (out / "scores.json").exists()
    status, _, said = done(given)
    assert status == 0, said
    assert f"hearing {len(TEXTS) - min(whole, len(TEXTS))} of {len(TEXTS)} files" in said
    assert kept.read_bytes().startswith(before)
