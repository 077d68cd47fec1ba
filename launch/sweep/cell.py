"""Does one cell of a sweep: claims it, trains or resumes its run, evaluates it and records the end.

Killed anywhere, a cell resumes from its last checkpoint when it is started again; it is done once
its final evaluation is recorded. SIGTERM and Ctrl-C let it save first, and leave it preempted.
"""

from collections.abc import Callable, Iterator, Mapping
import contextlib
import dataclasses
import json
import os
import signal
import threading
import time
from typing import Any

from etils import epath
import jax
from jax.experimental import multihost_utils
import numpy as np

from launch.runs.fit import fit
from launch.runtime import compile_cache
from launch.runtime.processes import Hosts, join_job
from launch.sweep import claim_owner, final_eval, spec
from launch.sweep.ledger import Cell, Eval, Ledger, State
from launch.terminal.progress_bar import ProgressBar
from melllm_jax import files
from melllm_jax.errors import Fault, Mistake
from melllm_jax.training.preemption import StopRequest

FINAL = "eval/final.json"  # in a run's folder


class PreemptionSignal(BaseException):
    """Raised by SIGTERM where no training is under way that would save and stop by itself."""


def work(
    folder: str, name: str, hosts: Hosts, is_alive: Callable[[Mapping[str, Any]], bool]
) -> int:
    """Do the cell `name` of the sweep in `folder`: the exit status.

    0 where it is done, preempted, or another's; 2 for a mistake and 1 for a fault, recorded as
    failed. `is_alive` tells whether the owner of a claim still works on it. Several processes may
    do one cell: process 0 alone writes the ledger.
    """
    with join_job(hosts, "melllm sweep cell"), compile_cache.use_folder(compile_cache.FOLDER):
        ledger = Ledger(folder)
        leads = jax.process_index() == 0
        cell = _claim(ledger, name, is_alive) if leads else ledger.read(name)
        if not _broadcast(cell is not None):
            print(f"cell {name}: done, cancelled, or somebody's: nothing to do", flush=True)
            return 0
        assert cell is not None
        if not leads:
            _finish(ledger, cell, StepBar(cell.steps))
            return 0
        attempt = Attempt(ledger, cell)
        with attempt:
            return attempt.run()


def _claim(ledger: Ledger, name: str, is_alive: Callable[[Mapping[str, Any]], bool]) -> Cell | None:
    return None if ledger.cancelled else ledger.claim(name, claim_owner.current_owner(), is_alive)


def _broadcast(value: bool) -> bool:
    """The value that process 0 has."""
    if jax.process_count() == 1:
        return value
    return bool(multihost_utils.broadcast_one_to_all(np.asarray(value)))


class StepBar(ProgressBar):
    """A progress bar that remembers the first and the last update, and the rate between them."""

    def __init__(self, total: int) -> None:
        super().__init__(total)
        self.current, self.first, self.since = 0, 0, 0.0

    def step(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Show an update's loss and speed, and remember it."""
        if not self.since:  # from here on it is updates alone, no compiling
            self.first, self.since = step, time.monotonic()
        self.current = step
        super().step(step, metrics)

    @property
    def rate(self) -> float | None:
        """Updates a second, once there are some."""
        passed = time.monotonic() - self.since
        return (self.current - self.first) / passed if self.current > self.first else None


class Attempt:
    """One claimed attempt at a cell: its heartbeats while it lasts, and its end in the ledger."""

    def __init__(self, ledger: Ledger, cell: Cell) -> None:
        self._ledger, self._cell = ledger, cell
        self._steps = StepBar(cell.steps)
        self._over = threading.Event()
        self._heart = threading.Thread(target=self._beat, daemon=True)
        self._replaced = False

    def __enter__(self) -> "Attempt":
        self._heart.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._over.set()
        self._heart.join()
        self._steps.close()

    def run(self) -> int:
        """Train, evaluate, record: the exit status."""
        with self._preemptible():
            try:
                result = _finish(self._ledger, self._cell, self._steps)
                self._over.set()
            except (Mistake, Fault) as trouble:
                if not self._replaced:
                    self._end("failed", error=" ".join(str(trouble).split()))
                raise
            except (PreemptionSignal, KeyboardInterrupt):
                result = None
            except Exception as error:
                line = " ".join(str(error).split())
                self._end("failed", error=f"{type(error).__name__}: {line}")
                raise
            if result is None:
                self._end("preempted")
            else:
                self._end("done", step=result["step"], result=result)
        return 0

    @contextlib.contextmanager
    def _preemptible(self) -> Iterator[None]:
        """A context in which SIGTERM raises PreemptionSignal.

        Training replaces the handler by its own, which saves first. Once the end is being recorded
        the signal changes nothing. Where several processes train together it is JAX's throughout.
        """
        if jax.process_count() > 1:
            yield
            return

        def preempt(*_: Any) -> None:
            if not self._over.is_set():
                raise PreemptionSignal

        before = signal.signal(signal.SIGTERM, preempt)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before)

    def _end(self, state: State, **changes: Any) -> None:
        """Stop the heartbeats and record the end. Raises Fault where another has taken over."""
        self._over.set()
        self._heart.join()
        now = time.time()
        step = self._steps.current or self._cell.step
        changes = {"step": step, "beat": now, "ended": now} | changes
        cell = dataclasses.replace(self._cell, state=state, **changes)
        if not self._ledger.write(cell):
            raise Fault(f"cell {cell.id}: another process has taken it over: nothing is recorded")

    def _beat(self) -> None:
        """Write heartbeats to the ledger; stop the cell where it is cancelled or taken over."""
        while not self._over.wait(claim_owner.BEAT):
            step = self._steps.current or self._cell.step
            now, rate = time.time(), self._steps.rate
            self._cell = dataclasses.replace(self._cell, step=step, beat=now, rate=rate)
            with contextlib.suppress(Fault):  # a full disk ends the training, not this
                self._replaced = not self._ledger.write(self._cell)
                if self._replaced or self._ledger.cancelled:
                    os.kill(os.getpid(), signal.SIGTERM)


def _finish(ledger: Ledger, cell: Cell, steps: StepBar) -> dict[str, Any] | None:
    """Train a cell to its last update and evaluate it: final.json; None where it was stopped."""
    folder = ledger.folder / "runs" / cell.id
    path = folder / FINAL
    if path.exists():  # killed between the evaluation and its record
        recorded: dict[str, Any] = json.loads(path.read_text())
        return recorded
    run = spec.run(cell.overrides, ledger.sweep.common)
    stop = StopRequest()
    fitted = fit(run, os.fspath(folder), bar=steps, stop=stop, work=f"cell {cell.id}")
    if stop.requested:
        return None
    steps.log("evaluating…")
    result = final_eval.evaluate(fitted, epath.Path(folder), Eval(**ledger.sweep.eval))
    result |= {"preset": cell.overrides["preset"], "attempts": cell.attempt}
    if jax.process_index() == 0:
        files.write_text(path, json.dumps(result, indent=1) + "\n")
    return result
