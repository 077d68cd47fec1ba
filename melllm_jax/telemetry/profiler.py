"""Traces a few updates, for TensorBoard's profile page and for Perfetto."""

from collections.abc import Callable, Iterable, Iterator
import contextlib
import dataclasses
import pathlib
import re
from typing import Any

import jax

from melllm_jax.errors import Mistake

PROFILE_FOLDER = (
    "profile"  # in a run's folder; each trace is a folder of its own, named by its time
)


@dataclasses.dataclass(frozen=True)
class UpdateRange:
    """Updates `first` to `last`, both included."""

    first: int
    last: int

    def check(self, after: int, steps: int) -> None:
        """Raises Mistake where a run of `steps` updates, resumed after `after`, lacks its end.

        If it begins before that, the rest of it is traced.
        """
        if self.last > steps:
            raise Mistake(f"profile={self}: the run ends after update {steps}")
        if self.last <= after:
            raise Mistake(f"profile={self}: the run goes on after update {after}")

    def __contains__(self, step: int) -> bool:
        return self.first <= step <= self.last

    def __str__(self) -> str:
        return f"{self.first}:{self.last}"


def parse_update_range(text: str) -> UpdateRange:
    """The updates that `FIRST:LAST` names. Raises Mistake where it names none."""
    found = re.fullmatch(r"(\d+):(\d+)", text, re.ASCII)
    if found is None:
        raise Mistake(f"profile={text}: must be FIRST:LAST, such as 10:15")
    first, last = map(int, found.groups())
    if not 0 < first <= last:
        raise Mistake(f"profile={text}: updates count from 1, and FIRST is at most LAST")
    return UpdateRange(first, last)


class Profiler:
    """Traces a range of updates into a folder; without a range it only names the updates.

    Use as a context manager: leaving it closes a trace that is still being taken. Where the
    profiler fails, a line is logged and the run goes on.
    """

    def __init__(
        self,
        folder: pathlib.Path,
        traced_range: UpdateRange | None,
        log: Callable[[str], None],
        untimed: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext,
    ):
        """`untimed` is a context for the profiler's own starting and writing: no update's time."""
        self._folder, self._range, self._log, self._untimed = folder, traced_range, log, untimed
        self._first: int | None = None  # update that the trace began with
        self._last = 0  # update under way
        self._tracing = False

    def __enter__(self) -> "Profiler":
        return self

    def __exit__(self, *_: Any) -> None:
        self._stop()

    def updates(self, steps: Iterable[int], settle: Callable[[], None]) -> Iterator[int]:
        """Yields each of `steps`; the loop's body is that step of the trace.

        `settle` waits for the devices, so that a trace has the whole of its updates and of no
        others.
        """
        for step in steps:
            if self._first is None and self._range and step in self._range:
                settle()
                self._start(step)
            self._last = step
            with jax.profiler.StepTraceAnnotation("update", step_num=step):
                yield step
            if self._tracing and self._range and step == self._range.last:
                settle()
                self._stop()

    def _start(self, step: int) -> None:
        self._first = step
        options = jax.profiler.ProfileOptions()
        # Calls of Python slow the loop that is looked at, and those of one compilation are more
        # than the million events that Perfetto's file holds: updates fell off its end.
        options.python_tracer_level = 0
        with self._untimed():
            try:
                self._folder.mkdir(parents=True, exist_ok=True)
                jax.profiler.start_trace(str(self._folder), profiler_options=options)
            except (OSError, RuntimeError) as error:
                self._log_failure(error)
                return
        self._tracing = True

    def _stop(self) -> None:
        if not self._tracing:
            return
        self._tracing = False
        with self._untimed():
            try:
                jax.profiler.stop_trace()
            except (OSError, RuntimeError) as error:
                self._log_failure(error)
                return
        self._log(f"trace of updates {self._first}:{self._last} in {self._folder}")

    def _log_failure(self, error: Exception) -> None:
        cause = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        self._log(f"no trace in {self._folder}: {cause}; the run goes on")
