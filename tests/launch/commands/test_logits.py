"""`melllm logits`: what the model itself says, in a file; and what it refuses, in one line."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import soundfile

from data_pipelines.audio import file_io
from data_pipelines.audio.log_mel import normalized_log_mel
from data_pipelines.examples.interleave import Clip, Words, interleave
from launch import cli
from melllm_jax import sharding
from melllm_jax.batch import Batch
from melllm_jax.checkpoints import integrity, run_folder, weight_store
from melllm_jax.models.parameters import abstract_model
from melllm_jax.models.speech_lm import SpeechLM
from tests.support import models, phi_files
from tests.support.runs import compiled_once, compiled_quickly, refused

once = pytest.fixture(scope="module", autouse=True)(compiled_once)
quick = pytest.fixture(scope="module", autouse=True)(compiled_quickly)
IDS = [5, 9, 0, 63, 21, 7]
AUDIO = 63  # the placeholder in the imported config of "transformers"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two imported checkpoints, `text` and `speech`, and two sounds."""
    folder = tmp_path_factory.mktemp("logits")
    for kind, name in (("text", "text"), ("transformers", "speech")):
        phi_files.make(folder / f"hf-{name}", kind)
        phi_files.told("import", folder / f"hf-{name}", folder / name)
    for name, samples in (("short", 4000), ("long", 9000)):
        wave = np.random.default_rng(samples).normal(0.0, 0.1, samples)
        soundfile.write(folder / f"{name}.wav", wave.astype(np.float32), 16_000)
    return folder


@pytest.fixture
def ids(tmp_path):
    """A function that writes ids into a file and says where."""

    def write(tokens, dtype=np.int32):
        np.save(tmp_path / "ids.npy", np.array(tokens, dtype))
        return tmp_path / "ids.npy"

    return write


def words(checkpoint, tokens, out, *more):
    given = ["--checkpoint", checkpoint, "--tokens", tokens, "--out", out, *more]
    return ["logits", *map(str, given)]


def logits(checkpoint, tokens, out, *more):
    """What the command writes."""
    assert cli.main(words(checkpoint, tokens, out, *more)) == 0
    return np.load(out)


def columns(*parts):
    """A batch of one row of words and clips."""
    row = interleave(parts, r=8, audio=AUDIO)
    t = len(row["tokens"])
    row |= {"segments": np.ones(t, np.int32), "positions": np.arange(t, dtype=np.int32)}
    row |= {"sources": np.zeros(t, np.int32)}
    return Batch(**{name: column[None] for name, column in row.items()})


def text_batch(tokens):
    """A batch of rows of words."""
    b, t = np.shape(tokens)
    none = np.zeros((b, t), np.int32)
    return Batch(
        tokens=np.array(tokens, np.int32),
        patches=np.zeros((b, t, 640), np.float32),
        frames=none,
        clips=none,
        segments=none + 1,
        positions=none + np.arange(t, dtype=np.int32)[None],
        loss_weight=none.astype(np.float32),
        sources=none,
    )


def directly(folder, batch, dtype=np.float32):
    """What the model of a checkpoint says to a batch, read without the command's own code."""
    spec = run_folder.read_spec(str(folder))
    stored = weight_store.WeightReader(integrity.newest_checkpoint(folder / "checkpoints"))
    with models.one_device():
        skeleton, shapes = abstract_model(
            lambda rngs: SpeechLM(spec.model, spec.mel, spec.lora, rngs=rngs)
        )
        mesh = jax.sharding.get_mesh()
        weights = {
            name: jax.device_put(
                stored.read(name).astype(dtype), jax.NamedSharding(mesh, x.sharding.spec)
            )
            for name, x in shapes.items()
        }
        model = skeleton.model(weights)
        return np.asarray(
            models.jitted(lambda m, b: m.logits(m(b)))(model, sharding.shard_batch(batch))
        )


def assert_close(found, due, most=1e-5):
    assert found.dtype == np.float32
    assert found.shape == due.shape
    assert np.abs(found - due).max() <= most * np.abs(due).max()


def test_logits_of_one_row_are_the_model_s_own(folder, ids, tmp_path, capsys):
    found = logits(folder / "text", ids(IDS), tmp_path / "out.npy")
    assert_close(found, directly(folder / "text", text_batch([IDS]))[0])
    assert capsys.readouterr().out == f"{tmp_path / 'out.npy'}: float32 [6, 64]\n"


def test_logits_of_rows_are_those_of_each_row_alone(folder, ids, tmp_path):
    rows = [IDS, IDS[::-1]]
    found = logits(folder / "text", ids(rows), tmp_path / "out")  # written under that very name
    assert_close(found, directly(folder / "text", text_batch(rows)))
    alone = logits(folder / "text", ids(rows[1:]), tmp_path / "out")
    assert_close(found[1:], alone)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int64, np.uint64])
def test_logits_take_ids_of_any_integer(folder, ids, tmp_path, dtype):
    due = logits(folder / "text", ids(IDS), tmp_path / "due.npy")
    found = logits(folder / "text", ids(IDS, dtype), tmp_path / "out.npy")
    np.testing.assert_array_equal(found, due)


def test_logits_with_sound_are_those_of_the_clips_at_their_placeholders(folder, ids, tmp_path):
    files = [folder / "short.wav", folder / "long.wav"]
    mel = run_folder.read_spec(str(folder / "speech")).mel
    short, long = (Clip(normalized_log_mel(file_io.decode_audio(str(file)), mel)) for file in files)
    batch = columns(Words((5, 9), 0.0), short, Words((21,), 0.0), long, Words((7,), 0.0))
    due = directly(folder / "speech", batch)[0]
    tokens = batch.tokens[0]
    found = logits(folder / "speech", ids(tokens), tmp_path / "out.npy", "--audio", *files)
    assert_close(found, due)
    swapped = np.where(tokens == AUDIO, 62, tokens)  # what stands there is never read
    more = ["--audio-token", 62, "--audio", *files]
    again = logits(folder / "speech", ids(swapped), tmp_path / "out.npy", *more)
    np.testing.assert_array_equal(again, found)


def test_logits_in_bfloat16_are_rounded_ones(folder, ids, tmp_path):
    found = logits(folder / "text", ids(IDS), tmp_path / "out.npy", "--dtype", "bfloat16")
    assert_close(found, directly(folder / "text", text_batch([IDS]), jnp.bfloat16)[0])
    exact = logits(folder / "text", ids(IDS), tmp_path / "out.npy")
    apart = np.abs(found - exact).max() / np.abs(exact).max()
    assert 1e-4 < apart < 0.1


def test_logits_as_json_are_one_object_that_says_where_they_are(folder, ids, tmp_path, capsys):
    logits(folder / "text", ids([IDS]), tmp_path / "out.npy", "--json")
    said = capsys.readouterr()
    told = {"out": str(tmp_path / "out.npy"), "shape": [1, 6, 64], "dtype": "float32"}
    assert json.loads(said.out) == told
    assert said.err == ""


@pytest.mark.parametrize(
    ("content", "rule"),
    [
        (None, "is no .npy of ids: "),
        (b"", "is no .npy of ids: "),
        (b"5 9 21", "is no .npy of ids: "),
        (np.array([{}]), "is no .npy of ids: Object arrays cannot be loaded"),
        (np.zeros((2, 3, 4), int), "must be [t] or [b t]"),
        (np.zeros((), int), "must be [t] or [b t]"),
        (np.zeros(3, np.float32), "tokens: are float32 [1, 3]: must be ids [b t]"),
        (np.zeros(0, int), "tokens: are int64 [1, 0]: must be ids [b t]"),
        (np.array([5, 64]), "tokens: run from 5 to 64: must lie in 0…63"),
        (np.array([-1, 5]), "tokens: run from -1 to 5: must lie in 0…63"),
    ],
    ids=["missing", "empty", "text", "pickle", "3d", "0d", "floats", "none", "beyond", "negative"],
)
def test_logits_refuse_what_is_no_ids(folder, tmp_path, capsys, content, rule):
    if isinstance(content, bytes):
        (tmp_path / "ids.npy").write_bytes(content)
    elif content is not None:
        np.save(tmp_path / "ids.npy", content, allow_pickle=True)
    given = words(folder / "text", tmp_path / "ids.npy", tmp_path / "out.npy")
    assert rule in refused(given, capsys)
    assert not (tmp_path / "out.npy").exists()


def test_logits_refuse_an_archive_of_arrays(folder, tmp_path, capsys):
    np.savez(tmp_path / "ids.npz", a=np.zeros(3, int))
    given = words(folder / "text", tmp_path / "ids.npz", tmp_path / "out.npy")
    assert "ids.npz: must be [t] or [b t]" in refused(given, capsys)


@pytest.mark.parametrize(
    ("name", "tokens", "more", "rule"),
    [
        ("text", IDS, ["--audio", "short.wav"], "short.wav: the model reads text alone"),
        ("speech", [5, 63, 7], ["--audio", "short.wav"], "audio: clip 1 takes 3 positions in a"),
        ("speech", [5, 7, 63], ["--audio", "none.wav"], "none.wav: no such file"),
        ("speech", [63] * 4, ["--audio", "short.wav"], "audio: the clips take 3 positions, the"),
        ("nowhere", IDS, [], "nowhere: holds neither model.json nor run.json"),
        ("text", IDS, ["--dtype", "float16"], "--dtype"),
    ],
    ids=["text alone", "too few", "no file", "too many", "no checkpoint", "dtype"],
)
def test_logits_refuse_what_does_not_fit(folder, ids, tmp_path, capsys, name, tokens, more, rule):
    more = [folder / word if word.endswith("wav") else word for word in more]
    given = words(folder / name, ids(tokens), tmp_path / "out.npy", *more)
    assert rule in refused(given, capsys)
    assert not (tmp_path / "out.npy").exists()


def test_logits_that_cannot_be_written_end_in_one_line_and_status_1(folder, ids, tmp_path, capsys):
    out = tmp_path / "none/out.npy"
    said = refused(words(folder / "text", ids(IDS), out), capsys, status=1)
    assert said == f"{out}: cannot be written: No such file or directory"
    assert not out.parent.exists()
