"""Estimates what each cell of a sweep takes: weights, FLOPs, tokens, hours and cost.

All is counted from the config: every position of a row, padding too, and speech at each, so that
tokens and FLOPs are upper bounds of those in final.json. Hours are estimates, and lower bounds.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from rich.table import Table

from launch.bench.matmul_rate import measure_matmul_rate
from launch.sweep.spec import SweepCell, SweepSpec, differing_fields
from launch.terminal import text_table
from launch.terminal.flags import format_source
from launch.terminal.number_format import format_count, shorten
from melllm_jax import flops, vocoder_flops
from melllm_jax.config.run import BaseRun, Run
from melllm_jax.config.vocoder_run import VocoderRun
from melllm_jax.errors import Mistake
from melllm_jax.planning import plan
from melllm_jax.planning.topology import Pod, parse_pod

Rate = Callable[[str], float | None]  # FLOP/s of a device, of a dtype


def unknown_rate(_dtype: str) -> None:
    """The rate of a device that this machine does not have: None."""


def plan_cells(
    sweep: SweepSpec, topology: str, price: float, rate: Rate = measure_matmul_rate
) -> list[dict[str, Any]]:
    """params, params_total, flops, tokens, hours and cost of each cell, in order.

    With a pod (`topology`, else the cell's own mesh.topology) hours are the roofline's of
    `melllm plan`, by arithmetic: all chips, all but the slowest hidden. Without one they are what
    the FLOPs take at `rate`: by default that of this machine's first device in a large matrix
    product, which no training reaches; None where that is not known. cost is `price` a chip-hour,
    None for a price of 0. Raises Mistake, with the cell, for a topology that does not exist or a
    mesh that does not fit it.
    """
    return [_plan_cell(cell, topology, price, rate) for cell in sweep.cells]


def _plan_cell(cell: SweepCell, topology: str, price: float, rate: Rate) -> dict[str, Any]:
    run = cell.run
    params, params_total, work = _sizes(run)
    total_flops = work * run.optim.steps
    topology = topology or run.mesh.topology
    seconds: float | None
    if topology:
        pod = parse_pod(topology, run.mesh.slices)
        try:
            update = _update_seconds(run, pod, work)
        except Mistake as mistake:
            raise Mistake(f"cell {cell.id} on {pod}: {mistake}") from mistake
        seconds, chips = update * run.optim.steps, pod.chips
    else:
        speed, chips = rate(run.optim.compute), 1
        seconds = None if speed is None else total_flops / speed
    hours = None if seconds is None else seconds / 3600
    return {
        "params": params,
        "params_total": params_total,
        "flops": total_flops,
        "tokens": run.data.b * run.data.t * run.optim.steps,
        "hours": hours,
        "cost": hours * chips * price if price and hours is not None else None,
    }


def _sizes(run: BaseRun) -> tuple[int, int, float]:
    """Weights that multiply, all weights, and FLOPs of an update.

    A vocoder's discriminators count among all.
    """
    if isinstance(run, VocoderRun):
        own = vocoder_flops.generator_parameters(run)
        judges = vocoder_flops.discriminator_parameters(run)
        return own, own + judges, vocoder_flops.vocoder_update_flops(run)
    assert isinstance(run, Run)
    work = flops.update_flops(run) + flops.distillation_flops(run)
    return flops.matmul_parameters(run), flops.count_parameters(run).total, work


def _update_seconds(run: BaseRun, pod: Pod, work: float) -> float:
    """Seconds of an update on a pod: of a vocoder those of its products, at the chips' peak."""
    if not isinstance(run, Run):
        return work / (pod.chip.flops * pod.chips)
    return plan.estimate_plan(run, pod, plan.mesh_sizes(run, pod)).step_seconds


def table(sweep: SweepSpec, figures: Sequence[Mapping[str, Any]]) -> Table:
    """The dry run: a row a cell with the fields that differ between cells, and the totals."""
    fields = differing_fields([cell.overrides for cell in sweep.cells])
    fields = [field for field in fields if field != "optim.steps"]
    numbers = ("weights", "updates", "tokens", "FLOPs", "hours ≥", "cost ≥")
    rows = []
    for index, (cell, one) in enumerate(zip(sweep.cells, figures, strict=True)):
        values = (shorten(_shown(cell, field)) for field in fields)
        rows.append((str(index), cell.id, *values, *_numbers(one, cell.run.optim.steps)))
    updates = sum(cell.run.optim.steps for cell in sweep.cells)
    rows.append(("", "all", *[""] * len(fields), *_numbers(_total(figures), updates)))
    first = 2 + len(fields)  # the column of the first number
    heads = ("", "cell", *fields, *numbers)
    return text_table.table(heads, rows, right=range(first, len(heads)), elastic=range(2, first))


def _shown(cell: SweepCell, field: str) -> Any:
    """A cell's own value of a field; of corpora what `--data` would be given."""
    value = cell.overrides.get(field, "")
    if field == "data.sources" and value:
        return " ".join(map(format_source, cell.run.data.sources))
    return value


def _total(figures: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Sums; None where a cell has no figure. Weights are no sum."""
    total: dict[str, Any] = {"params": None}
    for name in ("tokens", "flops", "hours", "cost"):
        values = [one[name] for one in figures]
        total[name] = None if None in values else sum(values)
    return total


def _numbers(one: Mapping[str, Any], updates: int) -> Iterator[str]:
    yield "" if one["params"] is None else format_count(one["params"])
    yield f"{updates:,}"
    yield "" if one["tokens"] is None else format_count(one["tokens"])
    yield f"{one['flops']:.2e}"
    yield "–" if one["hours"] is None else f"{one['hours']:,.3g}"
    yield "–" if one["cost"] is None else f"{one['cost']:,.2f}"
