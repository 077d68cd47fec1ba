"""SIGTERM as a request to stop after an update from which the run can be resumed."""

import signal
import threading
import types
from typing import Any

import jax
from jax.experimental import multihost_utils


class StopRequest:
    """SIGTERM as a wish: `requested` turns true, and the loop ends where it can be resumed.

    With several processes, the signal to any of them is a wish for all, heard by JAX's preemption
    service in place of a handler of ours, and granted after the same update by all.
    """

    requested = False

    def __enter__(self) -> "StopRequest":
        self._alone = jax.process_count() == 1
        self._main = self._alone and threading.current_thread() is threading.main_thread()
        if self._main:
            self._before = signal.signal(signal.SIGTERM, self._ask)
        return self

    def __exit__(self, *_: Any) -> None:
        if self._main:
            signal.signal(signal.SIGTERM, self._before)

    def requested_at(self, step: int) -> bool:
        """Whether the loop must end after update `step`; to be called after each, by all."""
        if not self._alone and multihost_utils.reached_preemption_sync_point(step):
            self.requested = True
        return self.requested

    def _ask(self, number: int, frame: types.FrameType | None) -> None:
        self.requested = True
