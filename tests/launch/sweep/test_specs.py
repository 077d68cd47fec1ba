import functools

import pytest

from launch.sweep import budgets, spec
from melllm_jax import flops

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


@functools.cache
def runs(name):
    return [one.run for one in spec.load(name, {}).cells]


def test_every_ready_spec_is_known_here():
    found = {path.stem for path in spec.SPECS.glob("*.py")} - {"__init__"}
    assert found == set(CELLS)


@pytest.mark.parametrize("name", CELLS)
def test_ready_spec_makes_its_cells(name):
    assert len(runs(name)) == CELLS[name]


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
