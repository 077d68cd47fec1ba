"""Names the process that works on a cell of a sweep, and tells whether it may still be alive."""

from collections.abc import Mapping
import os
import socket
import time
from typing import Any

import psutil

BEAT = 10.0  # seconds between two heartbeats of the process that works on a cell
STALE = 180.0  # seconds without one after which an owner on another host counts as gone


def current_owner() -> dict[str, Any]:
    """This process as a ledger records it; `born` tells it from a later one of the same pid."""
    pid = os.getpid()
    return {
        "host": socket.gethostname(),
        "pid": pid,
        "born": _process_start(pid),
        "job": current_job(),
    }


def current_job() -> str:
    """The cluster's name of the job that this process belongs to; "" where there is none."""
    array, task = (os.environ.get(f"SLURM_ARRAY_{name}_ID") for name in ("JOB", "TASK"))
    if array and task:
        return f"slurm:{array}_{task}"
    jobset = os.environ.get("MELLLM_JOBSET", "")  # set by the manifests of backends.gke
    return f"gke:{jobset}" if jobset else ""


def is_alive(owner: Mapping[str, Any]) -> bool:
    """Whether an owner may still be at work, as far as this process can see.

    On this host its process is looked up; on another its last heartbeat counts. A cluster runs one
    process of a job at a time, so that an owner of this very job is an earlier start of it.
    """
    if owner["job"] and owner["job"] == current_job():
        return False
    if owner["host"] == socket.gethostname():
        return _is_same_start(owner["born"], _process_start(owner["pid"]))
    since = max(owner.get("beat") or 0.0, owner.get("claimed") or 0.0)
    return time.time() - since < STALE


def _process_start(pid: int) -> str | None:
    """When a process of this host began, in seconds after the boot; None where there is none.

    Time since the boot does not move when the clock is set, as the time of day does. psutil adds
    the time of the boot to it, in whole seconds that a clock being corrected may change at any
    moment: what is taken off again must be what was added.
    """
    try:
        while True:
            boot = psutil.boot_time()
            process = psutil.Process(pid)
            if process.status() == psutil.STATUS_ZOMBIE:
                return None
            start = process.create_time() - boot
            if psutil.boot_time() == boot:
                return f"{start:.2f}"
    except psutil.NoSuchProcess:
        return None


def _is_same_start(born: str | None, start: str | None) -> bool:
    """Whether the process that began at `start` is the owner recorded as `born`.

    Older ledgers hold BOOT:TICKS in place of seconds, the kernel's name of the boot and clock ticks
    after it, or "alive" of a system without /proc, where a number was all that was known.
    """
    if born is None or start is None:
        return False
    ticks = born.rpartition(":")[2]
    if ":" in born and ticks.isdigit():
        born = f"{int(ticks) / os.sysconf('SC_CLK_TCK'):.2f}"
    return born in (start, "alive")
