"""Metrics to JSON lines and TensorBoard, one line a step."""

import json
import pathlib
from typing import Any

from tensorboard.compat.proto import event_pb2, summary_pb2
from tensorboard.summary.writer.event_file_writer import EventFileWriter


class Record:
    """`metrics.jsonl` and `tensorboard/` of a run's directory. Use as a context manager."""

    def __init__(self, workdir: pathlib.Path, first: int):
        """Opens for a run that goes on after update `first`: later lines are of a lost future."""
        path = workdir / "metrics.jsonl"
        kept = [line for line in _lines(path) if json.loads(line)["step"] <= first]
        scratch = path.with_suffix(".tmp")
        scratch.write_text("".join(line + "\n" for line in kept))
        scratch.rename(path)
        self._file = path.open("a", buffering=1)
        self._board = EventFileWriter(str(workdir / "tensorboard"))

    def __enter__(self) -> "Record":
        return self

    def __exit__(self, *_: Any) -> None:
        self._file.close()
        self._board.close()

    def write(self, step: int, metrics: dict[str, Any]) -> None:
        """One line of JSON; numbers also go to TensorBoard under their names."""
        self._file.write(json.dumps({"step": step} | metrics) + "\n")
        numbers = _flat(metrics)
        values = [summary_pb2.Summary.Value(tag=k, simple_value=v) for k, v in numbers.items()]
        event = event_pb2.Event(step=step, summary=summary_pb2.Summary(value=values))
        event.wall_time = metrics.get("time", 0.0)
        self._board.add_event(event)


def _flat(metrics: dict[str, Any], prefix: str = "") -> dict[str, float]:
    numbers: dict[str, float] = {}
    for name, value in metrics.items():
        if isinstance(value, dict):
            numbers |= _flat(value, f"{prefix}{name}/")
        elif isinstance(value, int | float):
            numbers[prefix + name] = float(value)
    return numbers


def _lines(path: pathlib.Path) -> list[str]:
    """The whole lines of a file; a last line cut off by a kill is left out."""
    text = path.read_text() if path.exists() else ""
    return [line for line in text.split("\n")[:-1] if line.strip()]
