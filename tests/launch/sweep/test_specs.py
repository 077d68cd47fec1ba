import dataclasses
import functools

import pytest

from launch.sweep import budgets, spec
from melllm_jax import flops
from melllm_jax.config.distillation import Distill
from melllm_jax.config.encoders import Whisper
from melllm_jax.config.features import Mel, Text
from melllm_jax.config.model import FrontSpec, ModelSpec
from melllm_jax.config.overrides import to_json
from melllm_jax.objectives.run_objective import objective_of
from melllm_jax.presets.smollm2 import SMOLLM2_135M

CELLS = {
    "scaling": 25,
    "token_rate": 5,
    "layer_ablation": 5,
    "init": 6,
    "front_end": 12,
    "synthetic": 16,
    "synthetic_rate": 5,
    "text": 20,
}
FROM_CHECKPOINTS = {  # of the folder where they are run
    "smollm2_front": 5,
    "smollm2_init": 9,
    "smollm2_layers": 3,
    "smollm2_rate": 2,
    "aura_systems": 3,
    "aura_layers": 5,
    "aura_loss": 6,
    "aura_weight": 7,
    "aura_data": 6,
    "aura_seeds": 6,
}


@functools.cache
def runs(name):
    return [one.run for one in spec.load(name, {}).cells]


def test_every_ready_spec_is_known_here_and_none_shares_its_stem():
    found = [path.stem for path in spec.SPECS.rglob("*.py") if path.stem != "__init__"]
    assert sorted(found) == sorted({*CELLS, *FROM_CHECKPOINTS})


@pytest.mark.parametrize("name", CELLS)
def test_ready_spec_makes_its_cells(name):
    assert len(runs(name)) == CELLS[name]


@pytest.fixture
def checkpoints(tmp_path, monkeypatch):
    """The folder where they are run, with the sizes alone of SmolLM2 and of Whisper's encoder."""
    monkeypatch.chdir(tmp_path)
    llm = dataclasses.replace(SMOLLM2_135M, front="none", family="llama")
    text = Text(tokenizer="tokenizer", template="chat")
    specs = {
        "smollm2/model.json": ModelSpec(llm, text=text),
        "whisper/front.json": FrontSpec("whisper", Mel("whisper", normalize="none"), Whisper()),
    }
    for file, made in specs.items():
        path = tmp_path / "checkpoints" / file
        path.parent.mkdir(parents=True)
        path.write_text(to_json(made))


@pytest.mark.usefixtures("checkpoints")
@pytest.mark.parametrize("name", [name for name in FROM_CHECKPOINTS if name != "aura_seeds"])
def test_ready_spec_from_checkpoints_makes_runs_of_what_they_hold(name):
    found = [one.run for one in spec.load(name, {}).cells]
    assert len(found) == FROM_CHECKPOINTS[name]
    starts = {(run.init.path, run.init.front, run.model.front, run.mel.kind) for run in found}
    assert ("checkpoints/smollm2", "", "linear", "whisper") in starts
    heard = {front for _, folder, front, _ in starts if folder}
    assert heard <= {"whisper"}
    assert all(run.text.tokenizer == "checkpoints/smollm2/tokenizer" for run in found)
    assert all((run.init.path == "") == (run.optim.train == "all") for run in found)
    taught = {run.distill.path for run in found if run.distill.teacher != "none"}
    assert taught == ({"checkpoints/whisper"} if name.startswith("aura") else set())
    for run in found:
        objective_of(run)  # whose layers meet


def sweep_of(name):
    return [one.run for one in spec.load(name, {}).cells]


@pytest.mark.usefixtures("checkpoints")
def test_aura_s_systems_read_the_same_and_train_what_each_has():
    bridge, lora, aura = sweep_of("aura_systems")
    read = {(run.data, run.optim.steps, run.optim.lr, run.mel) for run in (bridge, lora, aura)}
    assert len(read) == 1
    front = (bridge.model.front, bridge.optim.train, bridge.optim.encoder)
    assert front == ("whisper", "front", "frozen")
    projector = flops.count_parameters(bridge).front - flops.encoder_parameters(bridge)
    assert flops.trained_parameters(bridge) == projector
    plain = dataclasses.replace(aura, name=lora.name, distill=Distill())
    assert plain == lora
    assert aura.distill.frame == "clip"


@pytest.mark.usefixtures("checkpoints")
def test_aura_s_layers_are_spread_over_all_and_each_third_or_one():
    found = [run.distill.pairs(run.model.l) for run in sweep_of("aura_layers")]
    students = [[student for _, student in pairs] for pairs in found]
    assert students == [[7, 14, 22, 29], [2, 4, 7, 9], [12, 14, 17, 19], [22, 24, 27, 29], [9]]
    assert [[teacher for teacher, _ in pairs] for pairs in found] == [[0, 1, 2, 3]] * 4 + [[3]]
    # What `depth` would spread.
    assert Distill(teacher="whisper", depth=10).pairs(30) == found[1]


@pytest.mark.usefixtures("checkpoints")
def test_aura_s_other_sweeps_change_one_thing_from_the_same_start():
    start = sweep_of("aura_systems")[2]
    for name in ("aura_loss", "aura_weight"):
        for run in sweep_of(name):
            off = dataclasses.replace(run, name="", distill=Distill())
            assert off == dataclasses.replace(start, name="", distill=Distill())
    cfg = [run.distill for run in sweep_of("aura_loss")]
    assert [(one.loss, one.head, one.time) for one in cfg] == [
        ("cosine", "norm", "mean"),
        ("mse", "norm", "mean"),
        ("both", "norm", "mean"),
        ("cosine", "linear", "mean"),
        ("cosine", "norm", "strided"),
        ("cosine", "norm", "linear"),
    ]
    cfg = [run.distill for run in sweep_of("aura_weight")]
    assert [(one.weight, one.schedule, one.until) for one in cfg[1:]] == [
        *((weight, "constant", 0) for weight in (0.1, 0.3, 1.0, 3.0)),
        (1.0, "linear", 0),
        (1.0, "off", 400),
    ]
    assert cfg[0].teacher == "none"
    amounts = [
        (run.data.sources[0].hours, run.distill.teacher, run.optim.steps)
        for run in sweep_of("aura_data")
    ]
    assert amounts == [(h, who, 400) for h in (0.5, 2.0, 8.0) for who in ("none", "whisper")]


@pytest.mark.usefixtures("checkpoints")
def test_aura_s_seeds_are_pairs_of_a_small_run_at_random():
    found = sweep_of("aura_seeds")
    pairs = [(run.seed, run.distill.teacher) for run in found]
    assert pairs == [(seed, who) for seed in (0, 1, 2) for who in ("none", "whisper")]
    assert {(run.mel.kind, run.mel.normalize, run.init.path) for run in found} == {
        ("whisper", "none", "")
    }
    for run in found:
        objective_of(run)


def test_scaling_spends_each_budget_at_five_sizes():
    rows = budgets.RowShares(speech=0.43, fill=0.97)
    spent = []
    for run in runs("scaling"):
        held = run.data.b * run.data.t * run.optim.steps
        spent.append(
            flops.training_flops(run, held * rows.speech, held * (rows.fill - rows.speech))
        )
    wanted = [budget for budget in (1e17, 3e17, 1e18, 3e18, 1e19) for _ in range(5)]
    assert spent == pytest.approx(wanted, rel=0.01)
    assert len({flops.matmul_parameters(run) for run in runs("scaling")[:5]}) == 5
    assert all(run.optim.compute == "bfloat16" for run in runs("scaling"))


@pytest.mark.parametrize("name", ["token_rate", "synthetic_rate"])
def test_token_rate_changes_patches_and_rows_alone(name):
    found = runs(name)
    assert [run.mel.r for run in found] == [1, 2, 4, 8, 16]
    assert len({(run.model, run.data.b, run.optim) for run in found}) == 1
    assert all(x.data.t > y.data.t for x, y in zip(found, found[1:], strict=False))


def test_layer_ablation_freezes_from_the_top():
    found = runs("layer_ablation")
    assert [len(run.optim.freeze) for run in found] == [0, 4, 8, 12, 16]
    assert found[1].optim.freeze == (28, 29, 30, 31)
    assert all(run.optim.train == "lora" and run.lora.r for run in found)


def test_init_takes_the_converted_start_from_the_command_line():
    found = [one.run for one in spec.load("init", {"init.path": "phi"}).cells]
    starts = [(run.init.path, run.data.sources[0].hours) for run in found]
    amounts = (100.0, 1000.0, 10_000.0)
    assert starts == [(path, hours) for hours in amounts for path in ("", "phi")]
    assert all(run.optim.train == "all" and not run.lora.r for run in found)


def test_front_ends_of_a_size_see_the_same_data_by_the_same_rate():
    found = runs("front_end")
    linear, conv = ([run for run in found if run.model.front == x] for x in ("linear", "conv"))
    assert [(run.data, run.optim) for run in linear] == [(run.data, run.optim) for run in conv]
    assert all(
        flops.matmul_parameters(y) == pytest.approx(flops.matmul_parameters(x), rel=0.03)
        for x, y in zip(linear, conv, strict=True)
    )
    conformer = [run for run in found if run.model.front == "conformer"]
    assert [(run.data, run.optim) for run in conformer] == [(run.data, run.optim) for run in conv]
    for x, y in zip(conv, conformer, strict=True):
        more = flops.matmul_parameters(y) / flops.matmul_parameters(x)
        assert 1.05 < more < 1.15


def test_synthetic_is_four_sizes_at_four_numbers_of_updates():
    found = runs("synthetic")
    assert sorted({run.optim.steps for run in found}) == [400, 800, 1600, 3200]
    weights = sorted({flops.count_parameters(run).layers for run in found})
    assert weights == pytest.approx([0.12e6, 0.25e6, 0.5e6, 1e6], rel=0.2)
    assert {(run.data.t, run.data.b, run.model.v, run.optim.kind) for run in found} == {
        (128, 8, 128, "adamw")
    }


def test_text_spends_four_budgets_at_five_sizes_each_on_text_alone():
    found = runs("text")
    spent = [
        flops.training_flops(run, 0.0, 0.97 * run.data.b * run.data.t * run.optim.steps)
        for run in found
    ]
    assert spent == pytest.approx(
        [c for c in (6e11, 1.8e12, 5.4e12, 1.6e13) for _ in range(5)], rel=0.01
    )
    weights = [flops.matmul_parameters(run) for run in found]
    for line in range(0, 20, 5):
        assert weights[line : line + 5] == sorted(set(weights[line : line + 5]))
        assert weights[line] > (weights[line - 5] if line else 0)
    positions = [run.data.b * run.data.t * run.optim.steps for run in found]
    assert max(positions) < 4 * 6.3e6  # bytes of the text: fewer than four times round
    assert {(run.model.front, run.model.v, run.data.b * run.data.t) for run in found} == {
        ("none", 320, 2048)
    }
