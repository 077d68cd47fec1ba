"""The processes of a job watch one another: when one ends, the others say so and end as well.

A process that waits in a collective for one that is gone waits for ever, or the runtime aborts it.
Each tells JAX's coordinator that it lives, and why it ends. Process 0 takes for dead who has not
told for `SILENCE_LIMIT` seconds; all read who has ended, and follow. Nothing in here runs where a
command is one process.
"""

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

HEARTBEAT_INTERVAL = 1.0  # seconds between two signs of life
SILENCE_LIMIT = 30.0  # seconds without one after which a process is dead
LINGER = 4.0  # seconds in which the others hear of an end
ALIVE, ENDED = "melllm/alive/", "melllm/ended/"


@dataclasses.dataclass(frozen=True)
class ProcessEnd:
    """That a process ended, and why."""

    number: int
    host: str
    status: int  # of its exit
    text: str

    @property
    def name(self) -> str:
        """Which process it was."""
        return f"process {self.number} on {self.host}"


class PeerWatch(threading.Thread):
    """Tells of this process, and ends it when another has ended."""

    def __init__(self, client: Any, number: int, count: int, prog: str):
        """`client` is that of `jax.distributed`."""
        super().__init__(name="watch", daemon=True)
        self._client, self._number, self._count, self._prog = client, number, count, prog
        self._host = socket.gethostname()
        self._over = threading.Event()
        self._heard = dict.fromkeys(range(count), ("", time.monotonic()))
        self._names = dict.fromkeys(range(count), "a host that never spoke")

    @property
    def name_here(self) -> str:
        """This process, as others call it."""
        return f"process {self._number} on {self._host}"

    def run(self) -> None:
        """Beat and listen until `over`."""
        beats, lost = 0, time.monotonic()
        while not self._over.wait(HEARTBEAT_INTERVAL):
            beats += 1
            try:
                text = json.dumps([self._host, beats])
                self._client.key_value_set(f"{ALIVE}{self._number}", text, allow_overwrite=True)
                ended = self._client.key_value_dir_get(ENDED)
                if self._number == 0:
                    self._listen(self._client.key_value_dir_get(ALIVE))
                lost = time.monotonic()
            except jax.errors.JaxRuntimeError:  # the coordinator is out of reach
                if time.monotonic() - lost > SILENCE_LIMIT:
                    self.leave(f"process 0 cannot be reached for {SILENCE_LIMIT:.0f} s", 1)
                continue
            for _, found in ended:
                end = ProcessEnd(**json.loads(found))
                if end.number != self._number and not self._over.is_set():
                    self.leave(f"stops, because {end.name} {end.text}", end.status)

    def tell(self, status: int, text: str, number: int | None = None) -> None:
        """Let the others know why this process, or that of a number, ends."""
        mine = number is None or number == self._number
        number = self._number if mine else number
        assert number is not None
        host = self._host if mine else self._names[number]
        end = json.dumps(dataclasses.asdict(ProcessEnd(number, host, status, text)))
        try:
            self._client.key_value_set(f"{ENDED}{number}", end, allow_overwrite=True)
        except jax.errors.JaxRuntimeError:
            return  # they will miss this process's signs of life

    def leave(self, text: str, status: int) -> NoReturn:
        """Say why and end at once, whatever other threads wait for."""
        self.linger()
        line = f"{self._prog}: error: {self.name_here}: {' '.join(text.split())}\n"
        sys.stdout.flush()
        os.write(2, line.encode())
        os._exit(status)

    def linger(self) -> None:
        """Let the others hear what was told: the coordinator ends with process 0."""
        if self._number == 0:
            time.sleep(LINGER)

    def over(self) -> None:
        """Stop: what is left is to end."""
        self._over.set()
        if threading.current_thread() is not self:
            self.join()

    def _listen(self, alive: list[tuple[str, str]]) -> None:
        now = time.monotonic()
        for key, text in alive:
            number = int(key.rpartition("/")[2])
            if self._heard[number][0] != text:
                self._heard[number] = text, now
                self._names[number] = json.loads(text)[0]
        for number, (_, since) in self._heard.items():
            if number != self._number and now - since > SILENCE_LIMIT:
                why = f"ended without a word: no sign of life for {SILENCE_LIMIT:.0f} s"
                self.tell(1, why, number)


class AbortHandler:
    """What is said where the runtime aborts this process, as it does where the coordinator is gone.

    Its own lines stand above ours. The handler runs in whichever thread aborts.
    """

    _kept: Any = None  # the handler, which C calls: it must outlive this object

    def __init__(self, stderr: int):
        """`stderr` is the file descriptor to write to."""
        self.line, self._stderr = "", stderr

    def __enter__(self) -> "AbortHandler":
        kind = ctypes.CFUNCTYPE(None, ctypes.c_int)
        AbortHandler._kept = kind(self._say)
        ctypes.CDLL(None).signal(int(signal.SIGABRT), AbortHandler._kept)
        return self

    def __exit__(self, *_: Any) -> None:
        signal.signal(signal.SIGABRT, signal.SIG_DFL)

    def _say(self, number: int) -> None:
        os.write(self._stderr, self.line.encode())
        os._exit(1)
