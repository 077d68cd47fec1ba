"""Counts what a run's wall time went to, over all of its starts, and the share of it that counts.

Every second since the run first began is counted once. A start that resumes from a checkpoint adds
to what was counted until that checkpoint was saved; the time from then until this start began is
lost: updates to be made again, and the time that nothing ran. Its two ends are lines of a file of
the run's folder, one a checkpoint, only ever appended to, which outlive a kill. In a checkpoint's
own state they would not outlive a kill before the first one, and metrics.jsonl has no line of
updates between two logs and none of what was lost.
"""

from collections.abc import Callable, Iterator
import contextlib
import json
import pathlib
import time
from typing import Any

import jax

from melllm_jax.errors import Fault
from melllm_jax.json_text import parse_json

FILE_NAME = "goodput.jsonl"
KINDS = {  # what a second may be spent on, and how the summary says it
    "update": "updates",
    "setup": "making or loading weights and compiling",
    "data": "waiting for data",
    "checkpoint": "saving",
    "score": "scoring",
    "lost": "stopped, or lost and made again",
}


class Goodput:
    """Seconds of a run by what they were spent on. Time is "setup" until it is switched."""

    def __init__(self, folder: pathlib.Path):
        """Raises Fault, here and later, where the disk does not take a line."""
        self._path = folder / FILE_NAME
        self.seconds = dict.fromkeys(KINDS, 0.0)
        self._kind, self._since, self._began = "setup", time.perf_counter(), time.time()
        if not self._path.exists():
            self._append({"after": 0, "time": self._began} | self.seconds)

    def resume(self, after: int) -> None:
        """Add what earlier starts counted up to that update, after which this start goes on.

        Raises Fault for a file that is damaged.
        """
        try:
            lines = [line for line in self._lines() if line["after"] <= after]
            if lines:  # no line where a whole checkpoint stands: the file was taken away
                last = lines[-1]
                for kind in KINDS:
                    self.seconds[kind] += last[kind]
                self.seconds["lost"] += max(self._began - last["time"], 0.0)  # clocks may differ
        except (UnicodeDecodeError, TypeError, KeyError) as error:
            rule = "is damaged: without the file, what earlier starts took is not counted"
            raise Fault(f"{self._path}: {rule}: {error!r}") from error

    def switch_to(self, kind: str) -> None:
        """Charge time from now on to that kind."""
        now = time.perf_counter()
        self.seconds[self._kind] += now - self._since
        self._kind, self._since = kind, now

    @contextlib.contextmanager
    def charge_to(self, kind: str) -> Iterator[None]:
        """A context whose time is charged to that kind."""
        before = self._kind
        self.switch_to(kind)
        try:
            yield
        finally:
            self.switch_to(before)

    @contextlib.contextmanager
    def charge_wait(self, busy: Callable[[], bool]) -> Iterator[None]:
        """A context that waits for data, which counts as such where no device is `busy` after it.

        As long as they have an update to work on, the wait costs nothing.
        """
        began = time.perf_counter()
        yield
        self.switch_to(self._kind)
        if not busy():
            self.seconds[self._kind] -= self._since - began
            self.seconds["data"] += self._since - began

    def metrics(self) -> dict[str, Any]:
        """The share of all time that made updates which count, and the seconds of each kind."""
        self.switch_to(self._kind)
        return {"goodput": self._share(), "spent": dict(self.seconds)}

    def save(self, after: int) -> None:
        """Write down what is counted so far: a checkpoint of that update is on its way."""
        self.switch_to(self._kind)
        self._append({"after": after, "time": time.time()} | self.seconds)

    def summary(self) -> str:
        """One line for people: the goodput, and what took half a percent of the time or more."""
        self.switch_to(self._kind)
        total = sum(self.seconds.values())
        parts = [
            f"{KINDS[kind]} {_format_duration(seconds)}"
            for kind, seconds in self.seconds.items()
            if kind != "update" and seconds >= 0.005 * total
        ]
        first = f"goodput {self._share():.1%} of {_format_duration(total)}: updates"
        return ", ".join([f"{first} {_format_duration(self.seconds['update'])}", *parts])

    def _share(self) -> float:
        return self.seconds["update"] / max(sum(self.seconds.values()), 1e-9)

    def _append(self, line: dict[str, Any]) -> None:
        if jax.process_index():
            return
        try:
            with self._path.open("a") as file:
                file.write(json.dumps(line) + "\n")
        except OSError as error:
            raise Fault(f"{self._path}: cannot be written: {error.strerror}") from error

    def _lines(self) -> Iterator[dict[str, Any]]:
        text = self._path.read_text() if self._path.exists() else ""
        for line in text.splitlines():
            with contextlib.suppress(json.JSONDecodeError):  # cut off by a full disk
                yield parse_json(line)


def _format_duration(seconds: float) -> str:
    """A time for people: 9.1 s, 4 min 10 s, 51 h 7 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
