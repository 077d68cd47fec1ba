"""Starting a front end from another checkpoint than the LLM, frozen or trained."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_pipelines.text.load_tokenizer import load_tokenizer
from launch import cli
from melllm_jax.checkpoints import integrity, run_folder, weight_store
from melllm_jax.config.overrides import override
from melllm_jax.errors import Mistake
from melllm_jax.models.parameters import is_encoder, is_front
from melllm_jax.objectives.next_token import NextToken
from melllm_jax.presets import catalog
from melllm_jax.training import front_start, run_start, warm_start
from melllm_jax.training.train_step import Update
from tests.support import models, phi_files, whisper_files
from tests.support.families import FAMILIES, V, write_checkpoint
from tests.support.runs import (
    compiled_once,
    compiled_quickly,
    corpus,
    find_one_device,
    losses,
    refused,
    saved,
)

once = pytest.fixture(scope="module", autouse=True)(compiled_once)
quick = pytest.fixture(scope="module", autouse=True)(compiled_quickly)
SMALL = {"data.t": 160, "data.b": 8, "data.bins": 1, "data.threads": 1} | {
    "lora.r": phi_files.R,
    "lora.alpha": float(phi_files.ALPHA),
    "lora.dropout": 0.0,
    "optim.compute": "float32",
    "optim.warmup": 0,
    "text.instruction": "Hi",
    "model.remat": "none",
    "checkpoints.every": 1,
    "optim.steps": 1,
}
FLAGS = [word for name, value in SMALL.items() for word in (f"--{name}", str(value))]
POSITIONS = "front.encoder.positions"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Imports: `text` of Phi-4-mini, `speech` of Phi-4-MM and `whisper`; and `data`."""
    folder = tmp_path_factory.mktemp("fronts")
    corpus(folder / "data", count=8)
    write_checkpoint(folder / "hf-text", FAMILIES["Phi-4-mini"])
    named = phi_files.tensors("transformers", seed=1)  # the LLM's are others than those of `text`
    phi_files.write(folder / "hf-speech", phi_files.TREES["transformers"], named)
    whisper_files.write(folder / "hf-whisper")
    for name in ("text", "speech", "whisper"):
        phi_files.told("import", folder / f"hf-{name}", folder / name)
    return folder


def stored(folder):
    found = weight_store.WeightReader(integrity.newest_checkpoint(folder / "checkpoints"))
    return {name: found.read(name) for name in found.shapes}


def heard_by(folder):
    """What of a Whisper is a front end: all but its decoder."""
    return {name: x for name, x in stored(folder).items() if is_front(name)}


def begun(folder, init, front, **changes):
    """The run of both starts, or of a front end alone."""
    init, front = (str(folder / name) if name else "" for name in (init, front))
    preset = catalog.preset("mel_llm_asr" if init else "digits")
    return override(run_start.run_from(preset, init, front), SMALL | changes)


def update_of(run):
    """The run's update on the mesh in force, before anything is loaded."""
    llm = warm_start.resolve(run.init.path) if run.init.path else None
    return Update(NextToken(run), front_start.resolve(run, llm))


def state_of(run):
    """Every weight of the run before its first update."""
    first = jax.device_get(update_of(run).init_state())
    return first.trained | first.frozen


def test_a_run_takes_sizes_and_mel_of_the_front_end_and_the_rest_of_the_llm(folder):
    run = begun(folder, "text", "whisper")
    text = run_folder.read_spec(str(folder / "text")).model
    alone = run_folder.read_front(str(folder / "whisper"))
    assert (run.model.d, run.model.v, run.model.tied) == (text.d, text.v, text.tied)
    assert (run.model.front, run.model.whisper) == ("whisper", alone.whisper)
    assert (run.mel.kind, run.mel.normalize, run.mel.r) == ("whisper", "none", 8)
    assert (run.init.path, run.init.front) == (str(folder / "text"), str(folder / "whisper"))


@pytest.mark.parametrize("init", ["text", pytest.param("", marks=pytest.mark.slow)])
def test_the_encoder_is_the_checkpoint_s_and_the_projector_is_made_anew(folder, init):
    run = begun(folder, init, "whisper")
    with models.split_as("fsdp4-tp2"):
        whole = state_of(run)
    theirs = heard_by(folder / "whisper")
    assert set(theirs) == {name for name in whole if is_encoder(name)}
    for name, x in theirs.items():
        np.testing.assert_array_equal(whole[name], x.astype(np.float32))
    projector = [name for name in whole if is_front(name) and not is_encoder(name)]
    assert len(projector) == 4
    assert whole["front.up"].std() == pytest.approx((4 * whisper_files.D) ** -0.5, rel=0.1)
    if init:
        llm = stored(folder / "text")
        for name, x in llm.items():
            np.testing.assert_array_equal(whole[name], x.astype(whole[name].dtype), err_msg=name)


def test_the_convolutions_of_a_whisper_are_a_front_end_without_its_blocks(folder, tmp_path, capsys):
    run = begun(folder, "text", "whisper", **{"model.front": "whisper_conv"})
    assert run.model.whisper.d == whisper_files.D
    with models.one_device():
        whole = state_of(run)
    theirs = {name: x for name, x in heard_by(folder / "whisper").items() if "stack" not in name}
    assert set(theirs) == {name for name in whole if is_encoder(name)} and len(theirs) == 5
    for name, x in theirs.items():
        np.testing.assert_array_equal(whole[name], x.astype(np.float32))
    assert whole["front.kernel"].std() == pytest.approx((4 * whisper_files.D) ** -0.5, rel=0.1)
    # A run that has that front end already keeps it.
    again = run_start.adopt_front(run, str(folder / "whisper"))
    assert again.model.front == "whisper_conv"
    # Another run starts from it, its matrix too; one with all of an encoder does not, nor is it
    # exported.
    with models.one_device():
        saved(tmp_path / "run", run, jax.tree.map(jnp.asarray, whole))
        update = update_of(begun(folder, "text", tmp_path / "run"))
        assert all("_lora." in name for name in update.fresh_names())
    run = begun(folder, "text", tmp_path / "run", **{"model.front": "whisper"})
    with pytest.raises(Mistake, match='its front end is "whisper_conv", model.front="whisper"'):
        front_start.resolve(run, None)
    said = refused(["convert", "export", tmp_path / "run", tmp_path / "hf"], capsys)
    assert said == (
        'model.front="whisper_conv": no class of transformers joins a Whisper\'s convolutions and '
        "this LLM; --front drop exports the LLM alone"
    )


def test_a_stem_and_its_projector_come_from_another_model(folder):
    run = begun(folder, "text", "speech")
    with models.one_device():
        whole = state_of(run)
    assert (run.model.front, run.mel.telephone) == ("conv", "native")
    theirs = stored(folder / "speech")
    for name in filter(is_front, whole):
        np.testing.assert_array_equal(whole[name], theirs[name].astype(np.float32))
    for name, x in stored(folder / "text").items():
        np.testing.assert_array_equal(whole[name], x.astype(whole[name].dtype), err_msg=name)
    down = "stack.blocks.mlp.down"
    assert not np.array_equal(theirs[down].astype("bfloat16"), whole[down])


def test_a_frozen_encoder_leaves_its_projector_to_be_trained(folder):
    for frozen in ("trained", "frozen"):
        with models.one_device():
            update = update_of(begun(folder, "text", "whisper", **{"optim.encoder": frozen}))
        front = {name for name in update.names if is_front(name)}
        made = {name for name in update.skeleton.kinds if is_front(name)} - {POSITIONS}
        encoder = set(filter(is_encoder, made))
        assert len(encoder) == 21
        assert front == (made if frozen == "trained" else made - encoder)
    with models.one_device():
        update = update_of(begun(folder, "text", "speech", **{"optim.encoder": "frozen"}))
    front = {name.removeprefix("front.") for name in update.names if is_front(name)}
    assert front == {"up", "up_bias", "down", "down_bias"}


def words(folder, workdir, *more):
    given = ["--init", folder / "text", "--data", folder / "data", "--workdir", workdir]
    return ["train", "mel_llm_asr", *FLAGS, *map(str, [*given, "--compiled", "", *more])]


@pytest.mark.slow  # by default test_distillation trains and hears, and the tests above start so
def test_a_run_trains_hears_and_hands_its_front_end_on(folder, tmp_path, capsys, monkeypatch):
    find_one_device(monkeypatch)
    frozen = ["--init.front", folder / "whisper", "--optim.encoder", "frozen"]
    assert cli.main(words(folder, tmp_path / "one", *frozen)) == 0
    whole, before = stored(tmp_path / "one"), heard_by(folder / "whisper")
    for name, x in before.items():
        np.testing.assert_array_equal(whole[name], x.astype(np.float32), err_msg=name)
    run = run_folder.read_run(str(tmp_path / "one"))
    digest = integrity.checkpoint_digest(folder / "whisper/checkpoints/0")
    assert run.init.front_digest == digest
    # The LLM has no token for sound: it is the id after its tokens.
    size = load_tokenizer(str(tmp_path / "one/tokenizer")).size
    assert (run.text.template, run.text.placeholder, run.model.v) == ("chat", size, V)
    assert np.isfinite(losses(tmp_path / "one")[1])
    capsys.readouterr()
    sound = str(folder / "data/audio/0.flac")
    heard = ["--run", str(tmp_path / "one"), sound, "--json", "--decoding.extra", "1"]
    assert cli.main(["transcribe", *heard]) == 0
    assert json.loads(capsys.readouterr().out)
    # The run's own front end, projector and all, for another run at another update's rate.
    with models.one_device():
        update = update_of(begun(folder, "text", tmp_path / "one"))
        shapes, fresh = update.shapes(jax.sharding.get_mesh()), update.fresh_names()
        whole_state = shapes.trained | shapes.frozen
        found = update.warm.load({k: x for k, x in whole_state.items() if k not in fresh})
    assert all("_lora." in name for name in fresh)
    for name in filter(is_front, found):
        np.testing.assert_array_equal(found[name], whole[name], err_msg=name)


@pytest.mark.slow  # by default the whole encoder trains and hears; encoders/test_whisper has these
def test_a_run_of_convolutions_trains_and_hears(folder, tmp_path, capsys, monkeypatch):
    find_one_device(monkeypatch)
    given = ["--init.front", folder / "whisper", "--model.front", "whisper_conv"]
    assert cli.main(words(folder, tmp_path / "run", *given, "--optim.encoder", "frozen")) == 0
    trained, before = stored(tmp_path / "run"), heard_by(folder / "whisper")
    for name in filter(is_encoder, trained):
        np.testing.assert_array_equal(trained[name], before[name].astype(np.float32))
    assert np.isfinite(losses(tmp_path / "run")[1])
    capsys.readouterr()
    sound = str(folder / "data/audio/0.flac")
    heard = ["--run", str(tmp_path / "run"), sound, "--json", "--decoding.extra", "1"]
    assert cli.main(["transcribe", *heard]) == 0
    assert json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(
    ("flags", "rule"),
    [
        (
            ["{}/whisper", "--model.front", "whisper_conv", "--model.whisper.positions", "60"],
            "front.encoder.positions is (50, 16), the run's is (60, 16)",
        ),
        (["{}/whisper", "--model.front", "conv"], 'its front end is "whisper", model.front="conv"'),
        (["{}/whisper", "--mel.normalize", "utterance"], "hears mel.normalize=none, the run utter"),
        (["{}/speech", "--mel.kind", "whisper"], "hears mel.kind=phi4, the run whisper"),
        (["{}/text"], "init.front={}/text: holds no front end: its model reads text alone"),
        (["{}/data"], "checkpoint={}/data: holds neither model.json nor run.json"),
        (
            ["{}/whisper", "--model.whisper.f", "32"],
            "front.encoder.stack.blocks.mlp.down is (2, 24, 16), the run's is (2, 32, 16)",
        ),
        (["{}/whisper", "--mel.r", "1"], "mel.r=1: must be 2 or more for the whisper front end"),
        (["{}/whisper", "--init", "{}/whisper"], "and --init.front its encoder"),
        (
            ["{}/whisper", "--model.front", "linear", "--optim.encoder", "frozen"],
            'optim.encoder=frozen: model.front="linear" has no encoder to be frozen',
        ),
        (["{}/whisper", "--mesh.fsdp", "1", "--mesh.tp", "8"], "mesh.tp=8: does not divide"),
    ],
    ids=lambda x: " ".join(x) if isinstance(x, list) else "",
)
def test_a_front_end_that_does_not_fit_is_refused_and_writes_nothing(
    folder, tmp_path, capsys, flags, rule
):
    flags = ["--init.front", *[flag.replace("{}", str(folder)) for flag in flags]]
    said = refused(words(folder, tmp_path / "run", *flags), capsys)
    assert rule.replace("{}", str(folder)) in said
    assert not (tmp_path / "run").exists()
