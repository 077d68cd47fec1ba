"""The protocol by which the training loop reports progress, and one that discards the reports."""

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable


@runtime_checkable
class Progress(Protocol):
    """Receives the training loop's reports."""

    def log(self, text: str) -> None:
        """Report an event in a line that stays."""

    def status(self, text: str) -> None:
        """Report what takes long just now, such as compiling."""

    def step(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Report a finished update."""


class SilentProgress:
    """A `Progress` that discards all reports."""

    def log(self, text: str) -> None:
        """Nothing."""

    def status(self, text: str) -> None:
        """Nothing."""

    def step(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Nothing."""


SILENT = SilentProgress()
