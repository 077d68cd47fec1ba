"""Trains one run in its folder on all devices here, and hands back what scoring needs.

All mistakes in the run, its data and its folder are raised before anything is written.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import pathlib
import shutil
from typing import Any

import jax
from jax.experimental import multihost_utils

from data_pipelines.loader import pipeline
from data_pipelines.loader.reject_counts import stream_counts as tally
from data_pipelines.text.tokenizer import Tokenizer
from launch.runs.dev_score import dev_score
from launch.runs.run_inputs import complete_run
from launch.runtime import malloc
from launch.terminal.progress_bar import ProgressBar
from melllm_jax import sharding
from melllm_jax.checkpoints import run_folder
from melllm_jax.config.run import Run
from melllm_jax.errors import Fault, Mistake
from melllm_jax.telemetry.profiler import UpdateRange
from melllm_jax.telemetry.progress import SILENT
from melllm_jax.training import device_memory, warm_start
from melllm_jax.training.loop import train
from melllm_jax.training.preemption import StopRequest
from melllm_jax.training.train_step import State, Update


@dataclasses.dataclass(frozen=True)
class FitResult:
    """What a training leaves: whatever scoring it needs, without reading it from the disk again."""

    run: Run  # completed
    tokenizer: Tokenizer
    update: Update
    state: State
    mesh: jax.sharding.Mesh
    lanes: Sequence[int]  # of the data whose rows this process holds


def fit(
    run: Run,
    workdir: str,
    bar: ProgressBar | None = None,
    profile: UpdateRange | None = None,
    stop: StopRequest | None = None,
) -> FitResult:
    """Train `run` in `workdir` on all devices here, its corpora read and its mistakes told first.

    `stop` tells afterwards whether a signal ended it before its last update.
    Raises Mistake for whatever of the run, its data or its folder does not fit together; nothing
    is written then.
    """
    malloc.keep_freed_memory()
    if profile is not None:
        profile.check(0, run.optim.steps)
    run, tokenizer = complete_run(run)
    mesh = sharding.make_mesh(run.mesh)
    sharding.check_mesh(run, mesh)
    if run.model.front == "none":
        raise Mistake('model.front="none": training reads speech: choose linear or conv')
    lanes = sharding.host_lanes(run, sharding.device_owners(mesh), jax.process_index())
    if run.scoring.every and jax.process_count() > 1:
        raise Mistake(
            f"scoring.every={run.scoring.every}: decoding runs in one process, not in "
            f"{jax.process_count()}: give 0, and use `melllm evaluate`"
        )
    if run.optim.train == "lora" and not run.init.path:
        raise Mistake('optim.train="lora": freezes an LLM: say which with --init DIR')
    scoring = dev_score(run, tokenizer) if run.scoring.every else None
    begin: Callable[[Update], State] = Update.init_state
    with jax.set_mesh(mesh):
        update = Update(run)
        device_memory.check_state_fits(update, mesh)
        if run.init.path:
            begin = lambda update: warm_start.load_state(update, run.init.path, mesh)
            warm_start.fresh_weights(update, run.init.path)
    say = lambda text: bar.log(text) if bar is not None else None
    batches = iter(pipeline.train_batches(run, tokenizer, lanes=lanes, say=say))
    claim_run_folder(run, workdir, tokenizer)
    bar = bar or (ProgressBar(run.optim.steps) if jax.process_index() == 0 else None)

    def changed() -> Mapping[str, Any]:
        """The mixture, where the run was resumed with another one."""
        if batches.change is None:
            return {}
        say(str(batches.change))
        return {"mixture": dataclasses.asdict(batches.change)}

    try:
        state = train(
            run,
            batches,
            pathlib.Path(workdir),
            mesh,
            sizes=batches.sizes,
            progress=bar or SILENT,
            score=scoring,
            rejected=lambda: tally(batches)["bad"],
            carried=lambda: batches.carried,
            changed=changed,
            start=begin,
            profile=profile,
            stop=stop,
        )
    finally:
        if bar is not None:
            bar.close()
        batches.close()
    return FitResult(run, tokenizer, update, state, mesh, lanes)


def claim_run_folder(run: Run, workdir: str, tokenizer: Tokenizer) -> None:
    """Make `workdir` this run's, with its tokenizer: process 0 does, and the others wait for it."""
    if jax.process_index() == 0:
        run_folder.claim(workdir, run)
        if run.text.tokenizer != "bytes":
            try:
                if run.init.path:  # templates and all travel on, to an export
                    beside = f"{run.init.path}/{run_folder.TOKENIZER}"
                    shutil.copytree(beside, f"{workdir}/{run_folder.TOKENIZER}", dirs_exist_ok=True)
                tokenizer.save(f"{workdir}/tokenizer")
            except OSError as error:
                raise Fault(f"{workdir}/tokenizer: cannot be written: {error.strerror}") from error
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("claimed")
        run_folder.verify_claim(workdir, run)
