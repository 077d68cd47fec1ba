"""Compiles a run's step for a pod that is not here: what it needs, and what limits it.

Exact are the parameters, the FLOPs and, where the step was compiled, what the compiler allots of
memory; everything else is an estimate.
"""

from collections.abc import Mapping
import dataclasses
import re
import time
from typing import Literal

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from melllm_jax import flops, xla_options
from melllm_jax.batch import Batch
from melllm_jax.config.run import Run
from melllm_jax.errors import Fault, Mistake
from melllm_jax.nn import attention_kernels
from melllm_jax.objectives.run_objective import objective_of
from melllm_jax.planning import compiled_cost, topology, traced_flops
from melllm_jax.planning.analytic_cost import estimate_cost
from melllm_jax.planning.collectives import Collective
from melllm_jax.sharding import AXES, a, check_mesh, make_mesh, resolve_mesh
from melllm_jax.training.train_step import Update

SIZE_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes of one device's memory."""

    capacity: int
    needed: float  # at the fullest moment
    arguments: float  # weights, optimiser state and batch
    activations: float | None  # all that comes and goes; None where the compiler gave up on it
    code: float | None


@dataclasses.dataclass(frozen=True)
class Plan:
    """A run on a pod. FLOPs, bytes and seconds are of one update."""

    preset: str
    pod: str
    chips: int
    mesh: Mapping[str, int]
    remat: str
    micro: int
    source: Literal["compiled", "arithmetic"]  # arithmetic: nothing was compiled
    total: int  # parameters
    trained: int
    teacher: int  # parameters of the frozen network that teaches, no part of the total
    positions: int  # b · t
    useful_flops: float  # FLOPs of all chips that the model asks for
    distillation_flops: float  # FLOPs that the teacher and the heads add to them
    executed_flops: float  # both, with what is done twice
    memory: Memory
    fits: bool
    collectives: tuple[Collective, ...]
    limits: Mapping[str, float]  # seconds by matmul, hbm, ici and dcn, each by itself
    xla_seconds: (
        float | None
    )  # seconds: XLA's estimate, instruction by instruction, without collectives
    compile_seconds: float
    unknown: tuple[str, ...]  # what could not be counted
    peak: float  # FLOP/s of all chips

    @property
    def limit(self) -> str:
        """Name of what takes longest."""
        return max(self.limits, key=lambda name: self.limits[name])

    @property
    def step_seconds(self) -> float:
        """Seconds of an update where all else is hidden behind the slowest."""
        return max(self.limits.values())

    @property
    def serial_seconds(self) -> float:
        """Seconds of an update where nothing is hidden."""
        return sum(self.limits.values())

    @property
    def mfu(self) -> float:
        """Share of the peak that useful products have in `step`: what the roofline allows.

        Useful are those of the model that stays; a teacher's take time and count as none.
        """
        return self.useful_flops / self.peak / self.step_seconds


@dataclasses.dataclass(frozen=True)
class _CompiledStep:
    """A run's step, as far as the compiler came with it."""

    traced: traced_flops.TracedFlops
    compiled: jax.stages.Compiled | None  # None where it needs more memory than there is
    text: str  # its HLO; the compiler's complaint where there is none
    seconds: float  # of lowering and compiling


def compile_plan(run: Run, pod: topology.Pod) -> Plan:
    """Compile the step of `run` for `pod`, on its mesh.

    Raises Mistake for a mesh that is not the pod's size or does not divide what it splits, Fault
    where the compiler itself fails.
    """
    mesh_sizes(run, pod)
    mesh = make_mesh(run.mesh, topology.pod_devices(pod))
    step = _compile_step(run, mesh, pod)
    estimate = estimate_plan(run, pod, dict(mesh.shape))
    flop, kernel_share = step.traced, _computed_tile_share(run, mesh)
    plan = dataclasses.replace(
        estimate,
        source="compiled",
        executed_flops=flop.dot + flop.conv + flop.kernel * kernel_share,
        compile_seconds=step.seconds,
        unknown=flop.unknown,
    )
    matmul = plan.executed_flops / plan.peak
    if step.compiled is None:
        needed = _first_size(step.text, estimate.memory.needed)
        memory = Memory(estimate.memory.capacity, needed, estimate.memory.arguments, None, None)
        limits = {**estimate.limits, "matmul": matmul}
        return dataclasses.replace(plan, memory=memory, fits=False, limits=limits)
    memory = _compiled_memory(step.compiled, estimate.memory.capacity)
    cost = compiled_cost.program_cost(step.text, dict(mesh.shape))
    hbm = cost.traffic / pod.chip.bandwidth * pod.chip.devices
    clock = pod.chip.clock
    return dataclasses.replace(
        plan,
        memory=memory,
        fits=memory.needed <= memory.capacity,
        collectives=cost.collectives,
        limits={
            "matmul": matmul,
            "hbm": hbm,
            **_collective_seconds(cost.collectives, mesh, pod),
        },
        xla_seconds=cost.cycles / clock if cost.cycles is not None and clock else None,
        unknown=(*plan.unknown, *cost.unknown),
    )


def _compile_step(run: Run, mesh: jax.sharding.Mesh, pod: topology.Pod) -> _CompiledStep:
    """The run's step traced and compiled for the mesh of `pod`. Raises Fault."""
    with jax.set_mesh(mesh):
        update = Update(objective_of(run))
        state = update.shapes(mesh)
        traced = jax.jit(update, donate_argnums=0).trace(state, batch_shapes(run, mesh))
        flop = traced_flops.count_flops(traced.jaxpr)
        began = time.perf_counter()
        compiled: jax.stages.Compiled | None
        try:
            lowered, absent_chip = traced.lower(), xla_options.absent_chip_options(mesh)
            compiled, text = xla_options.compile_with_fallback(
                lambda options: compiled_cost.compile_with_hlo(lowered, {**options, **absent_chip}),
                mesh,
            )
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise Fault(
                    f"{pod} cannot be compiled for: {str(error).splitlines()[0]}"
                ) from error
            compiled, text = None, str(error)
        return _CompiledStep(flop, compiled, text, time.perf_counter() - began)


def _compiled_memory(compiled: jax.stages.Compiled, capacity: int) -> Memory:
    """Bytes of a device that a compiled step needs, as the compiler tells them."""
    analysis = compiled.memory_analysis()
    assert analysis is not None, "XLA tells the memory of all that it compiles for chips"
    arguments = float(analysis.argument_size_in_bytes)
    code = float(analysis.generated_code_size_in_bytes)
    results = analysis.output_size_in_bytes - analysis.alias_size_in_bytes
    activations = float(analysis.temp_size_in_bytes + results)
    needed = arguments + activations + code
    return Memory(capacity, needed, arguments, activations, code)


def estimate_plan(run: Run, pod: topology.Pod, sizes: Mapping[str, int]) -> Plan:
    """The plan by arithmetic alone: nothing is traced or compiled, and no device is asked for."""
    cost, parts = estimate_cost(run, sizes), pod.chip.devices
    count, chip = flops.count_parameters(run), pod.chip
    capacity = chip.hbm // parts
    needed = cost.state + cost.activations
    peak = chip.flops * pod.chips
    slow = {"replica"} if pod.slices > 1 else set()
    inside = sum(x for axis, x in cost.bytes_sent.items() if axis not in slow)
    outside = sum(x for axis, x in cost.bytes_sent.items() if axis in slow)
    ici = (2 * chip.link * chip.torus if chip.torus else chip.link) / parts
    dcn = chip.network / parts  # by an adapter of its own
    if not chip.torus and pod.chips > chip.domain:  # rings go through all servers
        inside, outside, dcn = 0.0, inside, min(ici, chip.network * chip.domain)
    limits = {
        "matmul": cost.executed_flops / peak,
        "hbm": 0.0,
        "ici": inside / ici,
        "dcn": outside / dcn,
    }
    return Plan(
        preset=run.name,
        pod=str(pod),
        chips=pod.chips,
        mesh=dict(sizes),
        remat=remat_label(run),
        micro=run.optim.micro,
        source="arithmetic",
        total=count.total,
        trained=flops.trained_parameters(run),
        teacher=flops.teacher_parameters(run),
        positions=run.data.b * run.data.t,
        useful_flops=flops.update_flops(run),
        distillation_flops=flops.distillation_flops(run),
        executed_flops=cost.executed_flops,
        memory=Memory(capacity, needed, cost.state, cost.activations, 0.0),
        fits=needed <= capacity,
        collectives=(),
        limits=limits,
        xla_seconds=None,
        compile_seconds=0.0,
        unknown=(),
        peak=peak,
    )


def mesh_sizes(run: Run, pod: topology.Pod) -> dict[str, int]:
    """The mesh of a run on a pod, by axis.

    Raises Mistake where it is not the pod's size or does not divide what it splits.
    """
    devices = pod.chips * pod.chip.devices
    resolved = resolve_mesh(run.mesh, devices, f"of {pod}")
    if resolved.replica % pod.slices:
        raise Mistake(
            f"mesh.replica={resolved.replica}: must be a multiple of the {pod.slices} slices"
        )
    sizes = {axis: getattr(resolved, axis) for axis in AXES}
    check_mesh(run, jax.sharding.AbstractMesh(tuple(sizes.values()), tuple(sizes)))
    return sizes


def batch_shapes(run: Run, mesh: jax.sharding.Mesh) -> Batch:
    """A batch of the run without its numbers, laid out on `mesh`."""
    b, t = run.data.b, run.data.t

    def column(dtype: DTypeLike, *more: int) -> jax.ShapeDtypeStruct:
        sharding = jax.NamedSharding(mesh, a("b t p" if more else "b t"))
        return jax.ShapeDtypeStruct((b, t, *more), dtype, sharding=sharding)

    columns = {name: column(jnp.int32) for name in Batch._fields}
    columns["patches"] = column(jnp.dtype(run.data.wire), run.patch_width)
    columns["loss_weight"] = column(jnp.float32)
    return Batch(**columns)


def remat_label(run: Run) -> str:
    """The run's policy of rematerialisation, with the names that it keeps."""
    name = run.model.remat
    return f"{name}({','.join(run.model.kept)})" if name in ("named", "offload") else name


def _computed_tile_share(run: Run, mesh: jax.sharding.Mesh) -> float:
    """Share of its grid that the run's attention kernel computes.

    All of it where a teacher has kernels as well, that see both ways and are most of the work.
    """
    if run.distill.teacher != "none" and run.distill.frame == "clip":
        return 1.0
    with jax.set_mesh(mesh):
        kernel = attention_kernels.choose_kernel(run.model.attention, run.data.t, run.optim.compute)
    if mesh.shape["seq"] > 1 or run.model.speech == "bidirectional" or kernel == "blocks":
        return 1.0
    # cuDNN skips what is not causal, but not what a window leaves out: that is in its mask.
    return attention_kernels.splash_tile_share(
        run.data.t, run.model.window if kernel == "splash" else 0
    )


def _collective_seconds(
    collectives: tuple[Collective, ...], mesh: jax.sharding.Mesh, pod: topology.Pod
) -> dict[str, float]:
    """Seconds that collectives take inside a slice or server (ici), and beyond it (dcn)."""
    seconds = {"ici": 0.0, "dcn": 0.0}
    for one in collectives:
        rate, crosses = topology.link_rate(mesh, one.axes, pod)
        seconds["dcn" if crosses else "ici"] += one.bytes / rate
    return seconds


def _first_size(text: str, default: float) -> float:
    """Bytes of the first size such as "(73.53G)" in a compiler's complaint."""
    found = re.search(r"\(([\d.]+)([KMGT])\)", text)
    return float(found[1]) * SIZE_UNITS[found[2]] if found else default
