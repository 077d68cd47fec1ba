"""Control-C where stopping half way would leave threads at work on what is about to be removed."""

from collections.abc import Iterator
import contextlib
import signal
import threading
from types import FrameType


@contextlib.contextmanager
def defer_interrupts() -> Iterator[None]:
    """Control-C takes effect when the block ends. Elsewhere than in the main thread it never comes.

    For blocks of a second or two: nothing tells the user that the key was seen.
    """
    usual = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(usual):
        yield
        return
    came: list[tuple[int, FrameType | None]] = []
    signal.signal(signal.SIGINT, lambda number, frame: came.append((number, frame)))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, usual)
        if came:
            usual(*came[0])
