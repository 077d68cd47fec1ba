"""Saves checkpoints without stopping the run, and restores the newest whole one.

The only importer of Orbax. A checkpoint is a folder `DIRECTORY/STEP` of three parts: `weights`
(all of them by name: what decoding reads), `state` (optimiser and counters) and `data` (the input
pipeline's position). Orbax renames a folder into place when it is whole; when that is done, a file
of sizes and CRC-32 sums seals it, because a flipped bit would load unnoticed. Reading leaves
everything as it is, so that a run can be read while it trains.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
import contextlib
import logging
import pathlib
import shutil
import threading
from typing import Any

from etils import epath
import jax
from jax.experimental import multihost_utils
import numpy as np
from orbax.checkpoint import multihost
from orbax.checkpoint import v1 as ocp

from melllm_jax.checkpoints.integrity import COMMITTED, SEAL, UNCOMMITTED, find_damage, write_seal
from melllm_jax.config.run import CheckpointIntervals
from melllm_jax.errors import Fault, Mistake

policies = ocp.training.preservation_policies


class Checkpoints:
    """The checkpoints of one run. Use as a context manager: leaving it waits for the last save."""

    def __init__(
        self,
        directory: str,
        intervals: CheckpointIntervals,
        log: Callable[[str], None] = print,
    ):
        _quiet_orbax()
        preserved: list[Any] = [policies.LatestN(intervals.last)]
        if intervals.milestone:
            preserved.append(policies.EveryNSteps(intervals.milestone))
        self._preservation = policies.AnyPreservationPolicy(preserved)
        self._directory = pathlib.Path(directory).absolute()  # Orbax refuses a relative one
        self._orbax: ocp.training.Checkpointer | None = None  # made by the first save
        self._log = log
        self._sealing: threading.Thread | None = None
        self._error: Exception | None = None

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: type | None, *_: Any) -> None:
        try:
            self.wait()
        except Fault:
            if kind is None:  # else an earlier error is on its way and says more
                raise
        finally:
            if self._orbax is not None:
                with contextlib.suppress(Exception):  # `wait` has raised it already
                    self._orbax.close()

    @property
    def steps(self) -> list[int]:
        """Steps of the checkpoints on disk, oldest first, good or not."""
        folder = self._directory
        names = [path.name for path in folder.iterdir()] if folder.exists() else []
        return sorted(int(name) for name in names if name.isdigit())

    def save(self, step: int, weights: Mapping[str, jax.Array], state: Any, data: Any) -> None:
        """Start saving; returns once the arrays are copied out. `data` keeps its own state.

        Waits for a save still under way. Raises Fault if that one failed.
        """
        self.wait()
        together = jax.process_count() > 1 and hasattr(data, "save")
        parts = {
            "weights": dict(weights),
            "state": state,
            "data": _JointSave(data, step) if together else data,
        }
        try:
            self._orbax = self._orbax or self._open_orbax()
            response = self._orbax.save_checkpointables_async(step, parts, force=True)
        except Exception as error:
            raise self._fault(step, error) from error
        self._sealing = threading.Thread(target=self._finish, args=(step, response))
        self._sealing.start()

    def wait(self) -> None:
        """Wait until the last save stands on disk. Raises Fault if it does not."""
        if self._sealing is not None:
            self._sealing.join()
            self._sealing = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def restore(self, weights: Mapping[str, Any], state: Any, data: Any) -> tuple[int, Any] | None:
        """Load the newest whole checkpoint: (step, {"weights", "state"}); None if there is none.

        `weights` and `state` are trees of shapes, dtypes and layouts to load into; `data`, an
        iterator of the input pipeline, is moved to its saved position. Damaged checkpoints are
        named, passed over and renamed STEP.damaged: the run will come to that step again, and only
        good ones may count as the last to keep. Raises Fault where there are checkpoints and none
        is whole; all stay as they are then.
        """
        found = self._newest({"weights": dict(weights), "state": state, "data": data})
        if found is not None and jax.process_index() == 0:
            for step in self.steps:
                if step > found[0]:
                    self._set_aside(step)
        return found

    def restore_weights(self, weights: Mapping[str, Any]) -> tuple[int, dict[str, jax.Array]]:
        """The newest whole checkpoint's weights of these names alone, as (step, weights by name).

        Raises Mistake where there is no checkpoint, Fault where none is whole.
        """
        with _partial_load():
            found = self._newest({"weights": dict(weights)})
        if found is None:
            raise Mistake(f"checkpoints={self._directory}: holds no checkpoint")
        return found[0], found[1]["weights"]

    def _newest(self, parts: Mapping[str, Any]) -> tuple[int, Any] | None:
        if jax.process_count() > 1:
            return self._agreed(parts)
        steps = self.steps
        for step in reversed(steps):
            folder = self._directory / str(step)
            damage = find_damage(folder)
            if damage is None:
                try:
                    return step, ocp.load_checkpointables(folder, dict(parts))
                except Exception as error:
                    if isinstance(error, Mistake) or (folder / SEAL).exists():
                        raise
                    damage = f"it has no {SEAL} and does not load: {type(error).__name__}"
            self._log(f"checkpoint {step} is damaged ({damage}): passing it over")
        if steps:
            raise Fault(f"{self._directory}: none of the checkpoints {steps} is whole")
        return None

    def _agreed(self, parts: Mapping[str, Any]) -> tuple[int, Any] | None:
        """The newest that process 0 finds whole, loaded by all: the sums are read once, by it."""
        step = -1
        if jax.process_index() == 0 and self.steps:
            for found in reversed(self.steps):
                damage = find_damage(self._directory / str(found))
                if damage is None:
                    step = found
                    break
                self._log(f"checkpoint {found} is damaged ({damage}): passing it over")
            else:
                raise Fault(f"{self._directory}: none of the checkpoints {self.steps} is whole")
        step = int(multihost_utils.broadcast_one_to_all(np.int32(step)))
        if step < 0:
            return None
        return step, ocp.load_checkpointables(self._directory / str(step), dict(parts))

    def _set_aside(self, step: int) -> None:
        folder = self._directory / f"{step}.damaged"
        if folder.exists():
            shutil.rmtree(folder)
        (self._directory / str(step)).rename(folder)
        self._log(f"checkpoint {step} is now {folder}")

    def _open_orbax(self) -> ocp.training.Checkpointer:
        return ocp.training.Checkpointer(
            epath.Path(self._directory),
            save_decision_policy=ocp.training.save_decision_policies.FixedIntervalPolicy(1),
            preservation_policy=self._preservation,
            cleanup_tmp_directories=jax.process_index() == 0,
        )

    def _finish(self, step: int, response: Any) -> None:
        try:
            response.result()
            if jax.process_index() == 0:
                write_seal(self._directory / str(step))
        except Exception as error:
            self._error = self._fault(step, error)

    def _fault(self, step: int, error: Exception) -> Fault:
        older = [s for s in self.steps if s != step]
        cause = str(error).splitlines()[0][:300] if str(error) else type(error).__name__
        return Fault(
            f"checkpoint {step} could not be written to {self._directory}: {cause}; "
            f"older checkpoints are intact: {older}"
        )


def load_weights(folder: pathlib.Path, weights: Mapping[str, Any]) -> dict[str, jax.Array]:
    """The weights of these names alone, of a checkpoint that is known to be whole.

    `weights` are shapes, dtypes and layouts by name, to load into.
    """
    _quiet_orbax()
    with _partial_load():
        found = ocp.load_checkpointables(folder.absolute(), {"weights": dict(weights)})
    loaded: dict[str, jax.Array] = found["weights"]
    return loaded


def _partial_load() -> ocp.Context:
    """A context in which weights that nobody asked for are not read."""
    context = ocp.Context()
    context.pytree.loading.partial_load = True
    return context


class _JointSave:
    """A part of a checkpoint that every process writes to: whole once all of them have.

    Orbax's own arrays wait for all processes; what keeps its own state does not, and process 0
    would rename the folder while another still writes into it.
    """

    def __init__(self, inner: Any, step: int):
        self._inner, self._step = inner, step

    async def save(self, directory: Any) -> Awaitable[None]:
        """Orbax's protocol: starts saving, and returns what waits for all processes."""
        writing = await self._inner.save(directory)

        async def write() -> None:
            await writing
            name = f"melllm_data_{self._step}"
            processes = set(range(jax.process_count()))  # named: no barrier over the devices
            await asyncio.to_thread(multihost.sync_global_processes, name, processes=processes)

        return write()

    async def load(self, directory: Any) -> Awaitable[None]:
        """Orbax's protocol: starts loading."""
        found: Awaitable[None] = await self._inner.load(directory)
        return found


def write_placeholder(folder: pathlib.Path, dtypes: Mapping[str, np.dtype]) -> None:
    """Writes a checkpoint of weights of these names, each one number long, for others to fill.

    Without OCDBT every weight has a folder of its own, which can be written without Orbax. Until
    `complete_placeholder` is called nothing takes it for a checkpoint.
    """
    context = ocp.Context()
    context.array.saving.use_ocdbt = False
    weights = {name: np.zeros(1, dtype) for name, dtype in dtypes.items()}
    _quiet_orbax()
    with context:
        ocp.save_checkpointables(epath.Path(folder.absolute()), {"weights": weights})
    (folder / COMMITTED).rename(folder / UNCOMMITTED)


def complete_placeholder(folder: pathlib.Path) -> None:
    """Seals what `write_placeholder` wrote, once it is filled: now it is a checkpoint."""
    (folder / UNCOMMITTED).rename(folder / COMMITTED)
    write_seal(folder)


def _quiet_orbax() -> None:
    """Orbax logs a page a save, and a traceback of every error that it also raises."""
    logging.getLogger("absl").setLevel(logging.CRITICAL)


def dump(folder: pathlib.Path, tree: Any) -> None:
    """Write a tree of arrays once, outside a run's checkpoints; replaces what is there."""
    ocp.save(epath.Path(folder.absolute()), tree, overwrite=True)
