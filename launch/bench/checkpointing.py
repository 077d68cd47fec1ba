"""`melllm bench checkpoint`: times how long saving stops a run, and how long it takes in all."""

from collections.abc import Sequence
import dataclasses
import pathlib
import statistics
import tempfile
from typing import Any

import jax

from launch.bench import timing
from launch.bench.train_step import machine
from launch.terminal.flags import RunArguments, run_arguments
from launch.terminal.number_format import format_bytes
from melllm_jax import sharding
from melllm_jax.checkpoints.checkpointer import Checkpoints
from melllm_jax.config.run import Run
from melllm_jax.errors import Fault
from melllm_jax.objectives.run_objective import objective_of
from melllm_jax.presets import catalog
from melllm_jax.training import device_memory
from melllm_jax.training.train_step import Update


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckpointBenchArguments(RunArguments):
    """Save and restore the state of PRESET (quickstart if none is given) with random weights.

    A save first copies the arrays, for which the run stops, and then writes them while it goes on.
    """

    folder: str = ""  # on the disk to be measured; by default the system's for temporary files
    rounds: int = 5  # saves that are timed, after one that is not
    json: bool = False  # print one JSON object on standard output and nothing else


class EmptyDataState:
    """A state of the data stream that is empty."""

    async def save(self, directory: Any) -> Any:
        """Writes nothing."""
        return _nothing()

    async def load(self, directory: Any) -> Any:
        """Reads nothing."""
        return _nothing()


async def _nothing() -> None:
    pass


def bench(argv: Sequence[str]) -> tuple[dict[str, Any], str, bool]:
    """Figures, the same as text, and whether JSON was asked for. Raises Mistake and Fault."""
    arguments = run_arguments(
        CheckpointBenchArguments,
        argv,
        catalog.preset,
        prog="melllm bench checkpoint",
        presets=catalog.PRESETS,
    )
    try:
        with tempfile.TemporaryDirectory(dir=arguments.folder or None) as folder:
            figures = measure(arguments.run, arguments.rounds, pathlib.Path(folder))
    except OSError as error:
        raise Fault(f"folder={arguments.folder}: cannot be written: {error.strerror}") from error
    return figures, format_figures(figures), arguments.json


def measure(run: Run, rounds: int, folder: pathlib.Path) -> dict[str, Any]:
    """The figures of a run's state, saved to and restored from `folder`."""
    mesh = sharding.make_mesh(run.mesh)
    sharding.check_mesh(run, mesh)
    intervals = dataclasses.replace(run.checkpoints, last=1, milestone=0)
    with jax.set_mesh(mesh), Checkpoints(str(folder), intervals) as checkpoints:
        update = Update(objective_of(run))
        device_memory.check_state_fits(update, mesh)
        state = jax.block_until_ready(update.init_state())
        weights, rest = state.trained | state.frozen, {"opt": state.opt, "step": state.step}
        taken: dict[str, list[float]] = {"stall": [], "rest": []}
        for step in range(rounds + 1):
            save = lambda step=step: checkpoints.save(step, weights, rest, EmptyDataState())
            for name, action in (("stall", save), ("rest", checkpoints.wait)):
                taken[name].append(timing.time_once(action))
        size = sum(x.nbytes for x in jax.tree.leaves((weights, rest)))
        shapes = update.shapes(mesh)
        targets = shapes.trained | shapes.frozen, {"opt": shapes.opt, "step": shapes.step}
        del state, weights, rest
        restore = lambda: jax.block_until_ready(checkpoints.restore(*targets, EmptyDataState()))
        restoring = [timing.time_once(restore) for _ in range(rounds)]
    stall = taken["stall"][1:]
    total = [first + rest for first, rest in zip(stall, taken["rest"][1:], strict=True)]
    return {
        "what": "checkpoint",
        "preset": run.name,
        **machine(mesh),
        "bytes": size,
        "rounds": rounds,
        "stall_seconds": statistics.median(stall),
        "blocking_seconds": statistics.median(total),
        "stall_share": statistics.median(x / y for x, y in zip(stall, total, strict=True)),
        "megabytes_per_second": size / 1e6 / statistics.median(total),
        "restore_seconds": statistics.median(restoring),
    }


def format_figures(figures: dict[str, Any]) -> str:
    """The figures for people."""
    return "\n".join(
        [
            f"{figures['preset']}: a state of {format_bytes(figures['bytes'])}, on "
            f"{figures['devices']} × {figures['chip']}; medians of {figures['rounds']}",
            f"save        the run stops for {figures['stall_seconds'] * 1e3:.1f} ms, "
            f"{figures['stall_share']:.1%} of the {figures['blocking_seconds']:.2f} s until it "
            f"stands on disk ({figures['megabytes_per_second']:.0f} MB/s)",
            f"restore     {figures['restore_seconds']:.2f} s, its sums checked, files in memory",
        ]
    )
