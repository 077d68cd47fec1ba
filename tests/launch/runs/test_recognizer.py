"""A small Whisper, imported: transcribed with, evaluated and asked from Python; what it refuses."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import soundfile

from launch import api, cli
from launch.evaluation.score_split import score_split
from melllm_jax.checkpoints import run_folder
from melllm_jax.config.overrides import to_json
from melllm_jax.errors import Mistake
from melllm_jax.inference.sampling import DecodingOptions
from tests.support import phi_files, whisper_files
from tests.support.corpora import write_corpus
from tests.support.runs import compiled_once, compiled_quickly, one_device, refused

once = pytest.fixture(scope="module", autouse=True)(compiled_once)
quick = pytest.fixture(scope="module", autouse=True)(compiled_quickly)
alone = pytest.fixture(scope="module", autouse=True)(one_device)
WAVE = np.random.default_rng(0).normal(0, 0.1, 20_000).clip(-0.9, 0.9).astype(np.float32)
RULE = "holds a Whisper, which transcribes and does nothing else"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A Whisper of random weights imported, `ours`; a corpus; sounds of 1.25 and 0.5 s."""
    folder = tmp_path_factory.mktemp("whisper")
    whisper_files.write(folder / "hf")
    phi_files.told("import", folder / "hf", folder / "ours")
    task = {"task": "count", "instruction": "How many?", "answer": "two"}
    write_corpus(folder / "data", 4, split="test", seconds=0.5, changes={3: task})
    soundfile.write(folder / "long.wav", WAVE, 16_000, subtype="FLOAT")
    soundfile.write(folder / "short.wav", WAVE[:8_000], 16_000, subtype="FLOAT")
    return folder


@pytest.fixture(scope="module")
def model(folder):
    return api.load(folder / "ours")


def test_a_whisper_transcribes_alike_from_command_line_and_python(folder, model, capsys):
    files = [str(folder / name) for name in ("long.wav", "short.wav")]
    words = ["transcribe", "--run", str(folder / "ours"), "--batch", "8", "--json", *files]
    assert cli.main(words) == 0
    told = json.loads(capsys.readouterr().out)["transcripts"]
    assert [x["id"] for x in told] == files
    assert [x["seconds"] for x in told] == [1.25, 0.5]
    assert model.transcribe(files, batch=8) == [x["text"] for x in told]
    assert model.transcribe(WAVE[:8_000], rate=16_000, batch=8) == told[1]["text"]
    assert told[1]["text"] != ""
    # Windows of one second: the long one is two of them, each as if it were alone.
    parts = model.transcribe([WAVE[:16_000], WAVE[16_000:]], rate=16_000, batch=8)
    assert told[0]["text"] == " ".join(part for part in parts if part)


def test_a_whisper_is_evaluated_as_a_run_is(folder):
    scored = score_split(
        str(folder / "ours"),
        str(folder / "data"),
        "test",
        batch=8,
        normalizer="none",
        decoding=DecodingOptions(extra=0, per_second=8.0),
    )
    summary = scored.summary
    assert (summary["utterances"], summary["dtype"], summary["step"]) == (3, "float32", 0)
    assert summary["rtfx"] > 0
    assert scored.hypotheses == folder / "ours/eval/data-test.jsonl"
    lines = [json.loads(line) for line in scored.hypotheses.read_text().splitlines()]
    assert {line["id"] for line in lines if "rejected" not in line} == {"id0", "id1", "id2"}
    assert summary["rejected"] == {"asks for no transcript": 1}


def test_a_whisper_is_asked_for_nothing_else(folder, model, capsys):
    ours = folder / "ours"
    np.save(folder / "ids.npy", np.arange(3))
    for words in (
        ["generate", "--checkpoint", ours, "Go."],
        ["logits", "--checkpoint", ours, "--tokens", folder / "ids.npy", "--out", folder / "x.npy"],
        ["train", "digits", "--init", ours, "--data", folder / "data", "--workdir", folder / "new"],
    ):
        assert RULE in refused(words, capsys)
    assert not (folder / "new").exists()
    for ask in (model.generate, model.logits, model.prompt):
        with pytest.raises(Mistake, match=RULE):
            ask("Go.")


def test_sound_that_cannot_be_heard_is_refused(folder, model, capsys):
    soundfile.write(folder / "slow.wav", WAVE, 4_000)
    soundfile.write(folder / "empty.wav", WAVE[:100], 16_000)
    for name, rule in (("slow.wav", "sample rate 4000: must be"), ("empty.wav", "100 samples")):
        words = ["transcribe", "--run", folder / "ours", folder / name]
        assert rule in refused(words, capsys)
    with pytest.raises(Mistake, match="rate=7000: must be from 8000 to 48000 Hz"):
        model.transcribe(WAVE, rate=7_000)


def test_ready_mel_is_refused_since_a_whisper_hears_what_comes_after(folder, tmp_path, capsys):
    words = ["prepare", str(folder / "data"), "--out", str(tmp_path / "shards"), "--store", "mel"]
    words += ["--mel.kind", "whisper", "--mel.normalize", "none", "--runner", "inline"]
    assert cli.main(words) == 0
    words = ["evaluate", "--run", folder / "ours", "--data", tmp_path / "shards"]
    assert "holds ready mel: a Whisper needs the sound" in refused(words, capsys)


def test_weights_that_are_others_than_the_config_says_do_not_go_out(folder, tmp_path, capsys):
    copied = shutil.copytree(folder / "ours", tmp_path / "ours")
    spec = run_folder.read_whisper(str(copied))
    wider = dataclasses.replace(spec, decoder=dataclasses.replace(spec.decoder, f=48))
    (copied / run_folder.WHISPER).write_text(to_json(wider))
    said = refused(["convert", "export", copied, tmp_path / "back"], capsys)
    assert "decoder.blocks.mlp.down is (3, 40, 16), its config says (3, 48, 16)" in said
    assert not (tmp_path / "back").exists()
