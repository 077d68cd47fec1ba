"""The training loop.

The order inside the loop matters, and why is said there. On a CPU the loss curve is a pure
function of the run: stopping anywhere and going on gives the same numbers, bit for bit.
"""

from collections.abc import Callable, Mapping
import dataclasses
import pathlib
from typing import Any, NamedTuple

import jax
from jax.experimental import multihost_utils
import jax.numpy as jnp
import numpy as np

from melllm_jax import sharding, xla_options
from melllm_jax.batch import Batch, BatchStream
from melllm_jax.checkpoints.checkpointer import Checkpoints, dump
from melllm_jax.errors import Fault, Mistake
from melllm_jax.models.parameters import Weights
from melllm_jax.telemetry.goodput import Goodput
from melllm_jax.telemetry.metrics_writer import MetricsWriter, NullMetricsWriter
from melllm_jax.telemetry.profiler import PROFILE_FOLDER, Profiler, UpdateRange
from melllm_jax.telemetry.progress import SILENT, Progress
from melllm_jax.telemetry.throughput import ThroughputMeter
from melllm_jax.training.preemption import StopRequest
from melllm_jax.training.train_step import State, Update


@dataclasses.dataclass(frozen=True)
class Telemetry:
    """Who watches a training, and what it asks for."""

    progress: Progress = SILENT
    # Turns the model into metrics each scoring.every updates; None never does.
    score: Callable[[Any], Mapping[str, Any]] | None = None
    profile: UpdateRange | None = None  # updates to trace
    # Called before anything is written: ends the process that may not write any more.
    check: Callable[[], None] = lambda: None


class PendingUpdate(NamedTuple):
    """An update whose numbers may still be on their way from the device."""

    step: int
    numbers: dict[str, Any]  # of jax.Arrays
    batch: Batch
    rejected: dict[str, int]  # bad examples so far, by reason


def train(
    update: Update,
    stream: BatchStream,
    workdir: pathlib.Path,
    telemetry: Telemetry = Telemetry(),
    stop: StopRequest | None = None,
) -> State:
    """Train in `workdir`, on the mesh in force: from its newest good checkpoint or from the start.

    `stream` yields NumPy batches of this host's rows, and saves its own position with each
    checkpoint. Where several processes train together, process 0 alone writes metrics; bad examples
    counted there are its own. `stop` tells afterwards whether a signal ended the training.
    Returns the last state; after SIGTERM that is the state saved then, and where the data ends on
    any host, that after the last update for which all had a batch, saved as well. Raises Fault
    where the loss is not finite or a checkpoint cannot be written, Mistake where what to trace is
    past or the data ends before the first update.
    """
    folder, log = str(workdir / "checkpoints"), telemetry.progress.log
    with (
        Checkpoints(folder, update.run.checkpoints, log) as checkpoints,
        stop or StopRequest() as stop,
    ):
        return Loop(update, stream, workdir, telemetry, stop, checkpoints).run()


class Loop:
    """One start of a training: from the state that it resumes to the one that it ends with."""

    def __init__(
        self,
        update: Update,
        stream: BatchStream,
        workdir: pathlib.Path,
        telemetry: Telemetry,
        stop: StopRequest,
        checkpoints: Checkpoints,
    ):
        self._goodput = Goodput(workdir)
        self._update, self._stream, self._workdir = update, stream, workdir
        self._telemetry, self._stop, self._checkpoints = telemetry, stop, checkpoints
        self._run, self._mesh = update.run, jax.sharding.get_mesh()
        self._state, seen = self._resume()
        carried = stream.carried
        seen = np.array([seen[i] if i >= 0 else 0 for i in carried], np.int64) if carried else seen
        self._first = self._saved = int(self._state.step)
        if telemetry.profile is not None:
            telemetry.profile.check(self._first, self._run.optim.steps)
        self._goodput.resume(self._first)
        self._meter = ThroughputMeter(update.run, self._mesh, stream.sizes, seen, self._goodput)
        self._compiled: Any = None
        self._pending: PendingUpdate | None = None

    def run(self) -> State:
        """Make the updates that are left: the last state."""
        news = self._changes()
        profile, log = self._telemetry.profile, self._telemetry.progress.log
        untimed = lambda: self._goodput.charge_to("setup")
        with (
            _open_metrics(self._workdir, self._first) as self._metrics,
            Profiler(self._workdir / PROFILE_FOLDER, profile, log, untimed) as profiler,
            jax.transfer_guard("disallow"),
        ):
            self._news = news
            steps = range(self._first + 1, self._run.optim.steps + 1)
            for step in profiler.updates(steps, self._settle):
                # Data first: its wait is measured, and its position is saved with this update.
                with self._goodput.charge_wait(self._is_busy):
                    batch = self._next_batch()
                if batch is None:
                    self._end_of_data(step - 1)
                    break
                self._dispatch(step, batch)
                last = self._stop.requested_at(step) or step == self._run.optim.steps
                saves = last or step % self._run.checkpoints.every == 0
                if saves or (self._run.scoring.every and step % self._run.scoring.every == 0):
                    # Saving needs this update's numbers, and a bad one must not be kept.
                    self._settle(score=True)
                if saves:
                    self._save(step)
                if last:
                    break
        self._finish()
        return self._state

    def _resume(self) -> tuple[State, np.ndarray]:
        """The state to go on from, and the examples seen of each source; moves the stream on."""
        update = self._update
        shapes, sources = update.shapes(self._mesh), max(len(self._run.data.sources), 1)
        seen = np.zeros(sources, np.int64)
        rest = {"opt": shapes.opt, "step": shapes.step, "seen": seen}
        found = self._checkpoints.restore(shapes.trained | shapes.frozen, rest, self._stream)
        if found is None:
            self._telemetry.progress.status("making weights…")
            return update.init_state(), seen
        step, parts = found
        self._telemetry.progress.log(f"resuming after update {step}")
        weights, rest = parts["weights"], parts["state"]
        state = State(
            {name: weights[name] for name in shapes.trained},
            {name: weights[name] for name in shapes.frozen},
            rest["opt"],
            rest["step"],
            jnp.bool(False),
            update.load_companions(),
        )
        return state, np.asarray(rest["seen"])

    def _changes(self) -> dict[str, Any]:
        """Metrics of what differs in the data from here on, for the first update's line."""
        change = self._stream.change
        if change is None:
            return {}
        self._telemetry.progress.log(str(change))
        return {"mixture": dataclasses.asdict(change)}

    def _next_batch(self) -> Batch | None:
        """The next batch; None where this host, or where data ends another, has none any more.

        Of several processes, those that have one go back to where they were: that is saved.
        """
        if not self._run.data.epochs or jax.process_count() == 1:
            return next(self._stream, None)
        position = self._stream.get_state()
        batch = next(self._stream, None)
        # Waits for the update under way: streams that end are short.
        with jax.transfer_guard("allow"):
            have = multihost_utils.process_allgather(np.bool_(batch is not None))
        if bool(have.all()):
            return batch
        self._stream.set_state(position)
        return None

    def _dispatch(self, step: int, batch: Batch) -> None:
        """Hand an update to the devices, then read the one before: they never wait for the host."""
        placed = sharding.shard_batch(batch)
        if self._compiled is None:
            self._telemetry.progress.status("compiling…")
            lowered = jax.jit(self._update, donate_argnums=0).lower(self._state, placed)
            self._compiled = xla_options.compile_lowered(
                lowered, self._mesh, self._telemetry.progress.log
            )
            self._goodput.switch_to("update")
        self._state, numbers = self._compiled(self._state, placed)
        self._settle()
        rejected = dict(self._stream.counts()["bad"])
        self._pending = PendingUpdate(step, numbers, batch, rejected)

    def _settle(self, score: bool = False) -> None:
        """Read the last update's metrics: the next one is already under way.

        With `score`, the model after it is scored, once it is known to be finite.
        """
        if self._pending is None:
            return
        self._telemetry.check()
        (step, numbers, batch, rejected), self._pending = self._pending, None
        metrics = self._meter.read(jax.device_get(numbers)) | {"rejected": rejected}
        if not metrics.pop("finite"):
            raise halt(self._workdir, step, batch, self._state, metrics["loss"])
        found = dict(self._score(step)) if score else {}
        if step == self._first + 1:
            found |= self._news
        if found or step % self._run.metrics.every == 0 or step == self._run.optim.steps:
            self._metrics.write(step, {**metrics, **found})
        self._telemetry.progress.step(step, metrics)

    def _score(self, step: int) -> Mapping[str, Any]:
        score = self._telemetry.score
        if score is None or not self._run.scoring.every or step % self._run.scoring.every:
            return {}
        with self._goodput.charge_to("score"), jax.transfer_guard("allow"):
            weights = self._state.trained | self._state.frozen
            return score(self._update.skeleton.model(weights, self._update.dtype))

    def _is_busy(self) -> bool:
        """Whether the devices still have an update to make."""
        return self._pending is not None and not self._pending.numbers["loss"].is_ready()

    def _save(self, step: int) -> None:
        self._telemetry.check()
        rest = {
            "opt": self._state.opt,
            "step": self._state.step,
            "seen": self._meter.seen.copy(),
        }
        with self._goodput.charge_to("checkpoint"):
            weights = self._state.trained | self._state.frozen
            self._checkpoints.save(step, weights, rest, self._stream)
        self._goodput.save(step)
        self._saved = step

    def _end_of_data(self, last: int) -> None:
        """Save the update that the last batch made, and say that there are no more."""
        self._settle()
        times = f"data.epochs={self._run.data.epochs} times"
        if not last:
            raise Mistake(f"{times}: the data ends before the first batch is full")
        if self._saved < last:
            self._save(last)
        self._telemetry.progress.log(f"the data ends after update {last}: all was drawn {times}")

    def _finish(self) -> None:
        """Wait for the last checkpoint, and sum up."""
        step = int(self._state.step)
        if self._compiled is not None:
            with self._goodput.charge_to("checkpoint"):
                self._checkpoints.wait()
            self._telemetry.check()
            self._goodput.save(step)
            self._telemetry.progress.log(self._goodput.summary())
        if self._stop.requested:
            self._telemetry.progress.log(f"stopped by a signal after update {step}: saved")


def halt(workdir: pathlib.Path, step: int, batch: Batch, state: State, loss: float) -> Fault:
    """Write what is needed to find why an update is not finite, and name it in a Fault."""
    folder = workdir / "halted" / f"{step}"
    what = f"update {step}: loss={loss} or its gradient is not finite; the batch and the state"
    # bfloat16 has no npz form that reads back without ml_dtypes.
    arrays: dict[str, Any] = {
        name: np.asarray(x, np.float32) if x.dtype.kind not in "if" else x
        for name, x in batch._asdict().items()
    }
    weights: Weights = state.trained | state.frozen
    try:
        folder.mkdir(parents=True, exist_ok=True)
        others = f"-{jax.process_index()}" if jax.process_index() else ""  # each has its own rows
        np.savez(folder / f"batch{others}.npz", **arrays)
        dump(folder / "state", {"weights": weights, "opt": state.opt})
    except (OSError, ValueError) as error:
        return Fault(f"{what} before it could not be written to {folder}: {error}")
    return Fault(f"{what} before it are in {folder}")


def _open_metrics(workdir: pathlib.Path, first: int) -> MetricsWriter | NullMetricsWriter:
    return NullMetricsWriter() if jax.process_index() else MetricsWriter(workdir, first)
