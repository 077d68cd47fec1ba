"""Keeps the memory that a training step frees, so that the next step need not ask for it again."""

import ctypes
import sys

# mallopt's parameters in glibc's malloc.h, and what they are set to.
NO_MMAP, ONE_ARENA, NEVER_TRIM, GROW = (-4, 0), (-8, 1), (-1, 2**31 - 1), (-2, 256 << 20)


def keep_freed_memory() -> None:
    """Tell glibc to hold on to freed memory; elsewhere than on Linux with glibc, nothing.

    XLA on a CPU takes its scratch memory anew for each step. By default glibc maps and unmaps it,
    and the kernel clears every page again: a tenth of the time of a step of 40 M parameters.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for parameter, value in (NO_MMAP, ONE_ARENA, NEVER_TRIM, GROW):
            mallopt(parameter, value)
