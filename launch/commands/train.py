"""`melllm train`: train a preset on prepared data, or go on where it stopped."""

import argparse
from collections.abc import Callable, Sequence
import dataclasses

from launch.runs.fit import fit
from launch.runtime import compile_cache, processes
from launch.runtime.processes import Hosts
from launch.terminal.flags import RunArguments, run_arguments
from melllm_jax.config.run import BaseRun
from melllm_jax.presets import catalog
from melllm_jax.telemetry.profiler import parse_update_range
from melllm_jax.training.run_start import run_from


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainArguments(RunArguments):
    """Train PRESET, or go on where it stopped: the same command resumes by itself."""

    workdir: str  # folder of the run: run.json, checkpoints, metrics
    hosts: Hosts = Hosts()
    compiled: str = compile_cache.FOLDER  # folder where what was compiled is kept; "" keeps nothing
    profile: str = ""  # FIRST:LAST, updates to trace into WORKDIR/profile for TensorBoard, Perfetto


def main(argv: Sequence[str]) -> int:
    """`melllm train PRESET --data DIR --workdir DIR [--model.d 512 …]`."""
    arguments = run_arguments(
        TrainArguments, argv, _preset(argv), prog="melllm train", presets=catalog.ALL
    )
    wanted = parse_update_range(arguments.profile) if arguments.profile else None
    with (
        processes.join_job(arguments.hosts, "melllm train"),
        compile_cache.use_folder(arguments.compiled),
    ):
        fit(arguments.run, arguments.workdir, profile=wanted)
    return 0


def _preset(argv: Sequence[str]) -> Callable[[str], BaseRun]:
    """Presets by name; where `argv` says --init DIR, with the sizes of the model in DIR.

    Where it says --init.front DIR, with the front end in DIR; where --teacher DIR, with the encoder
    in DIR to learn from. They are the values that the other flags then change.
    """
    finder = argparse.ArgumentParser(add_help=False, exit_on_error=False, allow_abbrev=False)
    finder.add_argument("--init", "--init.path", default="")
    finder.add_argument("--init.front", dest="front", default="")
    finder.add_argument("--teacher", "--distill.path", default="")
    try:
        found = finder.parse_known_args(argv)[0]
    except argparse.ArgumentError:  # no value: told in full when all flags are read
        return catalog.any_preset
    return lambda name: run_from(catalog.any_preset(name), found.init, found.front, found.teacher)
