"""`melllm plan`: what a preset needs on a pod that nobody has booked yet, and what limits it."""

from collections.abc import Iterator, Sequence
import dataclasses
import json
import sys
from typing import Any

from launch.terminal.flags import RunArguments, run_arguments
from launch.terminal.progress_bar import ProgressBar
from melllm_jax.config.run import Run
from melllm_jax.errors import Fault, Mistake
from melllm_jax.planning import plan, topology
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
    found = search_plans(run, pod, arguments.tries) if arguments.search else [plan_run(run, pod)]
    told = [figures(one, run, arguments) for one in found]
    if arguments.json:
        print(json.dumps({"plans": told} if arguments.search else told[0]))
    elif arguments.search:
        print("\n".join(_ranking(found)))
    else:
        print("\n".join(_lines(found[0], told[0])))
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
    bar, found, failed = ProgressBar(tries, unit="way"), [], []
    for way, rough in ways[:tries]:
        bar.status(f"compiling {_describe(rough)}…")
        try:
            found.append(plan.compile_plan(way, pod))
        except Fault as fault:  # of the compiler's own, with one program and not with another
            failed.append(f"{_describe(rough)}: {fault}")
            bar.log(f"left out: {failed[-1]}")
    bar.close()
    if not found:
        raise Fault(f"search: none of {len(failed)} ways compiles: {failed[0]}")
    return sorted(found, key=lambda one: (not one.fits, one.step_seconds, one.serial_seconds))


def figures(one: Plan, run: Run, arguments: PlanArguments) -> dict[str, Any]:
    """A plan as plain data, with rates, hours and cost of the whole run."""
    seconds = one.positions * arguments.speech * run.mel.r * run.mel.hop_seconds
    hours_an_update = seconds / 3600
    updates = arguments.audio / hours_an_update if arguments.audio else float(run.optim.steps)
    chip_hours = updates * one.step_seconds * one.chips / 3600
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
        "parameters": {"total": one.total, "trained": one.trained},
        "positions": one.positions,
        "flops": {"useful": one.useful_flops, "executed": one.executed_flops},
        "hbm": dataclasses.asdict(one.memory),
        "fits": one.fits,
        "collectives": [dataclasses.asdict(each) for each in one.collectives],
        "seconds": dict(one.limits) | {"xla": one.xla_seconds},
        "limit": one.limit,
        "step_seconds": one.step_seconds,
        "step_seconds_nothing_hidden": one.serial_seconds,
        "mfu": one.mfu,
        "mfu_nothing_hidden": one.useful_flops / one.peak / one.serial_seconds,
        "tokens_per_second": one.positions / one.step_seconds,
        "audio_hours_per_second": hours_an_update / one.step_seconds,
        "updates": updates,
        "hours": updates * one.step_seconds / 3600,
        "chip_hours": chip_hours,
        "cost": chip_hours * arguments.price if arguments.price else None,
        "unknown": list(one.unknown),
    }


def _describe(one: Plan) -> str:
    mesh = " × ".join(f"{axis} {size}" for axis, size in one.mesh.items() if size > 1)
    return f"{mesh or 'one chip'}, remat {one.remat}, micro {one.micro}"


def _gib(size: float | None) -> str:
    return "–" if size is None else f"{size / 2**30:.2f}"


def _ranking(found: Sequence[Plan]) -> Iterator[str]:
    yield f"{found[0].preset} on {found[0].pod}, estimates ({found[0].source}), best first:"
    for one in found:
        size = f"{_gib(one.memory.needed)} of {_gib(one.memory.capacity)} GiB"
        fits = "fits" if one.fits else "does not fit"
        yield (
            f"  {one.step_seconds:7.3f} s  MFU ≤ {one.mfu:5.1%}  {size:>21} {fits:12}  "
            f"{one.limit:6}  {_describe(one)}"
        )


def _lines(one: Plan, told: dict[str, Any]) -> Iterator[str]:
    memory = one.memory
    parts = (memory.arguments, memory.activations, memory.code)
    yield f"{one.preset} on {one.pod}: {_describe(one)}"
    compiled = one.source == "compiled"
    how = f"compiled in {one.compile_seconds:.0f} s" if compiled else "arithmetic alone"
    yield f"  {how}; every time and rate below is an estimate"
    yield f"parameters   {one.total:,}, trained {one.trained:,}"
    yield (
        f"FLOPs        {one.useful_flops:.3e} an update of {one.positions:,} positions; "
        f"{one.executed_flops:.3e} with what is done twice"
    )
    fits = "fits" if one.fits else "DOES NOT FIT"
    yield (
        f"HBM a device {_gib(memory.needed)} of {_gib(memory.capacity)} GiB: {fits} "
        "(arguments {}, activations {}, code {})".format(*map(_gib, parts))
    )
    for each in one.collectives:
        axes = "×".join(each.axes) or "other"
        hidden = "asynchronous" if each.hidden else "synchronous"
        yield (
            f"collective   {each.kind} over {axes} ({each.devices}): {each.bytes / 1e9:.3f} GB a "
            f"chip in {each.times} calls, {hidden}"
        )
    limits = ", ".join(f"{name} {seconds:.3f}" for name, seconds in one.limits.items())
    yield f"seconds      {limits}: limited by {one.limit}"
    if one.xla_seconds is not None:
        seconds = f"{one.xla_seconds:.3f}"
        yield f"             {seconds} as XLA estimates its instructions, collectives apart"
    yield (
        f"update       {one.step_seconds:.3f} s if all else hides behind {one.limit}, "
        f"{one.serial_seconds:.3f} s if nothing hides: MFU at most {one.mfu:.1%}, "
        f"{told['mfu_nothing_hidden']:.1%}"
    )
    yield (
        f"rate         {told['tokens_per_second']:,.0f} positions, "
        f"{told['audio_hours_per_second']:.2f} h of sound a second"
    )
    cost = f", {told['cost']:,.0f} at the price given" if told["cost"] is not None else ""
    yield (
        f"whole run    {told['updates']:,.0f} updates: {told['hours']:,.1f} h, "
        f"{told['chip_hours']:,.0f} chip-hours{cost}"
    )
    if one.unknown:
        yield f"not counted  {'; '.join(one.unknown)}"
