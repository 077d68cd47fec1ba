"""What a person watching a command sees: a bar on a terminal, plain lines elsewhere."""

from collections.abc import Callable, Iterator, Mapping
import contextlib
import sys
import time
from typing import Any

from tqdm import tqdm

LINE_INTERVAL = 10.0  # seconds between plain lines


class ProgressBar:
    """The progress of a training run, on standard error: a `telemetry.progress.Progress`."""

    def __init__(self, total: int, unit: str = "step"):
        self._live = sys.stderr.isatty()
        self._bar = tqdm(
            total=total, unit=unit, disable=not self._live, dynamic_ncols=True, file=sys.stderr
        )
        self._total, self._said = total, 0.0

    def log(self, text: str) -> None:
        """Leave a line."""
        if self._live:
            self._bar.write(text, file=sys.stderr)
        else:
            print(text, file=sys.stderr, flush=True)

    def status(self, text: str) -> None:
        """Name what takes long just now."""
        if self._live:
            self._bar.set_description(text)
        else:
            self.log(text)

    def step(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Show an update's loss and speed."""
        shown = f"loss {metrics['loss']:.3f}  accuracy {metrics['accuracy']:.1%}"
        speed = f"{metrics['audio_seconds_per_second']:.0f} s of audio a second"
        if self._live:
            self._bar.set_description("training")
            self._bar.n = step
            self._bar.set_postfix_str(f"{shown}  {speed}", refresh=False)
            self._bar.update(0)
        elif time.monotonic() - self._said > LINE_INTERVAL or step == self._total:
            self._said = time.monotonic()
            self.log(f"step {step}/{self._total}  {shown}  {speed}")

    def close(self) -> None:
        """Leave the bar as it stands."""
        self._bar.close()


@contextlib.contextmanager
def byte_progress(total: int) -> Iterator[Callable[[int], None]]:
    """The progress of `total` bytes and the time left; give what it yields the bytes just moved."""
    began = said = time.monotonic()
    with tqdm(total=total, unit="B", unit_scale=True, disable=not sys.stderr.isatty()) as bar:
        done = 0

        def moved(count: int) -> None:
            nonlocal done, said
            done += count
            bar.update(count)
            now = time.monotonic()
            if bar.disable and now - said > LINE_INTERVAL:
                said = now
                left = (now - began) * (total - done) / done
                line = f"{done / 1e9:.1f} of {total / 1e9:.1f} GB, {left:.0f} s left"
                print(line, file=sys.stderr, flush=True)

        yield moved
