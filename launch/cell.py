"""One cell of a sweep: claimed, trained or gone on with, evaluated, recorded, whoever starts it.

Killed anywhere, it goes on from its last checkpoint when it is started again; it is done once its
final evaluation is recorded. SIGTERM and Ctrl-C let it save first, and leave it preempted.
"""

from collections.abc import Iterator, Mapping, Sequence
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

from launch import compiled, final, owners, spec, whole
from launch.arguments import parse
from launch.backends import slurm
from launch.choice import first
from launch.hosts import Hosts, joined
from launch.ledger import Cell, Eval, Ledger
from launch.progress import Bar
from launch.train import fit
from melllm_jax.errors import Fault, Mistake
from melllm_jax.train import Stop

FINAL = "eval/final.json"  # in a run's folder


class Preempted(BaseException):
    """A signal asked the cell to end; raised where no training is under way that would save."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arguments:
    """Do one cell of a sweep, or go on with it: what backends start."""

    hosts: Hosts = Hosts()


def main(argv: Sequence[str]) -> int:
    """`melllm sweep cell DIR ID`."""
    folder, rest = first("sweep cell", argv, "DIR")
    name, rest = first("sweep cell DIR", rest, "ID")
    return work(folder, name, parse(Arguments, rest, prog="melllm sweep cell DIR ID").hosts)


def work(folder: str, name: str, hosts: Hosts) -> int:
    """Do the cell `name` of the sweep in `folder`: the exit status.

    0: done, preempted, or somebody else's; 2 a mistake and 1 a fault, recorded as failed. Several
    processes may do one cell: process 0 alone writes the ledger.
    """
    with joined(hosts, "melllm sweep cell"), compiled.kept(compiled.FOLDER):
        ledger = Ledger(folder)
        leads = jax.process_index() == 0
        cell = _claimed(ledger, name) if leads else ledger.read(name)
        if not _agreed(cell is not None):
            print(f"cell {name}: done, cancelled, or somebody's: nothing to do", flush=True)
            return 0
        assert cell is not None
        if not leads:
            _finished(ledger, cell, Steps(cell.steps))
            return 0
        attempt = Attempt(ledger, cell)
        with attempt:
            return attempt.run()


def _claimed(ledger: Ledger, name: str) -> Cell | None:
    return None if ledger.cancelled else ledger.claim(name, owners.here(), _alive)


def _alive(owner: Mapping[str, Any]) -> bool:
    """As `owners.alive`, but a task that Slurm no longer runs is gone at once."""
    if owner["job"].startswith("slurm:") and not slurm.alive(owner):
        return False
    return owners.alive(owner)


def _agreed(mine: bool) -> bool:
    """What process 0 found, told to all."""
    if jax.process_count() == 1:
        return mine
    return bool(multihost_utils.broadcast_one_to_all(np.asarray(mine)))


class Steps(Bar):
    """A bar that also remembers where it is."""

    def __init__(self, total: int) -> None:
        super().__init__(total)
        self.at, self.first, self.since = 0, 0, 0.0

    def step(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Show an update's loss and speed, and remember both ends of what was done here."""
        if not self.since:  # from here on it is updates alone, no compiling
            self.first, self.since = step, time.monotonic()
        self.at = step
        super().step(step, metrics)

    @property
    def rate(self) -> float | None:
        """Updates a second, once there are some."""
        passed = time.monotonic() - self.since
        return (self.at - self.first) / passed if self.at > self.first else None


class Attempt:
    """One claimed attempt: signs of life while it lasts, and its end in the ledger."""

    def __init__(self, ledger: Ledger, cell: Cell) -> None:
        self._ledger, self._cell = ledger, cell
        self._steps = Steps(cell.steps)
        self._over = threading.Event()
        self._beating = threading.Thread(target=self._beat, daemon=True)
        self._lost = False

    def __enter__(self) -> "Attempt":
        self._beating.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._over.set()
        self._beating.join()
        self._steps.close()

    def run(self) -> int:
        """Train, evaluate, record: the exit status."""
        with self._preemptible():
            try:
                result = _finished(self._ledger, self._cell, self._steps)
                self._over.set()
            except (Mistake, Fault) as trouble:
                if not self._lost:
                    self._end("failed", error=" ".join(str(trouble).split()))
                raise
            except (Preempted, KeyboardInterrupt):
                result = None
            except Exception as error:
                said = " ".join(str(error).split())
                self._end("failed", error=f"{type(error).__name__}: {said}")
                raise
            if result is None:
                self._end("preempted")
            else:
                self._end("done", step=result["step"], result=result)
        return 0

    @contextlib.contextmanager
    def _preemptible(self) -> Iterator[None]:
        """A context in which SIGTERM raises Preempted, but for where training makes it a wish.

        Once the end is being recorded it changes nothing. Where several processes train together
        the signal is JAX's, from the start to the end.
        """
        if jax.process_count() > 1:
            yield
            return

        def preempt(*_: Any) -> None:
            if not self._over.is_set():
                raise Preempted

        before = signal.signal(signal.SIGTERM, preempt)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before)

    def _end(self, state: str, **changes: Any) -> None:
        self._over.set()
        self._beating.join()
        now = time.time()
        step = self._steps.at or self._cell.step
        changes = {"step": step, "beat": now, "ended": now} | changes
        cell = dataclasses.replace(self._cell, state=state, **changes)  # type: ignore[arg-type]
        if not self._ledger.write(cell):
            raise Fault(f"cell {cell.id}: another process has taken it over: nothing is recorded")

    def _beat(self) -> None:
        """Tell the ledger that the cell is alive; stop it where it is cancelled or taken over."""
        while not self._over.wait(owners.BEAT):
            step = self._steps.at or self._cell.step
            now, rate = time.time(), self._steps.rate
            self._cell = dataclasses.replace(self._cell, step=step, beat=now, rate=rate)
            with contextlib.suppress(Fault):  # a full disk ends the training, not this
                self._lost = not self._ledger.write(self._cell)
                if self._lost or self._ledger.cancelled:
                    os.kill(os.getpid(), signal.SIGTERM)


def _finished(ledger: Ledger, cell: Cell, steps: Steps) -> dict[str, Any] | None:
    """The final evaluation of a cell, trained as far as it must be; None where it was stopped."""
    folder = ledger.folder / "runs" / cell.id
    path = folder / FINAL
    if path.exists():  # killed between the evaluation and its record
        found: dict[str, Any] = json.loads(path.read_text())
        return found
    run = spec.run(cell.overrides, ledger.sweep.common)
    stop = Stop()
    fitted = fit(run, os.fspath(folder), bar=steps, stop=stop)
    if stop.asked:
        return None
    steps.say("evaluating…")
    result = final.evaluated(fitted, epath.Path(folder), Eval(**ledger.sweep.eval))
    result |= {"preset": cell.overrides["preset"], "attempts": cell.attempt}
    if jax.process_index() == 0:
        whole.write(path, json.dumps(result, indent=1) + "\n")
    return result
