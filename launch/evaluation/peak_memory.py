"""The most memory that this process has held at once, by what can tell."""

import dataclasses
import pathlib
import re
import resource
import sys
from typing import Literal

import jax

_STATUS = pathlib.Path("/proc/self/status")


@dataclasses.dataclass(frozen=True)
class PeakMemory:
    """The most memory held so far, as a summary has it."""

    peak_bytes: int
    peak_of: Literal["device", "process"]  # one device's allocations, or the resident set


def peak_memory() -> PeakMemory:
    """The largest peak of an accelerator's devices here, or of this process where there is none."""
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    peaks = [found["peak_bytes_in_use"] for found in stats if "peak_bytes_in_use" in found]
    if jax.default_backend() != "cpu" and peaks:
        return PeakMemory(max(peaks), "device")
    return PeakMemory(_resident_peak(), "process")


def _resident_peak() -> int:
    """Bytes of the largest resident set. Linux's `ru_maxrss` counts the parent's before exec."""
    if _STATUS.exists() and (found := re.search(r"^VmHWM:\s*(\d+) kB", _STATUS.read_text(), re.M)):
        return int(found[1]) << 10
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak << 10
