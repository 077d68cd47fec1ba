"""The library from Python says what the commands say, and refuses what they refuse."""

import itertools
import json

from etils import epath
import jax
import numpy as np
import pytest
import soundfile

from data_pipelines.loader import pipeline
from launch import api, cli
from melllm_jax.checkpoints import run_folder
from tests.support.runs import (
    SMALL,
    ListStream,
    arguments,
    batches_of,
    compiled_once,
    compiled_quickly,
    generated_once,
    losses,
    one_device,
    traced_once,
    two_updates,
)

once = pytest.fixture(scope="module", autouse=True)(compiled_once)
held = pytest.fixture(scope="module", autouse=True)(generated_once)
quick = pytest.fixture(scope="module", autouse=True)(compiled_quickly)
alone = pytest.fixture(scope="module", autouse=True)(one_device)
traced = pytest.fixture(scope="module", autouse=True)(traced_once)
CHANGES = {name: int(value) if value.isdigit() else value for name, value in SMALL.items()}
WAVE = np.random.default_rng(0).normal(0.0, 0.1, 8000).clip(-0.9, 0.9).astype(np.float32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A corpus `data`, a `run` of two updates over it, and two sounds."""
    folder = tmp_path_factory.mktemp("api")
    two_updates(folder)
    soundfile.write(folder / "a.wav", WAVE, 16_000, subtype="FLOAT")
    soundfile.write(folder / "b.flac", WAVE[::-1], 16_000)
    return folder


@pytest.fixture(scope="module")
def model(folder):
    return api.load(folder / "run")


def test_model_transcribes_as_the_command_does(folder, model, capsys):
    files = [str(folder / "a.wav"), str(folder / "b.flac")]
    assert cli.main(["transcribe", "--run", str(folder / "run"), "--json", *files]) == 0
    told = [x["text"] for x in json.loads(capsys.readouterr().out)["transcripts"]]
    assert model.transcribe(files) == told
    assert model.transcribe(epath.Path(files[0])) == told[0]
    assert model.transcribe(WAVE, rate=16_000) == told[0]
    assert model.transcribe([jax.numpy.asarray(WAVE)], rate=16_000) == told[:1]
    assert model.transcribe([]) == []
    cut = model.transcripts(
        WAVE, rate=16_000, decoding=api.DecodingOptions(per_second=0.0, extra=1)
    )
    assert [(t.id, t.seconds, t.cut) for t in cut] == [("samples", 0.5, True)]


def test_model_generates_as_the_command_does(folder, model, capsys):
    words = ["--checkpoint", str(folder / "run"), "--tokens", "8", "--json", "one", "two"]
    assert cli.main(["generate", *words]) == 0
    told = [json.loads(line)["text"] for line in capsys.readouterr().out.splitlines()]
    assert model.generate(["one", "two"], tokens=8) == told
    assert model.generate("one", tokens=8) == told[0]
    with pytest.raises(api.Mistake, match="tokens=0: must be positive"):
        model.generate("one", tokens=0)


def test_model_is_the_one_of_its_folder(folder, model):
    assert model.run == run_folder.read_run(str(folder / "run"))
    assert (model.folder, model.step, model.spec.model) == (folder / "run", 2, model.run.model)
    assert model.tokenizer.decode(model.tokenizer.encode("two")) == "two"
    assert model.params["embed"].shape == (300, 8)
    assert {x.dtype for x in model.params.values()} == {np.dtype("float32")}


def test_logits_are_those_of_the_command_with_sound_and_without(folder, model, tmp_path):
    asked = model.prompt(folder / "a.wav", "one")
    for ids, sounds in ((np.array([[1, 2, 3], [4, 5, 6]]), []), (asked, [folder / "a.wav"])):
        np.save(tmp_path / "ids.npy", ids)
        words = ["--checkpoint", folder / "run", "--tokens", tmp_path / "ids.npy"]
        words += ["--out", tmp_path / "out.npy", *(["--audio", *sounds] if sounds else [])]
        assert cli.main(["logits", *map(str, words)]) == 0
        found, due = model.logits(ids, sounds), np.load(tmp_path / "out.npy")
        assert (found.dtype, found.shape) == (np.float32, (*ids.shape, 300))
        np.testing.assert_allclose(found, due, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(model.logits(asked, WAVE, rate=16_000), found)
    assert list(asked[-4:]) == [model.tokenizer.special("<|assistant|>"), *b"one"]


def test_train_does_what_the_command_does_and_goes_on(folder, tmp_path):
    words = arguments(folder / "data", tmp_path / "cli", steps=4)
    assert cli.main(words) == 0
    changes = CHANGES | {"optim.steps": 4, "checkpoints.every": 2}
    left = api.train("digits", folder / "data", tmp_path / "api", changes)
    assert losses(tmp_path / "api") == losses(tmp_path / "cli")
    assert (left.steps, left.loss, left.stopped) == (4, losses(tmp_path / "cli")[4], False)
    assert left.run == run_folder.read_run(str(left.folder))
    assert api.train(left.run, None, left.folder).loss == left.loss


def test_batches_are_those_of_training_and_end_with_the_loop(folder, model, monkeypatch):
    given = batches_of(model.run)
    due = list(itertools.islice(given, 2))
    given.close()
    found = api.batches(model.run)
    for batch in due:
        for left, right in zip(next(found), batch, strict=True):
            np.testing.assert_array_equal(left, right)
    found.close()
    stream = ListStream(due)
    closed = []
    monkeypatch.setattr(stream, "close", lambda: closed.append(True))
    monkeypatch.setattr(pipeline, "train_batches", lambda run, tokenizer: stream)
    for _ in api.batches(model.run):
        break
    assert closed


@pytest.mark.parametrize(
    ("data", "due"),
    [
        ("a", [("a", 1.0)]),
        (epath.Path("lang=en"), [("lang=en", 1.0)]),
        (["a", "b"], [("a", 1.0), ("b", 1.0)]),
        ({"a": 3, "b": 0.5}, [("a", 3.0), ("b", 0.5)]),
        (api.Source("a", 2.0, hours=10.0), [("a", 2.0)]),
        (None, []),
    ],
    ids=str,
)
def test_configure_takes_one_corpus_or_several_with_shares(data, due):
    run = api.configure("digits", data, {"optim.steps": 5})
    assert [(source.path, source.weight) for source in run.data.sources] == due
    assert run.optim.steps == 5


def test_configure_takes_over_the_model_that_a_run_starts_from(folder, model):
    run = api.configure("digits", folder / "data", init=folder / "run")
    assert (run.model.d, run.mel, run.init.path) == (8, model.run.mel, str(folder / "run"))


@pytest.mark.parametrize(
    ("call", "rule"),
    [
        (lambda f, m: api.load(f / "none"), "holds neither model.json nor run.json"),
        (
            lambda f, m: api.load(f / "run", devices=jax.local_devices()[:3]),
            "devices=3: must divide",
        ),
        (lambda f, m: api.configure("digit"), "preset=digit: is none of"),
        (lambda f, m: api.configure("digits", None, {"model.dd": 1}), "unknown field model.dd=1"),
        (lambda f, m: api.configure("digits", {"a": -1}), "data.sources.weight=-1.0: must be"),
        (lambda f, m: api.configure("digits", {"a": "x"}), "data.sources.weight='x': must be of"),
        (lambda f, m: api.batches("digits"), "data: give at least one corpus with --data DIR"),
        (lambda f, m: api.batches("digits", f / "no"), "no: is no folder"),
        (lambda f, m: api.train("digits", f, f / "new"), "holds neither index.json nor SPLIT"),
        (lambda f, m: m.transcribe(f / "none.wav"), "none.wav: no such file"),
        (lambda f, m: m.transcribe(WAVE), "rate: samples need theirs, in Hz"),
        (lambda f, m: m.transcribe(WAVE, rate=4000), "rate=4000: must be from 8000 to 48000 Hz"),
        (lambda f, m: m.transcribe(WAVE[None], rate=8000), "samples: are float32 [1, 8000]: must"),
        (lambda f, m: m.transcribe(WAVE.astype(int), rate=8000), "samples: are int64 [8000]: must"),
        (lambda f, m: m.transcribe(WAVE * np.nan, rate=8000), "samples: reach nan: full scale"),
        (lambda f, m: m.transcribe(WAVE[:0], rate=16_000), "audio of 0 samples"),
        (lambda f, m: m.transcribe(np.tile(WAVE, 20), rate=16_000), "more than the row of data.t"),
        (lambda f, m: m.transcribe(WAVE, rate=16_000, batch=0), "batch=0: must be positive"),
        (lambda f, m: m.logits([1, 300]), "tokens: run from 1 to 300: must lie in 0…299"),
        (lambda f, m: m.logits([1, 2], WAVE, rate=16_000), "audio: clip 1 takes"),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_a_mistake_is_said_as_the_command_says_it(folder, model, call, rule):
    with pytest.raises(api.Mistake) as caught:
        call(folder, model)
    assert rule in str(caught.value)
    assert not (folder / "new").exists()


def test_every_name_that_is_handed_on_is_there():
    assert {name for name in api.__all__ if not hasattr(api, name)} == set()
