"""Defers Control-C where stopping half way would leave threads at work on files to be removed."""

from collections.abc import Iterator
import contextlib
import signal
import threading
from types import FrameType


@contextlib.contextmanager
def defer_interrupts() -> Iterator[None]:
    """A context at whose end Control-C takes effect. Only the main thread receives it at all.

    For blocks of a second or two: nothing tells the user that the key was seen.
    """
    usual = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(usual):
        yield
        return
    received: list[tuple[int, FrameType | None]] = []
    signal.signal(signal.SIGINT, lambda number, frame: received.append((number, frame)))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, usual)
        if received:
            usual(*received[0])
