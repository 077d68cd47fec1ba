"""Writes metrics to JSON lines and TensorBoard, one line a step."""

from collections.abc import Iterator
import contextlib
import json
import os
import pathlib
import time
from typing import Any

from tensorboard.compat.proto import event_pb2, summary_pb2
from tensorboard.summary.writer.record_writer import RecordWriter

from melllm_jax import files
from melllm_jax.errors import Fault
from melllm_jax.json_text import parse_json


class MetricsWriter:
    """`metrics.jsonl` and `tensorboard/` of a run's directory. Use as a context manager."""

    def __init__(self, workdir: pathlib.Path, first: int):
        """Opens for a run that resumes after update `first`, and drops the lines of later updates.

        Raises Fault, here and later, where the disk does not take it.
        """
        self._path, folder = workdir / "metrics.jsonl", workdir / "tensorboard"
        # Sorts after the files of earlier starts: TensorBoard reads them in order of their names.
        events = folder / f"events.out.tfevents.{time.time():.6f}.{os.getpid()}"
        with _disk_errors_as_faults(self._path):
            lines = _complete_lines(self._path)
            kept = [line for line in lines if _step(line, self._path) <= first]
            files.write_text(self._path, "".join(line + "\n" for line in kept))
            folder.mkdir(exist_ok=True)
            self._file = self._path.open("a")
            # Its own thread would keep events back for two minutes, and its errors to itself.
            self._board = RecordWriter(events.open("wb"))
            self._add(event_pb2.Event(file_version="brain.Event:2"))
            restart = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
            self._add(event_pb2.Event(step=first + 1, session_log=restart))

    def __enter__(self) -> "MetricsWriter":
        return self

    def __exit__(self, *_: Any) -> None:
        for file in (self._file, self._board):
            with contextlib.suppress(OSError):  # all is flushed but what `write` raised for
                file.close()

    def write(self, step: int, metrics: dict[str, Any]) -> None:
        """One line of JSON; numbers also go to TensorBoard under their names."""
        with _disk_errors_as_faults(self._path):
            self._file.write(json.dumps({"step": step} | metrics) + "\n")
            self._file.flush()
            self._add(_event(step, metrics))

    def _add(self, event: event_pb2.Event) -> None:
        event.wall_time = event.wall_time or time.time()
        self._board.write(event.SerializeToString())
        self._board.flush()


class NullMetricsWriter:
    """Stands in for a `MetricsWriter` in a process that leaves writing to another."""

    def __enter__(self) -> "NullMetricsWriter":
        return self

    def __exit__(self, *_: Any) -> None:
        """Nothing."""

    def write(self, step: int, metrics: dict[str, Any]) -> None:
        """Nothing."""


@contextlib.contextmanager
def _disk_errors_as_faults(path: pathlib.Path) -> Iterator[None]:
    """A context in which trouble with the disk raises Fault."""
    try:
        yield
    except OSError as error:
        raise Fault(f"{error.filename or path}: cannot be written: {error.strerror}") from error


def _event(step: int, metrics: dict[str, Any]) -> event_pb2.Event:
    numbers = _flatten(metrics)
    values = [summary_pb2.Summary.Value(tag=k, simple_value=v) for k, v in numbers.items()]
    event = event_pb2.Event(step=step, summary=summary_pb2.Summary(value=values))
    event.wall_time = metrics.get("time", 0.0)
    return event


def _flatten(metrics: dict[str, Any], prefix: str = "") -> dict[str, float]:
    numbers: dict[str, float] = {}
    for name, value in metrics.items():
        if isinstance(value, dict):
            numbers |= _flatten(value, f"{prefix}{name}/")
        elif isinstance(value, int | float):
            numbers[prefix + name] = float(value)
    return numbers


def _complete_lines(path: pathlib.Path) -> list[str]:
    """The whole lines of a file; a last line cut off by a kill is left out."""
    try:
        text = path.read_text() if path.exists() else ""
    except UnicodeDecodeError as error:
        raise Fault(f"{path}: is no text: {error.reason} at byte {error.start}") from error
    return [line for line in text.split("\n")[:-1] if line.strip()]


def _step(line: str, path: pathlib.Path) -> int:
    """The update that a line of metrics tells of. Raises Fault for a line that tells of none."""
    try:
        step = parse_json(line)["step"]
    except json.JSONDecodeError as error:
        raise Fault(f"{path}: holds a line that is no JSON: {line[:60]!r}") from error
    except (TypeError, KeyError) as error:
        raise Fault(f"{path}: holds a line without step: {line[:60]!r}") from error
    if type(step) is not int:
        raise Fault(f"{path}: holds a line whose step is no whole number: {line[:60]!r}")
    return step
