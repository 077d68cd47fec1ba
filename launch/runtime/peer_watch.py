"""The processes of a job watch one another: when one ends, the others say why and end as well.

A process that waits in a collective for one that is gone waits for ever, or the runtime aborts it.
Each process therefore writes a heartbeat, and the reason of its end, to JAX's coordinator. Process
0 counts as dead whoever has written none for `SILENCE_LIMIT` seconds; all read who has ended, and
follow. Nothing in here runs where a command is one process.

JAX's own heartbeats (`heartbeat_timeout_seconds`) do not replace this: they abort a process with
SIGABRT and a stack of C++, which has the number of the dead one at most, never its host, its reason
or its exit status (2 for a mistake). They stay on behind it at their default of 100 s.
"""

from collections.abc import Callable
import ctypes
import dataclasses
import json
import os
import signal
import socket
import sys
import threading
import time
from typing import Any, NoReturn

import jax

HEARTBEAT_INTERVAL = 1.0  # seconds between two heartbeats
SILENCE_LIMIT = 30.0  # seconds without one after which a process counts as dead
LINGER = 4.0  # seconds in which the others read of an end
BEFORE_EXIT: list[Callable[[], None]] = []  # what is let go of where a process ends at once
ALIVE, ENDED = "melllm/alive/", "melllm/ended/"  # prefixes of keys; the process's index follows


@dataclasses.dataclass(frozen=True)
class ProcessEnd:
    """That a process ended, and why."""

    index: int
    host: str
    status: int  # of its exit
    text: str

    @property
    def process_name(self) -> str:
        """Which process it was."""
        return f"process {self.index} on {self.host}"


class PeerWatch(threading.Thread):
    """A thread that sends this process's heartbeats, and ends it when another process has ended."""

    def __init__(self, client: Any, index: int, count: int, prog: str):
        """`client` is that of `jax.distributed`; `index` is this process's, of `count`."""
        super().__init__(name="watch", daemon=True)
        self._client, self._index, self._prog = client, index, prog
        self._host = socket.gethostname()
        self._over = threading.Event()
        # By process: its last heartbeat, and when this process read it.
        self._heartbeats = dict.fromkeys(range(count), ("", time.monotonic()))
        self._hosts = dict.fromkeys(range(count), "a host that never spoke")

    @property
    def process_name(self) -> str:
        """This process, as the others call it."""
        return f"process {self._index} on {self._host}"

    def run(self) -> None:
        """Send heartbeats and read the others' ends until `stop`."""
        beats, reached = 0, time.monotonic()
        while not self._over.wait(HEARTBEAT_INTERVAL):
            beats += 1
            try:
                text = json.dumps([self._host, beats])
                self._client.key_value_set(f"{ALIVE}{self._index}", text, allow_overwrite=True)
                ended = self._client.key_value_dir_get(ENDED)
                if self._index == 0:
                    self._check_heartbeats(self._client.key_value_dir_get(ALIVE))
                reached = time.monotonic()
            except jax.errors.JaxRuntimeError:  # the coordinator is out of reach
                if time.monotonic() - reached > SILENCE_LIMIT:
                    self.exit_process(f"process 0 cannot be reached for {SILENCE_LIMIT:.0f} s", 1)
                continue
            for _, value in ended:
                end = ProcessEnd(**json.loads(value))
                if end.index != self._index and not self._over.is_set():
                    self.exit_process(f"stops, because {end.process_name} {end.text}", end.status)

    def report_end(self, status: int, text: str, index: int | None = None) -> None:
        """Let the others know why this process, or the one of that index, ends."""
        mine = index is None or index == self._index
        index = self._index if index is None else index
        host = self._host if mine else self._hosts[index]
        end = json.dumps(dataclasses.asdict(ProcessEnd(index, host, status, text)))
        try:
            self._client.key_value_set(f"{ENDED}{index}", end, allow_overwrite=True)
        except jax.errors.JaxRuntimeError:
            return  # they will miss this process's heartbeats

    def exit_process(self, text: str, status: int) -> NoReturn:
        """Say why and end at once, whatever other threads wait for."""
        self.linger()
        for release in BEFORE_EXIT:
            release()
        line = f"{self._prog}: error: {self.process_name}: {' '.join(text.split())}\n"
        sys.stdout.flush()
        os.write(2, line.encode())
        os._exit(status)

    def linger(self) -> None:
        """Give the others time to read what was reported: the coordinator ends with process 0."""
        if self._index == 0:
            time.sleep(LINGER)

    def stop(self) -> None:
        """End the thread: what is left of this process is to end."""
        self._over.set()
        if threading.current_thread() is not self:
            self.join()

    def _check_heartbeats(self, alive: list[tuple[str, str]]) -> None:
        """Note the heartbeats of all processes, and report the end of those without one."""
        now = time.monotonic()
        for key, text in alive:
            index = int(key.rpartition("/")[2])
            if self._heartbeats[index][0] != text:
                self._heartbeats[index] = text, now
                self._hosts[index] = json.loads(text)[0]
        for index, (_, since) in self._heartbeats.items():
            if index != self._index and now - since > SILENCE_LIMIT:
                why = f"ended without a word: no sign of life for {SILENCE_LIMIT:.0f} s"
                self.report_end(1, why, index)


class AbortHandler:
    """Writes a line where the runtime aborts this process, as it does without a coordinator.

    The runtime's own lines stand above it. The handler runs in whichever thread aborts.
    """

    _callback: Any = None  # the handler, which C calls: it must outlive this object

    def __init__(self, stderr: int):
        """`stderr` is the file descriptor to write to."""
        self.line, self._stderr = "", stderr

    def __enter__(self) -> "AbortHandler":
        kind = ctypes.CFUNCTYPE(None, ctypes.c_int)
        AbortHandler._callback = kind(self._write_line)
        ctypes.CDLL(None).signal(int(signal.SIGABRT), AbortHandler._callback)
        return self

    def __exit__(self, *_: Any) -> None:
        signal.signal(signal.SIGABRT, signal.SIG_DFL)

    def _write_line(self, _signal: int) -> None:
        os.write(self._stderr, self.line.encode())
        os._exit(1)
