"""Worker processes that make the batches of a host: each runs some lanes, from shards to rows.

Lanes share nothing, so neither do the processes: each writes the rows of its lanes into shared
memory and reports the states of its lanes. Batches and states are the same for any number of
processes, also none. A worker process ends with the process that started it.
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
from melllm_jax.config.run import BaseRun
from melllm_jax.errors import Fault, Mistake

# Grain imports JAX for its trees if it is installed: half a second and 135 MB a process.
START = (
    "import sys; sys.modules['jax'] = None; "
    "from data_pipelines.loader import worker_process; worker_process.main()"
)
# Each process works on one core: threads of libraries would compete with other processes.
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
ERROR_TYPES = {"Mistake": Mistake, "Fault": Fault}


@dataclasses.dataclass(frozen=True)
class WorkerSetup:
    """What a worker process makes the chain of, beside the run and its lanes."""

    split: str
    tokenizer: str  # digest that the tokenizer at run.text.tokenizer must have there
    log_once: Callable[[str, str], None]  # called with a damaged shard and a line about it


class WorkerPool(grain.DatasetIterator):
    """Yields the batches of `batcher`, made by run.data.workers processes instead of here.

    The processes start at once, and read once the first batch is requested or a state is set.
    Raises what they raise, and Fault where one of them is killed.
    """

    def __init__(self, batcher: LaneBatcher, run: BaseRun, worker_setup: WorkerSetup) -> None:
        super().__init__()
        if sys.platform != "linux":
            raise Mistake(f"data.workers={run.data.workers}: works on Linux alone: give 0")
        self._resources = contextlib.ExitStack()
        self._resources.callback(batcher.close)
        self._batcher, self._data, self._log_once = batcher, run.data, worker_setup.log_once
        self._state = batcher.get_state()
        self._requested: deque[int] = deque()  # buffers to be filled, in order
        self._error: Exception | None = None
        self.worker_cpu_seconds = 0.0  # CPU time of the processes for the batches handed out
        self._buffers = self._resources.enter_context(
            contextlib.closing(SharedBatchBuffers(run, batcher.rows))
        )
        self._workers: list[WorkerProcess] = []
        setup = {
            "run": to_json(override(run, {"data.workers": 0})),
            "rows": batcher.rows,
            "split": worker_setup.split,
            "tokenizer": worker_setup.tokenizer,
            "memory": self._buffers.file,
        }
        # Some hosts may have fewer lanes than processes.
        count = min(run.data.workers, len(batcher.lane_indices))
        for index in range(count):
            lanes = batcher.lane_indices[index::count]
            slots = list(range(len(batcher.lane_indices)))[index::count]
            worker = WorkerProcess(lanes, setup | {"lanes": lanes, "places": slots})
            self._workers.append(self._resources.enter_context(contextlib.closing(worker)))

    def __next__(self) -> Batch:
        if self._error is not None:
            raise self._error
        while len(self._requested) <= self._data.ahead:
            self._requested.append(self._buffers.acquire())
            for worker in self._workers:
                worker.send({"fill": self._requested[-1]})
        try:
            buffer, lanes = self._receive_batch()
            reject_counts.check_reject_share(
                self._data, [reject_counts.lane_counts(lane) for lane in lanes.values()]
            )
        except (Mistake, Fault, StopIteration) as error:
            self._error = error
            raise
        self._state = self._state | {"lanes": lanes}
        return self._buffers.batch(buffer)

    def _receive_batch(self) -> tuple[int, dict[str, Any]]:
        """The first requested buffer, once it is full, and the states of the lanes after it."""
        replies = [worker.receive(self._log_once) for worker in self._workers]
        buffer = self._requested.popleft()
        for reply in replies:
            if (error := reply.get("trouble")) is not None:
                self._buffers.release(buffer)
                kind, message = error
                raise ERROR_TYPES[kind](message) if kind in ERROR_TYPES else StopIteration
        self.worker_cpu_seconds = sum(reply["worked"] for reply in replies)
        states = {name: state for reply in replies for name, state in reply["lanes"].items()}
        return buffer, {str(index): states[str(index)] for index in self._batcher.lane_indices}

    def get_state(self) -> dict[str, Any]:
        return self._state

    def set_state(self, state: dict[str, Any]) -> None:
        with contextlib.suppress(Mistake, StopIteration):
            while self._requested:  # batches of the former state
                self._buffers.release(self._receive_batch()[0])
        self._batcher.mixture.set_phases(state["phases"])
        lanes = {str(index): state["lanes"][str(index)] for index in self._batcher.lane_indices}
        self._state, self._error = {"lanes": lanes, "phases": state["phases"]}, None
        for worker in self._workers:
            mine = {str(index): lanes[str(index)] for index in worker.lanes}
            names = self._batcher.mixture.names
            worker.send({"go": self._state | {"lanes": mine, "names": names}})

    def close(self) -> None:
        """Ends the processes. Batches that were handed out keep their memory."""
        self._resources.close()


class WorkerProcess:
    """A worker process as its parent sees it: it takes messages and replies to each "fill"."""

    def __init__(self, lanes: Sequence[int], setup: Mapping[str, Any]) -> None:
        self.lanes = lanes
        # Decoders print too; the file is closed with the process.
        self._output = tempfile.TemporaryFile("w+")  # noqa: SIM115
        replies, end = os.pipe()
        self._replies = os.fdopen(replies)
        python_path = os.pathsep.join(path for path in sys.path if path)
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-c", START],
                stdin=subprocess.PIPE,
                stdout=self._output,
                stderr=self._output,
                text=True,
                env=os.environ | ONE_THREAD | {"PYTHONPATH": python_path},
                pass_fds=(end, setup["memory"]),
                start_new_session=True,  # an interrupt is for the parent alone
            )
        finally:
            os.close(end)
        self.send({**setup, "answers": end})

    def send(self, message: Mapping[str, Any]) -> None:
        """Sends a message. If the process has ended, the next `receive` raises."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(message) + "\n")
            self._process.stdin.flush()

    def receive(self, log_once: Callable[[str, str], None]) -> dict[str, Any]:
        """The reply to the first unanswered "fill". Raises Fault where the process has ended."""
        for line in self._replies:
            message: dict[str, Any] = json.loads(line)
            if "told" not in message:
                return message
            log_once(*message["told"])
        code = self._process.wait()
        self._output.seek(0)
        last = self._output.read().strip().rpartition("\n")[2]  # of a traceback
        name = signal.Signals(-code).name if code < 0 else ""
        how = f"was killed ({name})" if name else f"ended with {code}: {last}"
        lanes = ", ".join(map(str, self.lanes))
        raise Fault(f"data.workers: the process that reads lanes {lanes} {how}")

    def close(self) -> None:
        """Ends the process."""
        self._process.kill()
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.wait()
        self._replies.close()
        self._output.close()
