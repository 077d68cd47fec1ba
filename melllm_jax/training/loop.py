"""The training loop.

The order inside the loop matters, and why is said there. On a CPU the loss curve is a pure
function of the run: stopping anywhere and going on gives the same numbers, bit for bit.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import pathlib
from typing import Any

import jax
from jax.experimental import multihost_utils
import jax.numpy as jnp
from jaxtyping import Array
import numpy as np

from melllm_jax import sharding, xla_options
from melllm_jax.batch import Batch
from melllm_jax.checkpoints.checkpointer import Checkpoints, dump
from melllm_jax.config.run import Run
from melllm_jax.errors import Fault
from melllm_jax.models.parameters import Weights
from melllm_jax.models.speech_lm import SpeechLM
from melllm_jax.telemetry.goodput import Goodput
from melllm_jax.telemetry.metrics_writer import MetricsWriter, NullMetricsWriter
from melllm_jax.telemetry.profiler import PROFILE_FOLDER, Profiler, UpdateRange
from melllm_jax.telemetry.progress import SILENT, Progress
from melllm_jax.telemetry.throughput import ThroughputMeter
from melllm_jax.training.preemption import StopRequest
from melllm_jax.training.train_step import State, Update


def train(
    run: Run,
    batches: Iterator[Batch],
    workdir: pathlib.Path,
    mesh: jax.sharding.Mesh,
    *,
    sizes: Sequence[int] = (),
    progress: Progress = SILENT,
    score: Callable[[SpeechLM], Mapping[str, Any]] | None = None,
    rejected: Callable[[], Mapping[str, int]] = dict,
    carried: Callable[[], Sequence[int]] | None = None,
    changed: Callable[[], Mapping[str, Any]] = dict,
    start: Callable[[Update], State] = Update.init_state,
    profile: UpdateRange | None = None,
    stop: "StopRequest | None" = None,
) -> State:
    """Train `run` in its folder, from its newest good checkpoint or from `start`.

    `batches` yields NumPy batches of this host's rows and saves its own place (a Grain iterator).
    Where several processes train together, process 0 alone writes metrics; `rejected` is its own.
    `sizes` gives the examples of each source, for the epoch; `score` turns the model into metrics
    each `scoring.every` updates; `rejected` counts bad examples by reason; `profile` is what to
    trace; `stop` tells afterwards whether a signal ended it.
    Once `batches` are at their place, `carried` gives the number there of each source, -1 for a new
    one, and `changed` metrics of what is different from then on, for the first update's line.
    Returns the last state; after SIGTERM that is the state saved then, and where the data ends on
    any host, that after the last update for which all had a batch, saved as well. Raises Fault
    where the loss is not finite or a checkpoint cannot be written, Mistake where what to trace is
    past.
    """
    with (
        jax.set_mesh(mesh),
        Checkpoints(str(workdir / "checkpoints"), run.checkpoints, progress.log) as checkpoints,
        stop or StopRequest() as stop,
    ):
        spent = Goodput(workdir)
        update = Update(run)
        state, seen = _resume(update, checkpoints, batches, mesh, start, progress)
        if carried is not None:
            seen = np.array([seen[i] if i >= 0 else 0 for i in carried()], np.int64)
        news = changed()
        first = int(state.step)
        if profile is not None:
            profile.check(first, run.optim.steps)
        spent.resume(first)
        meter = ThroughputMeter(run, mesh, sizes, seen, spent)
        compiled: Any = None
        late: tuple[int, dict[str, Array], Batch, dict[str, int]] | None = None
        untimed = lambda: spent.charge_to("setup")
        with (
            _open_metrics(workdir, first) as record,
            Profiler(workdir / PROFILE_FOLDER, profile, progress.log, untimed) as traced,
            jax.transfer_guard("disallow"),
        ):

            def settle(more: Callable[[], Mapping[str, Any]] = dict) -> None:
                """Read the last update's metrics: the next one is already under way.

                `more` gives metrics of the state after it, once it is known to be finite.
                """
                nonlocal late
                if late is None:
                    return
                (step, numbers, batch, bad), late = late, None
                metrics = meter.read(jax.device_get(numbers)) | {"rejected": bad}
                if not metrics.pop("finite"):
                    raise _halt(workdir, step, batch, state, metrics["loss"])
                found = {**more(), **(news if step == first + 1 else {})}
                if found or step % run.metrics.every == 0 or step == run.optim.steps:
                    record.write(step, {**metrics, **found})
                progress.step(step, metrics)

            def scored() -> Mapping[str, Any]:
                if score is None or not run.scoring.every or step % run.scoring.every:
                    return {}
                with spent.charge_to("score"), jax.transfer_guard("allow"):
                    model = update.skeleton.model(state.trained | state.frozen, update.dtype)
                    return score(model)

            def busy() -> bool:
                """Whether the devices still have an update to make."""
                return late is not None and not late[1]["loss"].is_ready()  # type: ignore[attr-defined]

            saved = first
            for step in traced.updates(range(first + 1, run.optim.steps + 1), settle):
                # Data first: its wait is measured, and its place is saved with this update.
                with spent.charge_wait(busy):
                    batch = _next_batch(batches, ends=run.data.epochs > 0)
                if batch is None:
                    settle()
                    done = step - 1
                    if saved < done:
                        with spent.charge_to("checkpoint"):
                            checkpoints.save(done, *_checkpoint_parts(state, meter), batches)
                        spent.save(done)
                    times = f"data.epochs={run.data.epochs} times"
                    progress.log(f"the data ends after update {done}: all was drawn {times}")
                    break
                here = sharding.shard_batch(batch)
                if compiled is None:
                    progress.status("compiling…")
                    lowered = jax.jit(update, donate_argnums=0).lower(state, here)
                    compiled = xla_options.compile_lowered(lowered, mesh, progress.log)
                    spent.switch_to("update")
                # Dispatch, then read the update before: the device never waits for the host.
                state, numbers = compiled(state, here)
                settle()
                late = step, numbers, batch, dict(rejected())
                last = stop.requested_at(step) or step == run.optim.steps
                saves = last or step % run.checkpoints.every == 0
                if saves or (run.scoring.every and step % run.scoring.every == 0):
                    # Saving needs this update's numbers, and a bad one must not be kept.
                    settle(scored)
                if saves:
                    with spent.charge_to("checkpoint"):
                        checkpoints.save(step, *_checkpoint_parts(state, meter), batches)
                    spent.save(step)
                    saved = step
                if last:
                    break
        if compiled is not None:
            with spent.charge_to("checkpoint"):
                checkpoints.wait()
            spent.save(int(state.step))
            progress.log(spent.summary())
        if stop.requested:
            progress.log(f"stopped by a signal after update {int(state.step)}: saved")
    return state


def _next_batch(batches: Iterator[Batch], ends: bool) -> Batch | None:
    """The next batch; None where this host, or with `ends` another, has none any more.

    Of several processes, those that have one go back to where they were: their place is saved.
    """
    if not ends or jax.process_count() == 1:
        return next(batches, None)
    place = batches.get_state()  # type: ignore[attr-defined]
    batch = next(batches, None)
    # Waits for the update under way: streams that end are short.
    with jax.transfer_guard("allow"):
        all_have = bool(multihost_utils.process_allgather(np.bool_(batch is not None)).all())
    if all_have:
        return batch
    batches.set_state(place)  # type: ignore[attr-defined]
    return None


def _open_metrics(workdir: pathlib.Path, first: int) -> MetricsWriter | NullMetricsWriter:
    return NullMetricsWriter() if jax.process_index() else MetricsWriter(workdir, first)


def _checkpoint_parts(state: State, meter: ThroughputMeter) -> tuple[Weights, dict[str, Any]]:
    """A state in the two parts that a checkpoint has."""
    rest = {"opt": state.opt, "step": state.step, "seen": meter.seen.copy()}
    return state.trained | state.frozen, rest


def _resume(
    update: Update,
    checkpoints: Checkpoints,
    batches: Iterator[Batch],
    mesh: jax.sharding.Mesh,
    start: Callable[[Update], State],
    progress: Progress,
) -> tuple[State, np.ndarray]:
    """The state to go on from, and the examples seen of each source; moves `batches` on."""
    shapes, sources = update.shapes(mesh), max(len(update.run.data.sources), 1)
    seen = np.zeros(sources, np.int64)
    rest = {"opt": shapes.opt, "step": shapes.step, "seen": seen}
    found = checkpoints.restore(shapes.trained | shapes.frozen, rest, batches)
    if found is None:
        progress.status("making weights…")
        return start(update), seen
    step, parts = found
    progress.log(f"resuming after update {step}")
    weights, rest = parts["weights"], parts["state"]
    trained = {name: weights[name] for name in shapes.trained}
    frozen = {name: weights[name] for name in shapes.frozen}
    state = State(trained, frozen, rest["opt"], rest["step"], jnp.bool(False))
    return state, np.asarray(rest["seen"])


def _halt(workdir: pathlib.Path, step: int, batch: Batch, state: State, loss: float) -> Fault:
    """Put what is needed to find the cause on disk, and name it."""
    folder = workdir / "halted" / f"{step}"
    what = f"update {step}: loss={loss} or its gradient is not finite; the batch and the state"
    # bfloat16 has no npz form that reads back without ml_dtypes.
    arrays: dict[str, Any] = {
        name: np.asarray(x, np.float32) if x.dtype.kind not in "if" else x
        for name, x in batch._asdict().items()
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        others = f"-{jax.process_index()}" if jax.process_index() else ""  # each has its own rows
        np.savez(folder / f"batch{others}.npz", **arrays)
        dump(folder / "state", {"weights": state.trained | state.frozen, "opt": state.opt})
    except (OSError, ValueError) as error:
        return Fault(f"{what} before it could not be written to {folder}: {error}")
    return Fault(f"{what} before it are in {folder}")
