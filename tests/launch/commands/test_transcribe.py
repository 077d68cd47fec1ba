import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
import soundfile

from launch import cli
from melllm_jax.checkpoints import run_folder
from melllm_jax.config.model import ModelSpec
from melllm_jax.config.overrides import to_json
from tests.support.runs import compiled_once, refused, two_updates

once = pytest.fixture(scope="module", autouse=True)(compiled_once)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A folder with a run of two updates."""
    folder = tmp_path_factory.mktemp("run")
    two_updates(folder)
    return folder / "run"


@pytest.fixture
def files(tmp_path):
    """The same half second of noise as wav, flac, mp3 and ogg."""
    wave = np.random.default_rng(0).normal(0, 0.1, 8000).astype(np.float32)
    paths = [tmp_path / f"sound.{kind}" for kind in ("wav", "flac", "mp3", "ogg")]
    for path in paths:
        soundfile.write(path, wave, 16_000)
    return [str(path) for path in paths]


def transcribe(run, *more):
    return ["transcribe", "--run", str(run), *more]


def test_transcribe_reads_every_kind_of_file_in_order_as_json(run, files, capsys):
    assert cli.main(transcribe(run, "--batch", "8", "--json", *files)) == 0
    assert jax.sharding.get_mesh().empty
    said = capsys.readouterr()
    found = json.loads(said.out)["transcripts"]
    assert said.err == ""
    assert [transcript["id"] for transcript in found] == files
    for transcript in found:
        assert transcript["seconds"] == pytest.approx(0.5, abs=0.08)  # mp3 pads its frames
        assert set(transcript) == {"id", "text", "seconds", "looped", "cut"}
    assert found[0]["text"] == found[1]["text"]  # wav and flac hold the same samples


def test_transcribe_says_a_line_a_file(run, files, capsys):
    assert cli.main(transcribe(run, *files[:2])) == 0
    names = [line.partition("\t")[0] for line in capsys.readouterr().out.splitlines()]
    assert names == files[:2]


def test_transcribe_of_one_file_says_its_text_alone(run, files, capsys):
    assert cli.main(transcribe(run, files[0])) == 0
    alone = capsys.readouterr().out
    assert alone.count("\n") == 1
    assert files[0] not in alone


def test_an_import_transcribes_as_the_run_of_its_weights_does(run, files, tmp_path, capsys):
    words = ["--dtype", "float32", "--batch", "8", *files[:2]]
    assert cli.main(transcribe(run, *words)) == 0
    expected = capsys.readouterr().out
    imported = shutil.copytree(run, tmp_path / "import")
    cfg = run_folder.read_run(str(run))
    text = dataclasses.replace(cfg.text, tokenizer="bytes")
    spec = ModelSpec(cfg.model, cfg.mel, text, cfg.lora)
    (imported / run_folder.SPEC).write_text(to_json(spec))
    (imported / run_folder.RUN).unlink()
    assert cli.main(transcribe(imported, *words[2:])) == 0
    assert capsys.readouterr().out == expected


@pytest.mark.parametrize(
    ("name", "content", "rule"),
    [
        ("none.wav", None, "no such file"),
        ("noise.wav", b"no sound at all", "is no sound"),
        ("empty.wav", b"", "holds no byte"),
    ],
)
def test_transcribe_refuses_what_is_no_audio(run, tmp_path, capsys, name, content, rule):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    said = refused(transcribe(run, str(tmp_path / name)), capsys)
    assert said.startswith(f"{tmp_path / name}: ")
    assert rule in said


@pytest.mark.parametrize(
    ("rate", "seconds", "rule"),
    [
        (4000, 0.5, "sample rate 4000: must be from 8000 to 48000 Hz"),
        (16_000, 9.0, "more than the row of data.t=64 that the model was trained on"),
    ],
)
def test_transcribe_refuses_audio_that_does_not_fit(run, tmp_path, capsys, rate, seconds, rule):
    path = tmp_path / "short.wav"
    soundfile.write(path, np.zeros(int(rate * seconds), np.float32), rate)
    assert rule in refused(transcribe(run, str(path)), capsys)


def test_transcribe_without_a_checkpoint_is_refused(run, files, tmp_path, capsys):
    run_folder.claim(str(tmp_path / "run"), run_folder.read_run(str(run)))
    said = refused(transcribe(tmp_path / "run", files[0]), capsys)
    assert said.endswith("checkpoints: holds no checkpoint")
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["run.json"]


@pytest.mark.parametrize(
    ("words", "rule"),
    [
        (["--run", "nowhere", "FILE"], "run=nowhere: holds no run.json"),
        (["--run", "nowhere"], "files: name at least one audio file"),
        (["FILE"], "--run"),
        (["--run", "nowhere", "--batch", "0", "FILE"], "batch=0: must be positive"),
    ],
    ids=lambda x: " ".join(x) if isinstance(x, list) else "",
)
def test_transcribe_refuses_what_it_cannot_start_with(files, capsys, words, rule):
    words = [files[0] if word == "FILE" else word for word in words]
    assert rule in refused(["transcribe", *words], capsys)
