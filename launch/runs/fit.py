"""Trains one run in its folder on all devices here, and returns what scoring it needs.

All mistakes in the run, its data and its folder are raised before anything is written.
"""

from collections.abc import Callable, Iterator, Sequence
import contextlib
import dataclasses
import pathlib
import shutil
from typing import Any

import jax
from jax.experimental import multihost_utils

from data_pipelines.loader import pipeline
from data_pipelines.loader.lanes import LanesIterator
from data_pipelines.text.load_tokenizer import copy_template_files, tokenizer_name
from data_pipelines.text.tokenizer import Tokenizer
from launch.runs.dev_score import dev_score
from launch.runs.run_inputs import complete_run
from launch.runtime import folder_claim, malloc, processes
from launch.runtime.folder_claim import FolderClaim
from launch.terminal.progress_bar import ProgressBar
from melllm_jax import sharding
from melllm_jax.checkpoints import run_folder
from melllm_jax.config.run import BaseRun, Run
from melllm_jax.errors import Fault, Mistake
from melllm_jax.objectives.objective import Objective
from melllm_jax.objectives.run_objective import any_objective_of
from melllm_jax.telemetry.profiler import UpdateRange
from melllm_jax.telemetry.progress import SILENT
from melllm_jax.training import device_memory
from melllm_jax.training.loop import Telemetry, train
from melllm_jax.training.preemption import StopRequest
from melllm_jax.training.train_step import State, Update


@dataclasses.dataclass(frozen=True)
class FitResult:
    """What a training leaves: all that scoring needs, with nothing read from the disk again."""

    run: BaseRun  # complete
    tokenizer: Tokenizer
    update: Update
    state: State
    mesh: jax.sharding.Mesh
    lanes: Sequence[int]  # of the data whose rows this process holds


def fit(
    run: BaseRun,
    workdir: str,
    bar: ProgressBar | None = None,
    profile: UpdateRange | None = None,
    stop: StopRequest | None = None,
    objective: Callable[[Any], Objective[Any]] = any_objective_of,
    work: str = "",
) -> FitResult:
    """Train `run` in `workdir` on all devices here; it goes on where it stopped before.

    `profile` is what to trace; `stop` tells afterwards whether a signal ended the training before
    its last update; `objective` makes what is learnt from the complete run; `work` is that of
    `FolderClaim`. Raises Mistake for whatever of the run, its data or its folder does not fit
    together, or where another process trains there; nothing is written then.
    """
    if processes.leads():  # before the devices are asked for: they may be the other process's too
        folder_claim.refuse_if_held(workdir, work)
    malloc.keep_freed_memory()
    if profile is not None:
        profile.check(0, run.optim.steps)
    inputs = complete_run(run)
    run, tokenizer = inputs.run, inputs.tokenizer
    mesh = sharding.make_mesh(run.mesh)
    sharding.check_mesh(run, mesh)
    _check_scoring(run)
    lanes = sharding.host_lanes(run, sharding.device_owners(mesh), jax.process_index())
    if run.optim.train != "all" and not run.init.path:
        raise Mistake(f'optim.train="{run.optim.train}": freezes an LLM: say which with --init DIR')
    score = dev_score(run, tokenizer) if isinstance(run, Run) and run.scoring.every else None
    with jax.set_mesh(mesh):
        update = Update(objective(run), inputs.warm)
        device_memory.check_state_fits(update, mesh)
        update.fresh_names()
    log = lambda text: bar.log(text) if bar is not None else None
    stream = iter(pipeline.train_batches(run, tokenizer, lanes=lanes, log=log))
    with contextlib.closing(stream), contextlib.ExitStack() as held:
        _check_first_batch(run, stream, workdir)
        check = held.enter_context(own_run_folder(run, workdir, tokenizer, work))
        bar = bar or (ProgressBar(run.optim.steps) if jax.process_index() == 0 else None)
        if inputs.news and bar is not None:
            bar.log(inputs.news)
        with contextlib.closing(bar) if bar is not None else contextlib.nullcontext():
            telemetry = Telemetry(bar or SILENT, score, profile, check)
            with jax.set_mesh(mesh):
                state = train(update, stream, pathlib.Path(workdir), telemetry, stop)
    return FitResult(run, tokenizer, update, state, mesh, lanes)


@contextlib.contextmanager
def own_run_folder(
    run: BaseRun, workdir: str, tokenizer: Tokenizer, work: str
) -> Iterator[Callable[[], None]]:
    """A context in which `workdir` is this run's, and process 0 alone writes there.

    Its value is to be called before something is written: see `FolderClaim.check`.
    """
    if jax.process_index():
        _set_up_run_folder(run, workdir, tokenizer)
        yield lambda: None
        return
    run_folder.check(workdir, run)
    with FolderClaim(workdir, work) as claim:
        _set_up_run_folder(run, workdir, tokenizer)
        yield claim.check


def _set_up_run_folder(run: BaseRun, workdir: str, tokenizer: Tokenizer) -> None:
    """Make `workdir` this run's, with its tokenizer: process 0 does, and the others wait for it."""
    if jax.process_index() == 0:
        run_folder.claim(workdir, run)
        if (words := tokenizer_name(run)) != "bytes":
            try:
                if run.init.path:  # templates and all travel on, to an export
                    beside = f"{run.init.path}/{run_folder.TOKENIZER}"
                    shutil.copytree(beside, f"{workdir}/{run_folder.TOKENIZER}", dirs_exist_ok=True)
                copy_template_files(words, f"{workdir}/{run_folder.TOKENIZER}")
                tokenizer.save(f"{workdir}/{run_folder.TOKENIZER}")
            except OSError as error:
                raise Fault(f"{workdir}/tokenizer: cannot be written: {error.strerror}") from error
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("claimed")
        run_folder.verify_claim(workdir, run)


def _check_first_batch(run: BaseRun, stream: LanesIterator, workdir: str) -> None:
    """Raises Mistake where the data of a run that begins ends before its first update."""
    if not run.data.epochs or pathlib.Path(workdir, run_folder.CHECKPOINTS).exists():
        return
    start = stream.get_state()
    if next(stream, None) is None:
        raise Mistake(
            f"data.epochs={run.data.epochs}: the data ends before the first batch is full, of "
            f"data.b={run.data.b} rows of data.t={run.data.t} positions: {sum(stream.sizes)} "
            "examples in all: give more, a smaller data.b, or more epochs"
        )
    stream.set_state(start)


def _check_scoring(run: BaseRun) -> None:
    """Raises Mistake where WER cannot be taken while the run trains."""
    if isinstance(run, Run) and run.scoring.every and run.model.front == "none":
        raise Mistake(
            f'scoring.every={run.scoring.every}: model.front="none" hears nothing: give 0'
        )
    if run.scoring.every and jax.process_count() > 1:
        raise Mistake(
            f"scoring.every={run.scoring.every}: decoding runs in one process, not in "
            f"{jax.process_count()}: give 0, and use `melllm evaluate`"
        )
