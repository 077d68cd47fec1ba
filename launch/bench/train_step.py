"""`melllm bench train`: the update of a preset, timed beside the plain product of two matrices."""

from collections.abc import Sequence
import dataclasses
import statistics
import time
from typing import Any

import jax

from launch.bench import matmul, random_batch, timing
from launch.runtime import malloc
from launch.terminal.flags import RunArguments, run_arguments
from melllm_jax import chips, flops, sharding, xla_options
from melllm_jax.config.run import Run
from melllm_jax.objectives.run_objective import objective_of
from melllm_jax.presets import catalog
from melllm_jax.training import device_memory
from melllm_jax.training.train_step import State, Update


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainBenchArguments(RunArguments):
    """Time the update of PRESET (quickstart if none is given) on random weights and numbers.

    Medians; compiling and two updates before are not in them. No data is read, nothing written.
    """

    updates: int = 10  # timed, each beside the product of two matrices
    json: bool = False  # print one JSON object on standard output and nothing else


def bench(argv: Sequence[str]) -> tuple[dict[str, Any], str, bool]:
    """Figures, the same as text, and whether JSON was asked for. Raises Mistake."""
    arguments = run_arguments(
        TrainBenchArguments,
        argv,
        catalog.preset,
        prog="melllm bench train",
        presets=catalog.PRESETS,
    )
    figures = measure(arguments.run, arguments.updates)
    return figures, format_figures(figures), arguments.json


def measure(run: Run, updates: int) -> dict[str, Any]:
    """The figures of a run's update on all devices here.

    Raises Mistake where it does not fit them, before a weight is made.
    """
    malloc.keep_freed_memory()  # as `melllm train` does
    mesh = sharding.make_mesh(run.mesh)
    sharding.check_mesh(run, mesh)
    with jax.set_mesh(mesh):
        update = Update(objective_of(run))
        device_memory.check_state_fits(update, mesh)
        batch = sharding.shard_batch(random_batch.train_batch(run))
        began = time.perf_counter()
        lowered = jax.jit(update, donate_argnums=0).lower(update.shapes(mesh), batch)
        step = xla_options.compile_lowered(lowered, mesh)
        compiling = time.perf_counter() - began
        sizes = compiled_bytes(step)
        device_memory.check_bytes_fit(
            run.name, sizes["peak"], mesh, "the compiled update and its state"
        )
        state = update.init_state()
        numbers: dict[str, Any] = {}

        def once() -> None:
            nonlocal state, numbers
            state, numbers = jax.block_until_ready(step(state, batch))

        product = matmul.compile_matmul(run.optim.compute)
        taken = timing.time_in_turns({"update": once, "product": product.run}, updates, warm=2)
        stats = mesh.devices.flat[0].memory_stats() or {}
        seen = {name: float(numbers[name]) for name in ("tokens", "audio", "loss")}
    seconds = timing.medians(taken)
    return {
        "what": "train",
        "preset": run.name,
        **machine(mesh),
        "mesh": dict(mesh.shape),
        "parameters": flops.count_parameters(run).total,
        "trained": _count(state),
        "rows": run.data.b,
        "positions": run.data.t,
        "dtype": run.optim.compute,
        "updates": updates,
        "compile_seconds": compiling,
        "seconds": seconds["update"],
        "fastest": min(taken["update"]),
        "slowest": max(taken["update"]),
        **_rates(run, mesh, product, taken),
        "tokens_per_second": seen["tokens"] / seconds["update"],
        "audio_seconds_per_second": seen["audio"] / seconds["update"],
        "loss": seen["loss"],
        "compiled_bytes": sizes,
        "peak_bytes": stats.get("peak_bytes_in_use"),
    }


def compiled_bytes(step: Any) -> dict[str, int]:
    """What the compiler says a compiled function takes on one device."""
    found = step.memory_analysis()
    names = {"arguments": "argument", "outputs": "output", "temporary": "temp", "reused": "alias"}
    sizes = {ours: getattr(found, f"{theirs}_size_in_bytes") for ours, theirs in names.items()}
    whole = sizes["arguments"] + sizes["outputs"] + sizes["temporary"] - sizes["reused"]
    return sizes | {"peak": whole}


def machine(mesh: jax.sharding.Mesh) -> dict[str, Any]:
    """What the figures were taken on."""
    return {"chip": mesh.devices.flat[0].device_kind, "devices": mesh.size, "jax": jax.__version__}


def format_figures(figures: dict[str, Any]) -> str:
    """The figures for people."""
    sizes, product = figures["compiled_bytes"], figures["gemm"]
    gb = lambda count: f"{count / 1e9:.2f} GB"
    peak = figures["peak_bytes"]
    lines = [
        f"{figures['preset']}: {figures['parameters'] / 1e6:.1f} M parameters, "
        f"{figures['trained'] / 1e6:.1f} M trained; {figures['rows']} × {figures['positions']} "
        f"positions, {figures['dtype']}, on {figures['devices']} × {figures['chip']}",
        f"update      {figures['seconds'] * 1e3:.1f} ms, median of {figures['updates']} "
        f"({figures['fastest'] * 1e3:.1f} to {figures['slowest'] * 1e3:.1f}); "
        f"compiled in {figures['compile_seconds']:.1f} s",
        f"rate        {figures['tflops']:.3f} TFLOP/s, {figures['gemm_share']:.1%} of the "
        f"{product['tflops']:.3f} of {product['size']}³ in {product['dtype']}"
        + ("" if figures["mfu"] is None else f"; MFU {figures['mfu']:.1%}"),
        f"speed       {figures['tokens_per_second']:.0f} positions/s, "
        f"{figures['audio_seconds_per_second']:.0f} s of audio a second",
        f"memory      {gb(sizes['peak'])} a device by the compiler: {gb(sizes['arguments'])} of "
        f"state and batch, {gb(sizes['temporary'])} temporary"
        + ("" if peak is None else f"; {gb(peak)} at most in use"),
    ]
    return "\n".join(lines)


def _rates(
    run: Run, mesh: jax.sharding.Mesh, product: matmul.Matmul, taken: dict[str, list[float]]
) -> dict[str, Any]:
    """FLOP/s of the update, and its share of what products reach and of what the chip's maker says.

    Devices of a CPU share its cores, so that one product is the limit of all.
    """
    chip = chips.find_chip(mesh.devices.flat[0].device_kind)
    limits = 1 if mesh.devices.flat[0].platform == "cpu" else mesh.size
    pairs = zip(taken["update"], taken["product"], strict=True)
    share = statistics.median(
        flops.update_flops(run) / update / (product.flops / other * limits)
        for update, other in pairs
    )
    seconds = timing.medians(taken)
    reached = flops.update_flops(run) / seconds["update"]
    return {
        "flops": flops.update_flops(run),
        "tflops": reached / 1e12,
        "gemm": {
            "size": product.size,
            "dtype": product.dtype,
            "tflops": product.flops / seconds["product"] / 1e12,
        },
        "gemm_share": share,
        "mfu": reached / (chip.flops * mesh.size) if chip else None,
    }


def _count(state: State) -> int:
    return sum(x.size for x in jax.tree.leaves(state.trained))
