"""AuRA: layers of the model follow a frozen encoder's at speech, and nothing else of it stays."""

import contextlib
import copy
import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from launch import cli
from melllm_jax import sharding
from melllm_jax.checkpoints import integrity, run_folder, weight_store
from melllm_jax.config.distillation import Distill
from melllm_jax.config.encoders import Whisper
from melllm_jax.config.overrides import from_json, override, to_json
from melllm_jax.config.run import Run
from melllm_jax.errors import Mistake
from melllm_jax.models.parameters import init_weights, is_alignment_head
from melllm_jax.objectives import distillation
from melllm_jax.objectives.distillation import Distillation
from melllm_jax.objectives.next_token import NextToken
from melllm_jax.objectives.run_objective import objective_of
from melllm_jax.training import run_start, warm_start
from melllm_jax.training.train_step import Update
from tests.support import conformer_files, models, phi_files, whisper_files
from tests.support.runs import (
    SMALL,
    batches_of,
    compiled_once,
    compiled_quickly,
    corpus,
    find_one_device,
    lines,
    refused,
    tiny,
)

once = pytest.fixture(scope="module", autouse=True)(compiled_once)
quick = pytest.fixture(scope="module", autouse=True)(compiled_quickly)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """`data`, and `whisper`, a teacher of two layers of width 16 and windows of one second.

    `conformer` is one of two blocks of width 8, and `stem` the same without them.
    """
    folder = tmp_path_factory.mktemp("distilled")
    corpus(folder / "data", count=8)
    whisper_files.write(folder / "hf")
    phi_files.told("import", folder / "hf", folder / "whisper")
    conformer_files.make(folder / "phi", "transformers")
    for front in ("conformer", "conv"):
        target = folder / ("stem" if front == "conv" else front)
        phi_files.told("import", folder / "phi", target, "--front", front)
    return folder


# The weight of the terms falls from 2 at the first update to 0 at the fifth, the last but one.
SMALLER = {"model.d": 32, "model.n": 4, "model.k": 2, "model.l": 2, "data.b": 8, "optim.steps": 6}
SMALLER |= {"model.scan": True}  # compiled faster
FALLING = {"distill.windows": 16, "distill.weight": 2.0, "distill.schedule": "linear"} | {
    "distill.until": 4
}


def run_of(folder, teacher="whisper", **changes):
    """A run of two layers that are taught by two."""
    taught = run_start.adopt_teacher(tiny(folder / "data"), str(folder / teacher))
    return override(taught, SMALLER | FALLING | changes)


@pytest.fixture(scope="module")
def batch(folder):
    with contextlib.closing(batches_of(run_of(folder))) as batches:
        return next(batches)


class Graded:
    """The loss of a run's first state and its gradients, as of any update."""

    def __init__(self, run, batch, place=models.one_device):
        self.place, self.batch = place, batch
        with place():
            self.update = Update(objective_of(run))
            self.state = self.update.init_state()
        self._compiled = jax.jit(self._grade)

    def _grade(self, state, batch):
        sums, grads = self.update._gradients(state, batch, jax.random.key(0))
        terms = self.update.objective.terms(batch, state.step)
        means = {name: total / terms[name].weight for name, total in sums.terms.items()}
        return {"loss": sums.loss / sums.weight, **means}, grads

    def at(self, step):
        with self.place():
            state = self.state._replace(step=jnp.int32(step))
            found, grads = self._compiled(state, sharding.shard_batch(self.batch))
            return {name: float(x) for name, x in found.items()}, jax.device_get(grads)


@pytest.fixture(scope="module")
def graded(folder, batch):
    """On one device."""
    return Graded(run_of(folder), batch)


def test_a_run_has_the_token_s_loss_and_a_term_for_each_layer(folder, batch, graded):
    numbers, grads = graded.at(0)
    with models.one_device():
        alone = Update(objective_of(run_of(folder, **{"distill.teacher": "none"})))
        bare = alone.init_state()
        sums = jax.jit(alone.loss_sums)(bare, sharding.shard_batch(batch))
    assert numbers["loss"] == pytest.approx(float(sums.loss / sums.weight), rel=1e-6)
    assert numbers["taught"] == 1
    # Nothing is aligned yet: states of random directions.
    assert all(0.2 < numbers[name] < 1.8 for name in ("align_0", "align_1"))
    heads = set(filter(is_alignment_head, grads))
    assert heads == {"align.kernel", "align.norm.scale"}
    # The same model as without a teacher, to the bit, and heads beside it: the first, a middle and
    # the last weight of it say so.
    assert graded.state.trained.keys() - heads == bare.trained.keys()
    names = ("embed", "stack.blocks.attn.q", "front.kernel")
    with models.one_device():
        with_heads, without = (
            init_weights(update.objective.build, 0, names) for update in (graded.update, alone)
        )
    assert with_heads.keys() == set(names)
    assert all(np.array_equal(with_heads[name], x) for name, x in without.items())
    assert {x.dtype for x in graded.state.companions["teacher"].values()} == {
        jnp.dtype(jnp.bfloat16)
    }


def test_terms_are_the_distances_that_their_definition_gives(batch, graded):
    """Written out in NumPy: states at speech, the mean of a position's four, a norm, a matrix."""
    numbers, _ = graded.at(0)
    update, state = graded.update, graded.state
    with models.one_device():
        placed = sharding.shard_batch(batch)
        model = update.skeleton.model(state.trained | state.frozen)
        outputs = np.asarray(jax.jit(lambda m, b: m.with_layers(b, (0, 1))[1])(model, placed))
        skeleton = update.companions["teacher"][1]
        teacher = skeleton.model(state.companions["teacher"], jnp.dtype("float32"))
        targets = np.asarray(jax.jit(lambda m, b: m.states(b, (0, 1)))(teacher, placed))
    scales, kernels = (
        np.asarray(state.trained[f"align.{name}"]) for name in ("norm.scale", "kernel")
    )
    for layer in range(2):
        off = []
        for row, at in np.argwhere(batch.is_speech):
            x = outputs[layer, row, at]
            x = x / np.sqrt(np.mean(x**2) + update.run.model.eps) * scales[layer]
            x = x @ kernels[layer]
            own = -(-int(batch.frames[row, at]) // 2)
            target = targets[layer, row, at, :own].mean(axis=0)
            off.append(1 - x @ target / np.linalg.norm(x) / np.linalg.norm(target))
        assert numbers[f"align_{layer}"] == pytest.approx(np.mean(off), rel=1e-4)


def test_the_terms_count_in_the_gradient_by_their_weight(graded):
    (_, two), (_, one), (_, none) = (graded.at(step) for step in (0, 2, 4))
    assert np.all(none["align.kernel"] == 0) and np.any(one["align.kernel"])
    for name, x in none.items():
        expected = x + 2 * (one[name] - x)
        np.testing.assert_allclose(two[name], expected, rtol=1e-3, atol=2e-6)


def test_a_teacher_that_counts_no_more_is_not_asked(graded):
    """One whose weights are no numbers spoils the updates before that, and none after it."""
    numbers, grads = graded.at(4)
    assert (numbers["taught"], numbers["align_0"], numbers["align_1"]) == (0, 0, 0)
    broken = {
        name: jnp.full_like(x, jnp.nan) for name, x in graded.state.companions["teacher"].items()
    }
    other = copy.copy(graded)
    other.state = graded.state._replace(companions={"teacher": broken})
    numbers, same = other.at(4)
    assert np.isfinite(numbers["loss"])
    assert all(np.array_equal(same[name], x) for name, x in grads.items())
    assert np.isnan(other.at(3)[1]["align.kernel"]).all()


def test_eight_devices_in_micro_batches_have_the_gradients_of_one(folder, batch, graded):
    run = run_of(folder, **{"optim.micro": 2})
    numbers, grads = Graded(run, batch, lambda: models.split_as("fsdp4-tp2")).at(0)
    own, expected = graded.at(0)
    assert numbers == pytest.approx(own, rel=1e-4)
    for name, x in expected.items():
        np.testing.assert_allclose(grads[name], x, rtol=0, atol=1e-5 * np.abs(x).max() + 1e-6)


def test_a_conformer_is_asked_where_there_is_speech_and_hears_by_exact_statistics(folder):
    run = run_of(folder, "conformer")
    assert (run.mel.kind, run.mel.normalize, run.mel.telephone) == ("phi4", "none", "native")
    assert (run.distill.c, run.distill.conformer.l, run.distill.width) == (8, 2, 8)
    with contextlib.closing(batches_of(run)) as batches:
        graded = Graded(run, next(batches))
    numbers, grads = graded.at(0)
    assert numbers["taught"] == 1
    assert all(0.2 < numbers[name] < 1.8 for name in ("align_0", "align_1"))  # of width 8
    assert grads["align.kernel"].shape == (2, 32, 8) and np.any(grads["align.kernel"])
    kept = graded.state.companions["teacher"]
    exact = {name for name, x in kept.items() if x.dtype == jnp.float32}
    assert exact == {"front.mean", "front.invstd"} and len(kept) > len(exact)
    stored = weight_store.WeightReader(
        integrity.newest_checkpoint(folder / "conformer/checkpoints")
    )
    np.testing.assert_array_equal(kept["front.mean"], stored.read("front.mean"))


@pytest.mark.parametrize("kind", ["whisper", pytest.param("conformer", marks=pytest.mark.slow)])
def test_training_by_the_command_leaves_a_model_without_its_teacher(
    folder, tmp_path, capsys, monkeypatch, kind
):
    """It comes nearer to it, transcribes once it is gone, and starts a run that has none."""
    find_one_device(monkeypatch)
    teacher = shutil.copytree(folder / kind, tmp_path / "teacher")
    given = {"data": folder / "data", "teacher": teacher, "workdir": tmp_path / "run"}
    heard = ("mel.kind", "mel.m")  # as the teacher does
    small = {k: v for k, v in SMALL.items() if k not in heard}
    small |= {"optim.steps": 8, "optim.lr": 0.03, "model.l": 2, "distill.windows": 16}
    small |= {"model.remat": "none"}
    flags = [word for k, v in (given | small).items() for word in (f"--{k}", str(v))]
    assert cli.main(["train", "digits", *flags]) == 0
    rows = lines(tmp_path / "run")
    assert rows[-1]["align_1"] < rows[0]["align_1"] / 2 and rows[-1]["taught"] == 1
    run = run_folder.read_run(str(tmp_path / "run"))
    digest = integrity.checkpoint_digest(teacher / "checkpoints/0")
    assert (run.distill.teacher, run.distill.digest) == (kind, digest)
    assert from_json(to_json(run), Run) == run
    shutil.rmtree(teacher)
    capsys.readouterr()
    sound = str(folder / "data/audio/0.flac")
    heard = ["--run", str(tmp_path / "run"), sound, "--json", "--decoding.extra", "1"]
    assert cli.main(["transcribe", *heard]) == 0
    assert json.loads(capsys.readouterr().out)
    start = warm_start.resolve(str(tmp_path / "run"))
    assert any(map(is_alignment_head, start.shapes))
    with models.one_device():
        alone = Update(NextToken(override(run, {"distill.teacher": "none"})))
        assert start.fresh_names(alone.skeleton.kinds, 0) == []
        again = Update(Distillation(run), dataclasses.replace(start, shapes=before_heads(start)))
        assert set(again.fresh_names()) == set(filter(is_alignment_head, again.skeleton.kinds))


def before_heads(start):
    """The shapes of a checkpoint of a run that had no teacher."""
    return {name: shape for name, shape in start.shapes.items() if not is_alignment_head(name)}


@pytest.mark.parametrize(
    ("time", "expected"),
    [
        ("mean", [[0.25] * 4, [0.5, 0.5, 0, 0], [1, 0, 0, 0], [0] * 4]),
        ("strided", [[1, 0, 0, 0], [1, 0, 0, 0], [1, 0, 0, 0], [0] * 4]),
        ("linear", [[0, 0.5, 0.5, 0], [0.5, 0.5, 0, 0], [1, 0, 0, 0], [0] * 4]),
    ],
)
def test_positions_take_their_share_of_the_teachers_states(time, expected):
    there = jnp.arange(4)[None, None] < jnp.array([4, 2, 1, 0])[None, :, None]
    np.testing.assert_allclose(distillation.within_positions(there, time)[0], expected)


def test_distances_are_those_worked_out_by_hand():
    x, y = jnp.array([[1.0, 2.0, 3.0]]), jnp.array([[3.0, 2.0, 1.0]])
    far = lambda loss, target=y: float(distillation.distance(x, target, loss)[0])
    assert far("cosine") == pytest.approx(1 - 10 / 14, rel=1e-5)
    assert far("mse") == pytest.approx(np.mean([6.0, 0, 6.0]), rel=1e-4)
    assert far("both") == pytest.approx(far("cosine") + far("mse"), rel=1e-6)
    assert far("both", 7 * x) == pytest.approx(0, abs=1e-5)


def test_the_weight_follows_its_schedule(folder):
    always = {"distill.schedule": "constant", "distill.until": 0}
    run = run_of(folder, **{"optim.steps": 8} | always)
    at = lambda step, **changes: float(
        distillation.weight_at(override(run, changes), jnp.int32(step))
    )
    assert [at(step) for step in (0, 7)] == [2, 2]
    linear = {"distill.schedule": "linear"}
    assert [at(step, **linear) for step in (0, 4, 7)] == [2, 1, 0.25]
    off = {"distill.schedule": "off", "distill.until": 3}
    assert [at(step, **off) for step in (0, 2, 3, 7)] == [2, 2, 0, 0]


FOUR = Whisper(l=4)


def test_layers_meet_evenly_one_to_one_or_as_they_are_listed():
    pairs = lambda layers, **fields: Distill(whisper=FOUR, **fields).pairs(layers)
    assert pairs(30) == ((0, 7), (1, 14), (2, 22), (3, 29))
    assert pairs(30, depth=4) == ((0, 0), (1, 1), (2, 2), (3, 3))
    assert pairs(30, depth=8) == ((0, 1), (1, 3), (2, 5), (3, 7))
    assert pairs(30, teacher_layers=(3,), student_layers=(5,)) == ((3, 5),)
    assert pairs(4, teacher_layers=(1, 3)) == ((1, 1), (3, 3))


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"distill.teacher_layers": [4]}, r"teacher_layers=\(4,\): layers run from 0 to 1"),
        ({"distill.student_layers": [0, 2]}, r"student_layers=\(0, 2\): layers run from 0 to 1"),
        ({"distill.student_layers": [1]}, "1 layers: 2 of the teacher's are to meet them"),
        ({"distill.student_layers": [1, 1]}, r"=\(1, 1\): names a layer twice"),
        ({"distill.depth": 1}, "depth=1: fewer than the teacher's 2: list distill.teacher_layers"),
        ({"distill.depth": 3}, "depth=3: the model has 2 layers"),
        ({"mel.kind": "phi4"}, "mel.kind=phi4, none: makes no sound that the teacher hears"),
        ({"mel.normalize": "utterance"}, "mel.kind=whisper, utterance: makes no sound"),
        ({"mel.floor": -1.0}, "mel.floor=-1.0: must be 0: the teacher hears mel without"),
        ({"mel.r": 1}, "mel.r=1: must be 2, 4, 8, 16 for the whisper teacher"),
        ({"distill.head": "none"}, "model.d=32 is not the teacher's width of 16"),
        ({"model.front": "none"}, 'model.front="none" reads no sound that it could hear'),
        ({"distill.weight": -1.0}, "distill.weight=-1.0: must be 0 or more"),
    ],
)
def test_a_teacher_that_does_not_fit_is_refused_by_field_value_and_rule(folder, changes, rule):
    with pytest.raises(Mistake, match=rule):
        objective_of(run_of(folder, **changes))


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"distill.teacher_layers": [2]}, r"teacher_layers=\(2,\): layers run from 0 to 1"),
        ({"mel.kind": "whisper"}, 'whisper, none: makes no sound .* hears: mel.kind="phi4"$'),
        ({"mel.r": 4}, "mel.r=4: must be 8 for the conformer teacher"),
        ({"distill.conformer.n": 3}, "distill.conformer.n=3: does not divide c=8"),
        ({"distill.head": "none"}, "model.d=32 is not the teacher's width of 8"),
    ],
)
def test_a_conformer_that_does_not_fit_is_refused_by_field_value_and_rule(folder, changes, rule):
    with pytest.raises(Mistake, match=rule):
        objective_of(run_of(folder, "conformer", **{"mel.telephone": "resampled"} | changes))


def test_a_mesh_that_does_not_divide_a_teacher_is_refused(folder):
    for teacher, says in (("whisper", "whisper.n=2"), ("conformer", "conformer.n=2")):
        run = run_of(folder, teacher, **{"model.k": 4, "model.v": 512, "mesh.tp": 4})
        with pytest.raises(Mistake, match=f"mesh.tp=4: does not divide distill.{says}"):
            sharding.check_mesh(run, sharding.make_mesh(run.mesh))


@pytest.mark.parametrize(
    ("flags", "rule"),
    [
        (["--teacher", "{}/data"], "checkpoint={}/data: holds neither model.json nor run.json"),
        (
            ["--teacher", "{}/whisper", "--distill.whisper.f", "32"],
            "distill.path={}/whisper: its whisper.f is 24, distill.whisper.f=32",
        ),
        (
            ["--distill.teacher", "whisper", "--mel.normalize", "none", "--mel.kind", "whisper"]
            + ["--mel.m", "80"],
            'distill.teacher="whisper": say where its weights are: --teacher DIR',
        ),
        (["--teacher", "{}/stem"], 'its front end "conv" is no teacher: one is whisper or conform'),
        (["--teacher", "{}/conformer", "--distill.c", "16"], "its c is 8, distill.c=16"),
        (
            ["--teacher", "{}/conformer", "--distill.conformer.chunk", "3"],
            "distill.path={}/conformer: its conformer.chunk is 4, distill.conformer.chunk=3",
        ),
        (
            ["--teacher", "{}/conformer", "--mel.normalize", "utterance"],
            "distill.path={}/conformer: hears mel.normalize=none, the run utterance",
        ),
        (
            ["--teacher", "{}/whisper", "--distill.teacher", "conformer"]
            + ["--mel.kind", "phi4", "--mel.r", "8"],
            'distill.path={}/whisper: its front end is "whisper", distill.teacher="conformer"',
        ),
    ],
)
def test_a_teacher_that_is_not_there_is_refused_and_writes_nothing(
    folder, tmp_path, capsys, flags, rule
):
    flags = [flag.replace("{}", str(folder)) for flag in flags]
    given = ["--data", str(folder / "data"), "--workdir", str(tmp_path / "run"), "--model.l", "4"]
    said = refused(["train", "digits", *given, *flags], capsys)
    assert rule.replace("{}", str(folder)) in said
    assert not (tmp_path / "run").exists()


def test_without_a_teacher_there_is_nothing_to_distil(folder):
    with pytest.raises(Mistake, match='distill.teacher="none"'):
        Distillation(tiny(folder / "data"))
    assert type(objective_of(tiny(folder / "data"))) is NextToken
