"""Processes that make the batches of a host: each runs some of its lanes, from shards to rows.

A lane shares nothing with others, so neither do the processes: each writes the rows of its lanes
into memory that all see, and says what place its lanes have come to. Batches and places are those
of lanes that run here, for any number of processes. A process ends with whoever started it.
"""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import tempfile
from typing import Any

import grain

from data_pipelines.loader import reject_counts
from data_pipelines.loader.batch_assembly import LaneBatcher
from data_pipelines.loader.shared_buffers import SharedBatchBuffers
from melllm_jax.batch import Batch
from melllm_jax.config.overrides import override, to_json
from melllm_jax.config.run import Run
from melllm_jax.errors import Fault, Mistake

# Grain takes JAX for its trees where it can be had: half a second and 135 MB a process.
START = (
    "import sys; sys.modules['jax'] = None; "
    "from data_pipelines.loader import worker_process; worker_process.main()"
)
# A process is one core's work: libraries that start threads would take the others'.
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
ERROR_TYPES = {"Mistake": Mistake, "Fault": Fault}


@dataclasses.dataclass(frozen=True)
class WorkerSetup:
    """What the chain is made of again in another process, beside the run and its lanes."""

    split: str
    tokenizer: str  # digest of the one that run.text.tokenizer must be there
    log_once: Callable[[str, str], None]  # of damaged shards


class WorkerPool(grain.DatasetIterator):
    """The batches of `batcher`, which is not read here, made by run.data.workers processes.

    They work from when this is made, and read from the first batch or place on that is asked for.
    Raises what they raise, and Fault where one of them is killed.
    """

    def __init__(self, batcher: LaneBatcher, run: Run, elsewhere: WorkerSetup) -> None:
        super().__init__()
        if sys.platform != "linux":
            raise Mistake(f"data.workers={run.data.workers}: works on Linux alone: give 0")
        self._held = contextlib.ExitStack()
        self._held.callback(batcher.close)
        self._batcher, self._data, self._log_once = batcher, run.data, elsewhere.log_once
        self._state = batcher.get_state()
        self._asked: deque[int] = deque()  # slots that they are to fill, in order
        self._over: Exception | None = None
        self.worker_cpu_seconds = 0.0  # CPU time of the processes for the batches handed out
        self._slots = self._held.enter_context(
            contextlib.closing(SharedBatchBuffers(run, batcher.rows))
        )
        self._workers: list[WorkerProcess] = []
        setup = {
            "run": to_json(override(run, {"data.workers": 0})),
            "rows": batcher.rows,
            "split": elsewhere.split,
            "tokenizer": elsewhere.tokenizer,
            "memory": self._slots.file,
        }
        # Some hosts may have fewer lanes than processes.
        count = min(run.data.workers, len(batcher.lane_indices))
        for number in range(count):
            lanes = batcher.lane_indices[number::count]
            places = list(range(len(batcher.lane_indices)))[number::count]
            worker = WorkerProcess(lanes, setup | {"lanes": lanes, "places": places})
            self._workers.append(self._held.enter_context(contextlib.closing(worker)))

    def __next__(self) -> Batch:
        if self._over is not None:
            raise self._over
        while len(self._asked) <= self._data.ahead:
            self._asked.append(self._slots.acquire())
            for worker in self._workers:
                worker.send({"fill": self._asked[-1]})
        try:
            slot, lanes = self._answered()
            reject_counts.check_reject_share(
                self._data, [reject_counts.lane_counts(lane) for lane in lanes.values()]
            )
        except (Mistake, Fault, StopIteration) as error:
            self._over = error
            raise
        self._state = self._state | {"lanes": lanes}
        return self._slots.batch(slot)

    def _answered(self) -> tuple[int, dict[str, Any]]:
        """The first slot asked for, once it is full, and the places of the lanes after it."""
        answers = [worker.receive(self._log_once) for worker in self._workers]
        slot = self._asked.popleft()
        for answer in answers:
            if (trouble := answer.get("trouble")) is not None:
                self._slots.release(slot)
                kind, message = trouble
                raise ERROR_TYPES[kind](message) if kind in ERROR_TYPES else StopIteration
        self.worker_cpu_seconds = sum(answer["worked"] for answer in answers)
        places = {name: place for answer in answers for name, place in answer["lanes"].items()}
        return slot, {str(number): places[str(number)] for number in self._batcher.lane_indices}

    def get_state(self) -> dict[str, Any]:
        return self._state

    def set_state(self, state: dict[str, Any]) -> None:
        with contextlib.suppress(Mistake, StopIteration):
            while self._asked:  # of the place before
                self._slots.release(self._answered()[0])
        self._batcher.mixture.set_phases(state["phases"])
        lanes = {str(number): state["lanes"][str(number)] for number in self._batcher.lane_indices}
        self._state, self._over = {"lanes": lanes, "phases": state["phases"]}, None
        for worker in self._workers:
            mine = {str(number): lanes[str(number)] for number in worker.lanes}
            names = self._batcher.mixture.names
            worker.send({"go": self._state | {"lanes": mine, "names": names}})

    def close(self) -> None:
        """End the processes. Batches that were handed out keep their memory."""
        self._held.close()


class WorkerProcess:
    """One process, as this one sees it: orders go in, and an answer comes to each `fill`."""

    def __init__(self, lanes: Sequence[int], setup: Mapping[str, Any]) -> None:
        self.lanes = lanes
        # Decoders say things too; it is closed with the process.
        self._said = tempfile.TemporaryFile("w+")  # noqa: SIM115
        answers, end = os.pipe()
        self._answers = os.fdopen(answers)
        known = os.pathsep.join(path for path in sys.path if path)
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-c", START],
                stdin=subprocess.PIPE,
                stdout=self._said,
                stderr=self._said,
                text=True,
                env=os.environ | ONE_THREAD | {"PYTHONPATH": known},
                pass_fds=(end, setup["memory"]),
                start_new_session=True,  # an interrupt is for whoever started it
            )
        finally:
            os.close(end)
        self.send({**setup, "answers": end})

    def send(self, order: Mapping[str, Any]) -> None:
        """Give an order. That the process is gone is told by `receive`."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(order) + "\n")
            self._process.stdin.flush()

    def receive(self, log_once: Callable[[str, str], None]) -> dict[str, Any]:
        """To the first `fill` that has none yet. Raises Fault where the process has ended."""
        for line in self._answers:
            message: dict[str, Any] = json.loads(line)
            if "told" not in message:
                return message
            log_once(*message["told"])
        code = self._process.wait()
        self._said.seek(0)
        last = self._said.read().strip().rpartition("\n")[2]  # of a traceback
        name = signal.Signals(-code).name if code < 0 else ""
        how = f"was killed ({name})" if name else f"ended with {code}: {last}"
        lanes = ", ".join(map(str, self.lanes))
        raise Fault(f"data.workers: the process that reads lanes {lanes} {how}")

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.wait()
        self._answers.close()
        self._said.close()
