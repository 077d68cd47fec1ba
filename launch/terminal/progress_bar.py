"""What a person watching a command sees: a bar by rich on a terminal, plain lines elsewhere.

All of it goes to standard error. Where that is no terminal, or one that cannot redraw a line, no
escape code is written.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
import contextlib
import sys
import time
from typing import Any, Protocol

from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Column
from rich.text import Text

LINE_INTERVAL = 10.0  # seconds between plain lines
RATE_PERIOD = 3600.0  # seconds over which a rate is taken: an update may last minutes


class Advance(Protocol):
    """A callback that moves a bar."""

    def __call__(self, count: int = 1, /) -> None:
        """So many more are done."""


class ProgressBar:
    """The progress of a training run: a `telemetry.progress.Progress`."""

    def __init__(self, total: int | None, unit: str = "updates"):
        """`total` is None where it is not known yet; `unit` is a plural."""
        self._total, self._unit = total, unit
        self._line_time: float | None = None  # of the last plain line
        self._display = _start_display(CountColumn(unit))
        self._task = self._display.add_task("", total=total) if self._display else None

    def log(self, text: str) -> None:
        """Leave a line."""
        if self._display is None:
            print(text, file=sys.stderr, flush=True)
        else:
            self._display.console.print(text, soft_wrap=True)

    def status(self, text: str) -> None:
        """Name what takes long just now."""
        if self._display is None:
            self.log(text)
        else:
            self._update(description=text)

    def step(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Show an update's loss and speed."""
        figures = {
            "mel": ".3f",
            "mel_l1": ".3f",
            "accuracy": ".1%",
        }  # those of them that the objective has
        own = "".join(f"{x} {metrics[x]:{how}}  " for x, how in figures.items() if x in metrics)
        speed = f"{metrics['audio_seconds_per_second']:.0f} s of audio a second"
        note = f"loss {metrics['loss']:.3f}  {own}{speed}"
        if self._display is not None:
            self._update(description="training", completed=step, note=note)
        elif self._line_due(first=True) or step == self._total:
            self.log(f"step {step}/{self._total}  {note}")

    def count(self, done: int, total: int | None = None) -> None:
        """Show how many are done, and of how many where that is known by now."""
        self._total = self._total if total is None else total
        if self._display is not None:
            self._update(completed=done, total=self._total)
        elif self._line_due(first=False):
            self.log(f"{done} of {self._total} {self._unit}")

    def close(self) -> None:
        """Leave the bar as it stands."""
        if self._display is not None:
            self._display.stop()

    def _update(self, **changes: Any) -> None:
        assert self._display is not None and self._task is not None
        self._display.update(self._task, **changes)

    def _line_due(self, first: bool) -> bool:
        """Whether LINE_INTERVAL has passed since this was last True; `first` is said first."""
        now = time.monotonic()
        due = first if self._line_time is None else now - self._line_time > LINE_INTERVAL
        if due or self._line_time is None:
            self._line_time = now
        return due


@contextlib.contextmanager
def count_progress(total: int | None, unit: str) -> Iterator[Advance]:
    """A bar on a terminal, nothing elsewhere; what it yields is called for each that is done.

    `total` is None where it is not known; `unit` is a plural.
    """
    display = _start_display(CountColumn(unit))
    if display is None:
        yield lambda count=1: None
        return
    task = display.add_task("", total=total)
    try:
        yield lambda count=1: display.advance(task, count)
    finally:
        display.stop()


@contextlib.contextmanager
def byte_progress(total: int) -> Iterator[Callable[[int], None]]:
    """The progress of `total` bytes and the time left; call what it yields with the bytes moved."""
    display = _start_display(DownloadColumn(), TransferSpeedColumn())
    if display is not None:
        task = display.add_task("", total=total)
        try:
            yield lambda count: display.advance(task, count)
        finally:
            display.stop()
        return
    began = line_time = time.monotonic()
    done = 0

    def moved(count: int) -> None:
        nonlocal done, line_time
        done += count
        now = time.monotonic()
        if now - line_time > LINE_INTERVAL:
            line_time = now
            left = (now - began) * (total - done) / done
            line = f"{done / 1e9:.1f} of {total / 1e9:.1f} GB, {left:.0f} s left"
            print(line, file=sys.stderr, flush=True)

    yield moved


class CountColumn(ProgressColumn):
    """How many are done, of how many, and how many a second."""

    def __init__(self, unit: str):
        super().__init__(Column(no_wrap=True))
        self._unit = unit

    def render(self, task: Task) -> Text:
        """The column's text."""
        total = "" if task.total is None else f"/{task.total:,.0f}"
        rate = task.finished_speed or task.speed
        speed = "" if rate is None else f", {rate:.3g}/s"
        return Text(f"{task.completed:,.0f}{total} {self._unit}{speed}")


class _Display(Progress):
    """A bar, and below it the field "note" of its task where there is one."""

    def get_renderables(self) -> Iterable[RenderableType]:
        yield from super().get_renderables()
        for task in self.tasks:
            if note := task.fields.get("note"):
                yield Text(note, no_wrap=True, overflow="ellipsis")


def _start_display(*amount: ProgressColumn) -> _Display | None:
    """A display on standard error whose bar is followed by `amount`; None where none can be."""
    console = Console(stderr=True, highlight=False, markup=False, emoji=False)
    if not sys.stderr.isatty() or console.is_dumb_terminal:
        return None
    display = _Display(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=None),
        *amount,
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        refresh_per_second=4,
        speed_estimate_period=RATE_PERIOD,
        redirect_stdout=False,  # it may be a file or a pipe, which the bar's console is not
    )
    display.start()
    console.show_cursor(True)  # a process that is ended at once could not bring it back
    return display
