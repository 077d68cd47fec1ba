"""The protocol by which the training loop reports progress, and one that discards the reports."""

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable


@runtime_checkable
class Progress(Protocol):
    """What the loop tells whoever watches."""

    def log(self, text: str) -> None:
        """Something happened that a line should be left of."""

    def status(self, text: str) -> None:
        """What takes long just now, such as compiling."""

    def step(self, step: int, metrics: Mapping[str, Any]) -> None:
        """An update is done."""


class SilentProgress:
    """A `Progress` that tells nobody."""

    def log(self, text: str) -> None:
        """Nothing."""

    def status(self, text: str) -> None:
        """Nothing."""

    def step(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Nothing."""


SILENT = SilentProgress()
