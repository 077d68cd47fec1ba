"""`melllm plan`: what a preset needs on a pod that nobody has booked yet, and what limits it."""

from collections.abc import Iterator, Sequence
import dataclasses
import json
import sys
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from launch.terminal import text_table
from launch.terminal.flags import RunArguments, run_arguments
from launch.terminal.number_format import format_gib
from launch.terminal.progress_bar import ProgressBar
from melllm_jax.config.run import Run
from melllm_jax.errors import Fault, Mistake
from melllm_jax.planning import plan, topology
from melllm_jax.planning.collectives import Collective
from melllm_jax.planning.plan import Plan
from melllm_jax.planning.search import candidate_plans
from melllm_jax.presets import catalog

TRIES = 6  # ways that `--search` compiles where --tries does not say


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlanArguments(RunArguments):
    """Compile PRESET's real step for a pod that is not here: memory, time and cost, estimated."""

    search: bool = False  # try meshes, remat and micro-batches; print what fits, best first
    tries: int = TRIES  # ways that --search compiles, the most promising first
    audio: float = 0.0  # hours of sound to read, epochs together; 0: what optim.steps reads
    speech: float = 0.8  # share of positions that hold speech, for figures in hours of sound
    price: float = 0.0  # of a chip for an hour; 0 tells no cost
    json: bool = False  # one JSON object on standard output

    def __post_init__(self) -> None:
        for name, holds, rule in (
            ("tries", self.tries > 0, "must be positive"),
            ("audio", self.audio >= 0, "must be 0 or more hours"),
            ("speech", 0 < self.speech <= 1, "must lie in (0, 1]"),
            ("price", self.price >= 0, "must be 0 or more"),
        ):
            if not holds:
                raise Mistake(f"{name}={getattr(self, name)}: {rule}")


def main(argv: Sequence[str]) -> int:
    """`melllm plan PRESET --topology v5p:4x4x4 [--slices 2] [--mesh.fsdp 64 …] [--json]`."""
    arguments = run_arguments(
        PlanArguments, argv, catalog.preset, prog="melllm plan", presets=catalog.PRESETS
    )
    run = arguments.run
    if not run.mesh.topology:
        raise Mistake(
            f"no --topology given: one of {', '.join(topology.KINDS)} and its size: v5p:4x4x4"
        )
    pod = topology.parse_pod(run.mesh.topology, run.mesh.slices)
    plans = search_plans(run, pod, arguments.tries) if arguments.search else [plan_run(run, pod)]
    estimates = [estimate_run(one, run, arguments) for one in plans]
    if arguments.json:
        trees = [figures(*pair) for pair in zip(plans, estimates, strict=True)]
        print(json.dumps({"plans": trees} if arguments.search else trees[0]))
    else:
        text_table.show(_ranking(plans) if arguments.search else _report(plans[0], estimates[0]))
    return 0


def plan_run(run: Run, pod: topology.Pod) -> Plan:
    """The plan of `run` as it stands; by arithmetic where no compiler for the pod is installed."""
    sizes = plan.mesh_sizes(run, pod)
    if topology.has_compiler(pod):
        return plan.compile_plan(run, pod)
    print(
        f"melllm plan: nothing here compiles for {pod} (pip install "
        f"'melllm_jax[{'plan-gpu' if pod.gpu else 'plan'}]'): arithmetic alone",
        file=sys.stderr,
    )
    return plan.estimate_plan(run, pod, sizes)


def search_plans(run: Run, pod: topology.Pod, tries: int) -> list[Plan]:
    """Ways to run `run` on `pod`: those that fit first, the fastest of them first.

    All are ranked by arithmetic; the `tries` most promising are compiled. Raises Mistake where no
    mesh splits the run, Fault where none of the ways compiles.
    """
    ways = sorted(
        candidate_plans(run, pod),
        key=lambda way: (not way[1].fits, way[1].step_seconds, way[1].serial_seconds),
    )
    if not ways:
        raise Mistake(f"search: no mesh of {pod.chips} chips splits data.b={run.data.b} evenly")
    if not topology.has_compiler(pod):
        return [rough for _, rough in ways[:tries]]
    bar, found, failed = ProgressBar(tries, "ways"), [], []
    for way, rough in ways[:tries]:
        bar.status(f"compiling {_layout(rough)}…")
        try:
            found.append(plan.compile_plan(way, pod))
        except Fault as fault:  # of the compiler's own, with one program and not with another
            failed.append(f"{_layout(rough)}: {fault}")
            bar.log(f"left out: {failed[-1]}")
    bar.close()
    if not found:
        raise Fault(f"search: none of {len(failed)} ways compiles: {failed[0]}")
    return sorted(found, key=lambda one: (not one.fits, one.step_seconds, one.serial_seconds))


@dataclasses.dataclass(frozen=True)
class RunEstimate:
    """What a plan's step makes of the whole run."""

    updates: float
    hours: float
    chip_hours: float
    cost: float | None  # None where no price is given
    audio_hours_per_second: float
    tokens_per_second: float  # positions
    mfu_nothing_hidden: float


def estimate_run(one: Plan, run: Run, arguments: PlanArguments) -> RunEstimate:
    """Rates, hours and cost of the run that `one` is a plan of."""
    hours_an_update = one.positions * arguments.speech * run.mel.r * run.mel.hop_seconds / 3600
    updates = arguments.audio / hours_an_update if arguments.audio else float(run.optim.steps)
    chip_hours = updates * one.step_seconds * one.chips / 3600
    return RunEstimate(
        updates=updates,
        hours=updates * one.step_seconds / 3600,
        chip_hours=chip_hours,
        cost=chip_hours * arguments.price if arguments.price else None,
        audio_hours_per_second=hours_an_update / one.step_seconds,
        tokens_per_second=one.positions / one.step_seconds,
        mfu_nothing_hidden=one.useful_flops / one.peak / one.serial_seconds,
    )


def figures(one: Plan, estimate: RunEstimate) -> dict[str, Any]:
    """A plan and what it makes of the run, as --json prints them."""
    return {
        "preset": one.preset,
        "pod": one.pod,
        "chips": one.chips,
        "mesh": dict(one.mesh),
        "remat": one.remat,
        "micro": one.micro,
        "source": one.source,
        "compile_seconds": one.compile_seconds,
        "estimate": True,
        "parameters": {"total": one.total, "trained": one.trained, "teacher": one.teacher},
        "positions": one.positions,
        "flops": {
            "useful": one.useful_flops,
            "distillation": one.distillation_flops,
            "executed": one.executed_flops,
        },
        "hbm": dataclasses.asdict(one.memory),
        "fits": one.fits,
        "collectives": [dataclasses.asdict(each) for each in one.collectives],
        "seconds": dict(one.limits) | {"xla": one.xla_seconds},
        "limit": one.limit,
        "step_seconds": one.step_seconds,
        "step_seconds_nothing_hidden": one.serial_seconds,
        "mfu": one.mfu,
        "mfu_nothing_hidden": estimate.mfu_nothing_hidden,
        "tokens_per_second": estimate.tokens_per_second,
        "audio_hours_per_second": estimate.audio_hours_per_second,
        "updates": estimate.updates,
        "hours": estimate.hours,
        "chip_hours": estimate.chip_hours,
        "cost": estimate.cost,
        "unknown": list(one.unknown),
    }


def _ranking(plans: Sequence[Plan]) -> RenderableType:
    """The plans of a search, a row each, in their order."""
    title = f"{plans[0].preset} on {plans[0].pod}, estimates ({plans[0].source}), best first:"
    rows = [
        (
            f"  {one.step_seconds:.3f} s",
            f"MFU ≤ {one.mfu:5.1%}",
            f"{format_gib(one.memory.needed)} of {format_gib(one.memory.capacity)}",
            "GiB fits" if one.fits else "GiB does not fit",
            one.limit,
            _layout(one),
        )
        for one in plans
    ]
    return Group(Text(title), text_table.table([""] * 6, rows, right=(0, 1, 2), elastic=(5,)))


def _report(one: Plan, estimate: RunEstimate) -> RenderableType:
    """A plan in labelled lines."""
    compiled, taught = one.source == "compiled", one.teacher > 0
    how = f"compiled in {one.compile_seconds:.0f} s" if compiled else "arithmetic alone"
    rows = [
        ("parameters", f"{one.total:,}, trained {one.trained:,}"),
        (
            "FLOPs",
            f"{one.useful_flops:.3e} an update of {one.positions:,} positions; "
            f"{one.executed_flops:.3e} with what is done twice{' and the teacher' * taught}",
        ),
        *_teacher_rows(one),
        ("HBM a device", _memory_text(one)),
        *(("collective", _collective_text(each)) for each in one.collectives),
        *_time_rows(one, estimate),
    ]
    if one.unknown:
        rows.append(("not counted", "; ".join(one.unknown)))
    return Group(
        Text(f"{one.preset} on {one.pod}: {_layout(one)}"),
        Text(f"  {how}; every time and rate below is an estimate"),
        text_table.label_grid(rows),
    )


def _teacher_rows(one: Plan) -> Iterator[tuple[str, str]]:
    """What a teacher is and costs, heads included; MFU leaves it out."""
    if one.teacher:
        share = one.distillation_flops / one.useful_flops
        yield (
            "teacher",
            f"{one.teacher:,} parameters, frozen; {one.distillation_flops:.3e} FLOPs an update, "
            f"{share:.1%} of the model's, which alone count in MFU",
        )


def _memory_text(one: Plan) -> str:
    memory = one.memory
    parts = [format_gib(x) for x in (memory.arguments, memory.activations, memory.code)]
    return (
        f"{format_gib(memory.needed)} of {format_gib(memory.capacity)} GiB: "
        f"{'fits' if one.fits else 'DOES NOT FIT'} "
        "(arguments {}, activations {}, code {})".format(*parts)
    )


def _collective_text(each: Collective) -> str:
    axes = "×".join(each.axes) or "other"
    return (
        f"{each.kind} over {axes} ({each.devices}): {each.bytes / 1e9:.3f} GB a chip in "
        f"{each.times} calls, {'asynchronous' if each.hidden else 'synchronous'}"
    )


def _time_rows(one: Plan, estimate: RunEstimate) -> Iterator[tuple[str, str]]:
    limits = ", ".join(f"{name} {seconds:.3f}" for name, seconds in one.limits.items())
    yield "seconds", f"{limits}: limited by {one.limit}"
    if one.xla_seconds is not None:
        yield "", f"{one.xla_seconds:.3f} as XLA estimates its instructions, collectives apart"
    yield (
        "update",
        f"{one.step_seconds:.3f} s if all else hides behind {one.limit}, "
        f"{one.serial_seconds:.3f} s if nothing hides: MFU at most {one.mfu:.1%}, "
        f"{estimate.mfu_nothing_hidden:.1%}",
    )
    yield (
        "rate",
        f"{estimate.tokens_per_second:,.0f} positions, "
        f"{estimate.audio_hours_per_second:.2f} h of sound a second",
    )
    cost = "" if estimate.cost is None else f", {estimate.cost:,.0f} at the price given"
    yield (
        "whole run",
        f"{estimate.updates:,.0f} updates: {estimate.hours:,.1f} h, "
        f"{estimate.chip_hours:,.0f} chip-hours{cost}",
    )


def _layout(one: Plan) -> str:
    """Mesh, rematerialisation and micro-batches in words."""
    mesh = " × ".join(f"{axis} {size}" for axis, size in one.mesh.items() if size > 1)
    return f"{mesh or 'one chip'}, remat {one.remat}, micro {one.micro}"
