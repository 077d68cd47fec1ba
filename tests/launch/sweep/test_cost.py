import re

import pytest

from launch.bench.matmul_rate import measure_matmul_rate
from launch.sweep import cost, spec
from launch.terminal import text_table
from melllm_jax import flops
from melllm_jax.errors import Mistake
from melllm_jax.planning import plan, topology

TEXT = """
def cells():
    return [{"preset": "ladder_350m", "optim.steps": steps} for steps in (1000, 4000)]
"""


@pytest.fixture
def sweep(tmp_path):
    path = tmp_path / "two.py"
    path.write_text(TEXT)
    return spec.load(str(path), {})


def test_a_pod_gives_the_hours_and_cost_of_plans_arithmetic(sweep):
    found = cost.plan_cells(sweep, "v5p:4x4x4", 3.0)
    run, pod = sweep.cells[0].run, topology.parse_pod("v5p:4x4x4")
    planned = plan.estimate_plan(run, pod, plan.mesh_sizes(run, pod))
    assert found[0]["hours"] == pytest.approx(1000 * planned.step_seconds / 3600)
    assert found[0]["cost"] == pytest.approx(64 * 3.0 * found[0]["hours"])
    assert found[1]["hours"] == pytest.approx(4 * found[0]["hours"])
    assert found[1]["flops"] == pytest.approx(4000 * flops.update_flops(run))
    assert found[1]["tokens"] == 4000 * run.data.b * run.data.t
    assert found[0]["params"] == flops.matmul_parameters(run)
    assert found[0]["params_total"] == flops.count_parameters(run).total


def test_no_price_is_no_cost(sweep):
    assert [one["cost"] for one in cost.plan_cells(sweep, "v5p:4x4x4", 0.0)] == [None, None]


def test_without_a_pod_hours_are_by_the_rate_of_a_device(sweep):
    found = cost.plan_cells(sweep, "", 2.0, {"bfloat16": 1e12}.get)
    assert found[0]["hours"] == pytest.approx(found[0]["flops"] / 1e12 / 3600)
    assert found[0]["cost"] == pytest.approx(2 * found[0]["hours"])


@pytest.mark.slow  # a process that imports JAX; commands/test_bench makes the product by default
def test_a_product_is_measured_at_more_than_a_gigaflop_a_second():
    assert 1e9 < measure_matmul_rate("float32") < 1e16


def test_rate_that_nobody_knows_leaves_hours_and_cost_open(sweep):
    found = cost.plan_cells(sweep, "", 2.0, cost.unknown_rate)
    assert [(one["hours"], one["cost"]) for one in found] == [(None, None)] * 2
    assert "–" in "\n".join(text_table.lines(cost.table(sweep, found)))


def test_a_cells_own_pod_serves_where_none_is_given(tmp_path):
    path = tmp_path / "own.py"
    path.write_text(TEXT.replace('"ladder_350m"', '"ladder_350m", "mesh.topology": "v5e:8x8"'))
    own = spec.load(str(path), {})
    assert cost.plan_cells(own, "", 0.0) == cost.plan_cells(own, "v5e:8x8", 0.0)


def test_a_pod_that_a_cell_does_not_fill_is_refused_with_the_cell(sweep):
    with pytest.raises(Mistake, match=rf"^cell {sweep.cells[0].id} on v5p:8x8x8: .*data\.b"):
        cost.plan_cells(sweep, "v5p:8x8x8", 0.0)  # 512 chips, 256 rows


def test_a_pod_that_does_not_exist_is_refused(sweep):
    with pytest.raises(Mistake, match="topology=v9:2x2"):
        cost.plan_cells(sweep, "v9:2x2", 0.0)


def test_table_has_a_line_a_cell_with_what_differs_and_the_totals(sweep):
    figures = cost.plan_cells(sweep, "v5p:4x4x4", 3.0)
    head, first, second, total = text_table.lines(cost.table(sweep, figures))
    columns = ["cell", "weights", "updates", "tokens", "FLOPs", "hours ≥", "cost ≥"]
    assert re.split(r" {2,}", head.strip()) == columns  # all but the updates is the same
    assert first.split()[1:] == [sweep.cells[0].id, "348", "M", "1,000", *first.split()[5:]]
    assert second.split()[4] == "4,000"
    assert total.split()[:2] == ["all", "5,000"]
    assert f"{figures[0]['flops'] + figures[1]['flops']:.2e}" in total
    assert len({len(line) for line in (head, first, second, total)}) == 1


def test_table_shows_the_fields_that_cells_differ_in(tmp_path):
    path = tmp_path / "mixed.py"
    path.write_text(
        "def cells(): return [{'preset': 'digits', 'seed': 1, 'optim.freeze': [0, 1, 2]},"
        "{'preset': 'digits', 'seed': 2, 'model.front': 'conv', 'optim.freeze': [0, 1, 2]}]"
    )
    mixed = spec.load(str(path), {})
    none = {"hours": None, "cost": None, "params": 1, "flops": 1.0, "tokens": 5e12}
    lines = text_table.lines(cost.table(mixed, [none, none]))
    assert lines[0].split()[:3] == ["cell", "seed", "model.front"]
    assert lines[2].split()[2:4] == ["2", "conv"]
    assert lines[1].split()[2:4] == ["1", "1"]  # its own front is the preset's: left blank
    assert lines[3].split() == ["all", "1,600", "10", "T", "2.00e+00", "–", "–"]
