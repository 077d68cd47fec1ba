"""Training from an imported checkpoint: what is kept, what is trained, what is made anew."""

import dataclasses
import json
import shutil
import signal

import jax
import ml_dtypes
import numpy as np
import pytest

from data_pipelines.examples.placeholder_batch import fill_placeholders
from launch import cli
from launch.runs.model_loader import load_model
from melllm_jax import sharding
from melllm_jax.checkpoints import integrity, run_folder, weight_store
from melllm_jax.config.model import Lora
from melllm_jax.config.overrides import override
from melllm_jax.config.run import RANDOM, Init
from melllm_jax.errors import Mistake
from melllm_jax.objectives.next_token import NextToken
from melllm_jax.presets import catalog
from melllm_jax.telemetry.progress import SILENT, SilentProgress
from melllm_jax.training import run_start, warm_start
from melllm_jax.training.train_step import Update
from tests.support import conformer_files, models, phi_files
from tests.support.runs import (
    compiled_once,
    compiled_quickly,
    corpus,
    find_one_device,
    losses,
    refused,
    steps_on_disk,
    trained,
)

once = pytest.fixture(scope="module", autouse=True)(compiled_once)
quick = pytest.fixture(scope="module", autouse=True)(compiled_quickly)
BF16 = np.dtype(ml_dtypes.bfloat16)
V = 264  # the byte tokenizer has 261 ids
STEPS = 12
SMALL = {"data.t": 64, "data.b": 8, "data.bins": 2, "data.threads": 1} | {
    "lora.dropout": 0.0,
    "optim.compute": "float32",
    "optim.lr": 2e-2,
    "optim.warmup": 1,
}
FLAGS = [word for name, value in SMALL.items() for word in (f"--{name}", str(value))]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Imports `speech` and `other` of Phi-4-multimodal and `text` of Phi-3, and `data`."""
    folder = tmp_path_factory.mktemp("start")
    corpus(folder / "data")
    for name, kind, seed in (("speech", "transformers", 0), ("other", "transformers", 1)):
        imported(folder / name, kind, seed)
    imported(folder / "text", "text", 0)
    return folder


def imported(target, kind, seed):
    """An import of bfloat16 whose vocabulary holds all bytes and which has no tokenizer."""
    named = phi_files.tensors(kind, "bfloat16", seed)
    draw = np.random.default_rng(seed)
    for name in named.keys() & {"model.embed_tokens.weight", "lm_head.weight"}:
        named[name] = (draw.standard_normal((V, phi_files.D)) * 0.2).astype(BF16)
    source = target.with_name(f"hf-{target.name}")
    phi_files.write(source, phi_files.TREES[kind] | {"vocab_size": V}, named)
    (source / "tokenizer.json").unlink()
    phi_files.told("import", source, target)


def words(folder, workdir, *more, init="speech"):
    """The words of `melllm train` from an import in `folder`."""
    given = ["--init", folder / init, "--data", folder / "data", "--workdir", workdir, *more]
    often = ["--steps", STEPS, "--save-every", STEPS]
    return ["train", "mel_llm_asr", *FLAGS, *map(str, [*often, *given])]


@pytest.fixture(scope="module")
def command(folder, tmp_path_factory):
    """The folder of a run on one device, saved once at its end, and files summed for it."""
    workdir = tmp_path_factory.mktemp("straight") / "run"
    summed, read = integrity._sum, []
    with pytest.MonkeyPatch.context() as patch:
        find_one_device(patch)
        patch.setattr(integrity, "_sum", lambda path: read.append(path) or summed(path))
        assert cli.main(words(folder, workdir)) == 0
    return workdir, read


@pytest.fixture(scope="module")
def straight(command):
    return command[0]


def begun(run, workdir, progress=SILENT):
    """Train from an import on one device in this process, or go on."""
    return trained(run, workdir, progress, warm=warm_start.resolve(run.init.path))


class Stopping(SilentProgress):
    """Asks the run to stop where `when` says so of what is told."""

    def __init__(self, when):
        self._when = when

    def _told(self, what):
        if self._when(what):
            signal.raise_signal(signal.SIGTERM)

    def status(self, text):
        self._told(text)

    def step(self, step, metrics):
        self._told(step)


def stored(folder):
    """The weights of a folder's newest checkpoint."""
    found = weight_store.WeightReader(integrity.newest_checkpoint(folder / "checkpoints"))
    return {name: found.read(name) for name in found.shapes}


def of_front(name):
    return name.startswith("front.")


def is_trained(name):
    """Whether the recipe trains it: LoRA and the front end, its statistics excepted."""
    return "_lora." in name or of_front(name) and name not in ("front.mean", "front.invstd")


def same(x, y):
    return x.dtype == y.dtype and np.array_equal(x, y)


def adopted(folder, **changes):
    """The recipe's run from the model in `folder`; other keywords are dotted fields."""
    run = run_start.adopt_model(catalog.preset("mel_llm_asr"), str(folder))
    return override(run, SMALL | changes)


def warm(run):
    """The update of a run that starts from its import."""
    return Update(
        NextToken(run), warm_start.resolve(run.init.path, random_front=run.init.front == RANDOM)
    )


def test_training_from_an_import_learns(straight):
    found = losses(straight)
    assert list(found) == list(range(1, STEPS + 1))
    assert np.mean([found[step] for step in range(STEPS - 3, STEPS + 1)]) < found[1] - 1.0


def test_training_leaves_the_llm_as_it_was_and_changes_lora_and_front_end(folder, straight):
    before, after = stored(folder / "speech"), stored(straight)
    assert before.keys() == after.keys()
    for name, x in after.items():
        if is_trained(name):
            assert x.dtype == np.float32, name
            assert (x != before[name].astype(np.float32)).any(), name
        elif of_front(name):  # statistics: float32 since they are subtracted in float32
            assert same(x, before[name].astype(np.float32)), name
        else:
            assert x.dtype == BF16, name
            assert same(x, before[name]), name
    assert sum(map(is_trained, after)) == 16 + 11  # of the front end, of LoRA


def test_training_keeps_optimiser_state_of_what_is_trained_and_no_more(straight):
    tree = json.loads((straight / f"checkpoints/{STEPS}/state/_METADATA").read_text())
    keys = [
        [part["key"] for part in entry["key_metadata"]] for entry in tree["tree_metadata"].values()
    ]
    names = stored(straight).keys()
    held = [key[-1] for key in keys if key[-1] in names]
    assert sorted(held) == sorted(2 * [name for name in names if is_trained(name)])  # two moments


def test_training_takes_the_sizes_of_the_checkpoint_and_says_where_it_came_from(folder, straight):
    run, spec = run_folder.read_run(str(straight)), run_folder.read_spec(str(folder / "speech"))
    preset = catalog.preset("mel_llm_asr")
    assert run.model == dataclasses.replace(spec.model, remat=preset.model.remat)
    assert (run.model.d, run.model.v, run.model.c) == (phi_files.D, V, phi_files.C)
    assert (run.mel, run.text.template) == (spec.mel, "phi4")
    assert run.lora == Lora(r=phi_files.R, alpha=float(phi_files.ALPHA), dropout=0.0)
    digest = integrity.checkpoint_digest(folder / "speech/checkpoints/0")
    assert run.init == Init(path=str(folder / "speech"), digest=digest)


@pytest.mark.slow
def test_training_stopped_goes_on_as_if_it_had_not(straight, tmp_path):
    """Started twice it begins alike, too."""
    run = run_folder.read_run(str(straight))
    begun(run, tmp_path / "whole")
    begun(run, tmp_path / "parts", Stopping(lambda told: told == 2))
    whole = losses(tmp_path / "whole")
    assert whole[1] == pytest.approx(losses(straight)[1], rel=1e-6)
    assert whole == pytest.approx(losses(straight), rel=2e-2)
    assert steps_on_disk(tmp_path / "parts") == [3]
    assert losses(tmp_path / "parts") == {step: x for step, x in whole.items() if step <= 3}
    begun(run, tmp_path / "parts")
    assert losses(tmp_path / "parts") == whole
    ours, theirs = stored(tmp_path / "parts"), stored(tmp_path / "whole")
    assert all(same(ours[name], x) for name, x in theirs.items())


def test_training_is_the_same_run_wherever_its_import_lies(folder, straight, tmp_path, capsys):
    shutil.copytree(folder / "speech", tmp_path / "moved")
    same = shutil.copytree(straight, tmp_path / "run")
    assert cli.main(words(folder, same, init=tmp_path / "moved")) == 0
    assert f"resuming after update {STEPS}\n" in capsys.readouterr().err
    assert losses(same) == losses(straight)
    run = run_folder.read_run(str(same))
    assert run.init.path == str(tmp_path / "moved")  # where it lies is no part of what it is


def test_training_from_another_checkpoint_in_the_same_folder_is_refused(folder, straight, capsys):
    before = (straight / "run.json").read_bytes()
    said = refused(words(folder, straight, init="other"), capsys)
    assert said.startswith(f"workdir={straight}: belongs to run ")
    there, asked = (
        integrity.checkpoint_digest(folder / f"{name}/checkpoints/0")
        for name in ("speech", "other")
    )
    assert said.endswith(f"they differ in init.digest={asked} (it has {there})")
    assert (straight / "run.json").read_bytes() == before


def test_how_a_model_is_computed_stays_the_run_s(folder):
    own = {"model.remat": "offload", "model.kept": ("out",), "model.scan": False}
    run = override(catalog.preset("mel_llm_asr"), own | {"model.attention": "blocks"})
    found = run_start.adopt_model(run, str(folder / "speech")).model
    asked = found.remat, found.kept, found.scan, found.attention
    assert asked == ("offload", ("out",), False, "blocks")
    assert found.d == run_folder.read_spec(str(folder / "speech")).model.d != run.model.d


@pytest.mark.slow
def test_training_goes_on_from_another_run(straight, tmp_path):
    """The first update's rate is 0, so the checkpoint after it holds what it started from."""
    run = run_folder.read_run(str(straight))
    found = run_start.adopt_model(catalog.preset("mel_llm_asr"), str(straight))
    assert (found.model, found.mel) == (run.model, run.mel)
    assert found.lora == dataclasses.replace(run.lora, dropout=found.lora.dropout)
    assert warm_start.resolve(str(straight)).digest == integrity.checkpoint_digest(
        straight / f"checkpoints/{STEPS}"
    )
    run = dataclasses.replace(run, init=found.init)
    begun(run, tmp_path, Stopping(lambda told: str(told).startswith("compiling")))
    assert steps_on_disk(tmp_path) == [1]
    ours, theirs = stored(tmp_path), stored(straight)
    assert all(same(ours[name], x) for name, x in theirs.items())
    assert losses(tmp_path)[1] < losses(straight)[1] - 1.0


def test_state_on_eight_devices_equals_one(folder):
    run = adopted(folder / "speech")
    with models.one_device():
        alone = jax.device_get(warm(run).init_state())
    with models.split_as("fsdp4-tp2"):
        update = warm(run)
        split = update.init_state()
        due = update.shapes(jax.sharding.get_mesh())
        like = lambda x, y: x.sharding.is_equivalent_to(y.sharding, x.ndim)
        assert jax.tree.all(jax.tree.map(like, split, due))
    assert not split.frozen["stack.blocks.attn.q"].sharding.is_fully_replicated
    assert jax.tree.all(jax.tree.map(same, jax.device_get(split), alone))
    before = stored(folder / "speech")
    assert all(same(x, before[name].astype(np.float32)) for name, x in alone.trained.items())


@pytest.mark.slow
def test_state_of_a_vocabulary_that_grew_has_the_mean_of_all_tokens_in_the_new_rows(folder):
    run = adopted(folder / "speech", **{"model.v": 320, "text.placeholder": 264})
    with models.split_as("fsdp4-tp2"):
        update = Update(NextToken(run), warm_start.resolve(run.init.path, 320))
        found = jax.device_get(update.init_state()).frozen["embed"].astype(np.float32)
    before = stored(folder / "speech")["embed"].astype(np.float32)
    np.testing.assert_array_equal(found[:V], before)
    np.testing.assert_allclose(found[V:], [before.mean(0)] * 56, rtol=2**-8, atol=1e-6)


def test_state_from_text_alone_makes_front_end_and_lora_that_change_nothing_yet(folder):
    assert adopted(folder / "text").model.front == "conv"
    changes = {"lora.r": 4, "lora.alpha": 8.0, "model.front": "linear"}
    run = adopted(folder / "text", **changes)
    with models.split_as("fsdp4-tp2"):
        split = jax.device_get(warm(run).init_state())
    with models.one_device():
        update = warm(run)
        fresh = update.fresh_names()
        made = {name for name in update.skeleton.kinds if of_front(name) or "_lora." in name}
        assert set(fresh) == made
        first = update.init_state()
        whole = first.trained | first.frozen
        clip = np.random.default_rng(0).normal(size=(16, 80)).astype(np.float32)
        tokens = np.array([[5, 9, 80, 21, 99, 3, 260, 260]])
        batch = sharding.shard_batch(fill_placeholders(tokens, [clip], r=8, m=80, audio=260))
        said = models.jitted(lambda m, b: m.logits(m(b)))
        ours = said(update.skeleton.model(whole, np.dtype(np.float32)), batch)
        due = said(load_model(folder / "text", "float32").model, batch)
    for name in fresh:
        assert same(np.asarray(whole[name]), (split.trained | split.frozen)[name]), name
        at_rest = "_lora.b." in name or name == "front.bias"
        assert np.any(np.asarray(whole[name])) != at_rest, name
    np.testing.assert_allclose(ours[:, :6], due[:, :6], rtol=0, atol=1e-5 * np.abs(due).max())
    assert np.abs(ours[:, 6:] - due[:, 6:]).max() > 0.1  # the clip is heard


def test_state_with_another_front_end_makes_it_anew(folder):
    run = adopted(folder / "speech", **{"model.front": "linear"})
    with models.one_device():
        update = warm(run)
        fresh = update.fresh_names()
        first = jax.device_get(update.init_state())
    assert sorted(fresh) == ["front.bias", "front.kernel"]
    before = stored(folder / "speech")
    whole = first.trained | first.frozen
    assert whole.keys() - fresh == {name for name in before if not of_front(name)}
    for name in whole.keys() - fresh:
        assert np.array_equal(whole[name], before[name].astype(whole[name].dtype)), name
    kernel = whole["front.kernel"]
    assert kernel.std() == pytest.approx(kernel.shape[0] ** -0.5, rel=0.05)


def test_a_front_end_of_another_width_is_not_mixed_with_the_checkpoint_s(folder):
    run = adopted(folder / "speech", **{"model.c": 16})
    with models.one_device():
        update = warm(run)
        fresh = update.fresh_names()
    assert update.skeleton.kinds["front.down"].shape == (32, 32)  # as in the checkpoint
    assert {"front.first", "front.up", "front.down", "front.down_bias"} <= set(fresh)
    assert all(map(of_front, fresh))
    assert not {"front.mean", "front.invstd"} & set(fresh)  # of the sound, not of the stem


def test_state_of_full_training_holds_float32_masters_of_the_file_s_values(folder):
    run = adopted(folder / "speech", **{"optim.train": "all"})
    with models.one_device():
        first = jax.device_get(warm(run).init_state())
    before = stored(folder / "speech")
    assert first.frozen.keys() == {"front.mean", "front.invstd"}
    assert first.trained.keys() == before.keys() - first.frozen.keys()
    assert all(same(x, before[name].astype(np.float32)) for name, x in first.trained.items())


@pytest.mark.parametrize(
    ("flags", "rule"),
    [
        (["--init", "nothing"], "checkpoint={}/nothing: holds neither model.json nor run.json"),
        (["--init", "none"], "checkpoint={}/none: holds neither model.json nor run.json"),
        (["--init", "empty"], "checkpoints={}/empty/checkpoints: holds no whole checkpoint"),
        (["--init", "torn"], "checkpoints={}/torn/checkpoints: holds no whole checkpoint"),
        (["--lora.r", "2"], "init={}/speech: stack.blocks."),
        (["--lora.r", "0"], 'lora.r=0: optim.train="lora" needs a rank'),
        (["--lora.r", "0", "--optim.train", "all"], "_lora.a has no place in the run: lora.r=0"),
        (["--model.f", "64"], "init={}/speech: stack.blocks.mlp."),
        (["--model.l", "1"], "init={}/speech: stack.blocks."),
        (["--model.v", "300"], "init={}/speech: embed is (264, 32), the run's is (300, 32)"),
        (["--model.tied", "False"], "init={}/speech: has no head, which the run needs"),
        (["--init"], "--init"),
    ],
    ids=lambda x: " ".join(x) if isinstance(x, list) else "",
)
def test_training_refuses_an_init_that_does_not_fit_and_writes_nothing(
    folder, tmp_path, capsys, flags, rule
):
    (tmp_path / "nothing").mkdir()
    shutil.copytree(folder / "speech", tmp_path / "torn")
    (tmp_path / "torn/checkpoints/0/weights/embed/zarr.json").write_text("{}")
    (tmp_path / "empty").mkdir()
    shutil.copy(folder / "speech/model.json", tmp_path / "empty")
    if flags[0] == "--init":
        flags = ["--init", *[str(tmp_path / name) for name in flags[1:]]]
        rule = rule.format(tmp_path)
    given = words(folder, tmp_path / "run", *flags)
    assert rule.format(folder) in refused(given, capsys)
    assert not (tmp_path / "run").exists()


def test_checkpoint_that_a_run_starts_from_is_read_once_to_verify_it(folder, command):
    there = [path for path in command[1] if (folder / "speech") in path.parents]
    assert there
    assert len(there) == len(set(there))


@pytest.fixture(scope="module")
def conformer(folder):
    """An import with its Conformer of the checkpoint whose stem alone is `stem`."""
    named = conformer_files.tensors("transformers")
    tree = conformer_files.tree("transformers", chunk_size=-1)
    source = folder / "hf-conformer"
    phi_files.write(source, tree, named)
    (source / "tokenizer.json").unlink()
    phi_files.told("import", source, folder / "conformer", "--front", "conformer")
    phi_files.told("import", source, folder / "stem")
    return folder


def of_conformer(folder, **changes):
    """The encoder baseline on an import."""
    run = override(catalog.preset("conformer_asr"), SMALL | changes)
    return run_start.adopt_model(run, str(folder))


def fresh_of(run):
    with models.one_device():
        return set(warm(run).fresh_names())


def test_an_encoder_comes_pretrained_or_at_random(conformer):
    run = of_conformer(conformer / "conformer")
    assert (run.model.front, run.model.conformer.l) == ("conformer", conformer_files.L)
    assert fresh_of(run) == set()
    fresh = fresh_of(of_conformer(conformer / "conformer", **{"init.front": "random"}))
    assert {"front.first", "front.distances", "front.blocks.attn.q", "front.down"} <= fresh
    assert all(map(of_front, fresh)) and not {"front.mean", "front.invstd"} & fresh


def test_mel_llm_takes_the_stem_of_a_checkpoint_that_has_a_conformer(conformer):
    run = run_start.adopt_model(catalog.preset("mel_llm_asr"), str(conformer / "conformer"))
    assert run.model.front == "conv"
    assert fresh_of(run) == set()


def test_a_conformer_is_not_made_up_beside_a_pretrained_stem(conformer):
    run = of_conformer(conformer / "stem", **{"model.conformer.n": 2})  # of the stem's 8 channels
    assert run.model.front == "conformer"
    with pytest.raises(Mistake, match="has no Conformer: import with --front conformer, or start"):
        fresh_of(run)
    random = override(run, {"init.front": "random"})
    assert "front.blocks.attn.q" in fresh_of(random)


def test_a_frozen_encoder_is_as_it_was_imported_and_its_projector_a_master(conformer):
    run = of_conformer(conformer / "conformer", **{"optim.encoder": "frozen"})
    with models.one_device():
        state = jax.device_get(warm(run).init_state())
    front = {name for name in state.trained if of_front(name)}
    assert front == {"front.up", "front.up_bias", "front.down", "front.down_bias"}
    assert state.frozen["front.blocks.attn.q"].dtype == np.float32
    assert state.frozen["front.mean"].dtype == np.float32
