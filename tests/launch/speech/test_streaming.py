"""Speech in parts: the same sound as all at once, to a file and to standard output."""

import dataclasses
import io
import json
import sys
import types

import jax.numpy as jnp
import numpy as np
import pytest
import soundfile

from data_pipelines.audio.file_io import decode_sound
from launch import cli
from launch.runs.run_inputs import complete_run
from launch.speech.run_speaker import SpeakerChoice
from launch.speech.streaming import open_streaming_speaker, take_parts
from melllm_jax.checkpoints import run_folder
from melllm_jax.checkpoints.checkpointer import Checkpoints
from melllm_jax.config.features import Mel
from melllm_jax.config.overrides import override, to_json
from melllm_jax.config.run import CheckpointIntervals
from melllm_jax.config.vocoder import HifiGan, VocoderSpec
from melllm_jax.inference.synthesize import SpeakingOptions
from melllm_jax.objectives.run_objective import objective_of
from melllm_jax.vocoders.stored_vocoder import make_vocoder
from tests.launch.commands.test_speak import LIMIT, SPEAKING
from tests.support import models
from tests.support.runs import (
    compiled_once,
    compiled_quickly,
    corpus,
    generated_once,
    one_device,
    refused,
    saved,
    tiny,
)

once = pytest.fixture(scope="module", autouse=True)(compiled_once)
held = pytest.fixture(scope="module", autouse=True)(generated_once)
quick = pytest.fixture(scope="module", autouse=True)(compiled_quickly)
alone = pytest.fixture(scope="module", autouse=True)(one_device)
FLOOR = -1.0  # of the model's mel; that of its vocoder is a little higher
SMALL = HifiGan(
    channels=4, rates=(16, 16), kernels=(32, 32), resblock_kernels=(3,), dilations=((1,),)
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """`run`, which speaks causally; `vocoder`, causal as well, and `late`, which is not."""
    folder = tmp_path_factory.mktemp("streamed")
    causal = SPEAKING | {
        "mel.kind": "speecht5",
        "mel.m": 80,
        "model.mel_head.causal": True,
        "mel.floor": FLOOR,
    }
    run = complete_run(override(tiny(corpus(folder / "data"), steps=1), causal)).run
    with models.one_device():
        saved(folder / "run", run, models.drawn(objective_of(run).build)[1])
    for name, early in (("vocoder", True), ("late", False)):
        write_vocoder(folder / name, run.mel, early)
    return folder


def write_vocoder(folder, mel, causal):
    """A small random HiFi-GAN of a run's mel, as an import leaves it."""
    sizes = dataclasses.replace(SMALL, causal=causal)
    read = Mel(mel.kind, m=mel.m, normalize="none", floor=FLOOR / 2)
    spec = VocoderSpec("hifi_gan", read, sizes)
    folder.mkdir()
    (folder / run_folder.VOCODER).write_text(to_json(spec))
    with models.one_device():
        values = models.drawn(lambda rngs: make_vocoder(rngs, spec))[1]
        step = {"step": jnp.int32(1)}
        with Checkpoints(str(folder / run_folder.CHECKPOINTS), CheckpointIntervals()) as kept:
            kept.save(1, values, step, step)


def words(folder, out, *more, vocoder="vocoder"):
    own = ["--run", folder / "run", "--vocoder", folder / vocoder, "--out", out]
    return ["speak", "hello there", *map(str, (*own, *LIMIT, *more))]


def test_parts_are_the_sound_made_at_once(folder, capsys, tmp_path):
    whole, parts = tmp_path / "a.wav", tmp_path / "b.wav"
    assert cli.main(words(folder, whole)) == 0
    assert cli.main(words(folder, parts, "--stream", "0.16")) == 0
    assert "the first of it after" in capsys.readouterr().out
    one, other = (soundfile.read(x, dtype="int16")[0].astype(int) for x in (whole, parts))
    assert len(one) == len(other) > 0
    assert np.abs(one - other).max() <= 1


def test_no_frame_is_below_the_floor_of_its_mel(folder):
    options = SpeakingOptions(extra=0.5, per_letter=0.0)
    paths = {name: str(folder / name) for name in ("run", "vocoder")}
    choice = SpeakerChoice(**paths, options=options)
    with open_streaming_speaker(choice) as speak:
        speech = speak("hello there", 0.16)
        take_parts(speech)
    assert speech.spoken.mel.min() == np.float32(FLOOR) < np.median(speech.spoken.mel)


def test_json_tells_when_the_first_sound_came(folder, capsys, tmp_path):
    assert cli.main(words(folder, tmp_path / "a.wav", "--stream", "0.16", "--json")) == 0
    found = json.loads(capsys.readouterr().out)
    assert 0 < found["first_sound_seconds"] <= found["seconds"]


def test_standard_output_takes_a_wav_as_it_comes(folder, tmp_path, monkeypatch):
    taken = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", types.SimpleNamespace(buffer=taken, flush=lambda: None))
    assert cli.main(words(folder, "-", "--stream", "0.16")) == 0
    path = tmp_path / "piped.wav"
    path.write_bytes(taken.getvalue())
    assert taken.getvalue()[:4] == b"RIFF"
    assert decode_sound(path).wave.size == (len(taken.getvalue()) - 44) // 2


@pytest.mark.parametrize(
    ("more", "vocoder", "message"),
    [
        (["--stream", "0.1"], "late", "causal=False: it reads later frames: no sound by parts"),
        (["--stream", "-1"], "vocoder", "stream=-1: must be above 0 seconds"),
        ([], "nowhere", "vocoder="),
    ],
)
def test_mistakes_take_one_line(folder, more, vocoder, message, capsys, tmp_path):
    out = tmp_path / "a.wav"
    assert message in refused(words(folder, out, *more, vocoder=vocoder), capsys)
    assert not out.exists()


def test_griffin_lim_cannot_stream_and_standard_output_takes_nothing_else(folder, capsys):
    own = ["speak", "hi", "--run", folder / "run", "--out"]
    two = [*own[:2], "ho", *own[2:], "a.wav", "--stream", "0.1"]
    assert "stream=0.1: speaks one text, not 2" in refused(two, capsys)
    assert "give --vocoder" in refused([*own, "a.wav", "--stream", "0.1"], capsys)
    assert "out=-: takes sound as it comes" in refused([*own, "-"], capsys)
