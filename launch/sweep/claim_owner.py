"""Who works on a cell, and whether they may still be at it."""

from collections.abc import Mapping
import os
import pathlib
import socket
import time
from typing import Any

BEAT = 10.0  # seconds between two signs of life of whoever works on a cell
STALE = 180.0  # seconds without one after which an owner on another host is taken for gone


def current_owner() -> dict[str, Any]:
    """This process, as a ledger names it. `born` tells it from a later one of the same number."""
    pid = os.getpid()
    return {
        "host": socket.gethostname(),
        "pid": pid,
        "born": _process_start(pid),
        "job": current_job(),
    }


def current_job() -> str:
    """The cluster's name of the job that this process is of; "" where there is none."""
    array, task = (os.environ.get(f"SLURM_ARRAY_{name}_ID") for name in ("JOB", "TASK"))
    if array and task:
        return f"slurm:{array}_{task}"
    jobset = os.environ.get("MELLLM_JOBSET", "")  # set by the manifests of backends.gke
    return f"gke:{jobset}" if jobset else ""


def is_alive(owner: Mapping[str, Any]) -> bool:
    """Whether an owner may still be at work, as far as it can be seen from here.

    On this host the process is looked up. Elsewhere its last sign of life counts. A cluster runs
    one process of a job at a time: an owner of this very job is an earlier start of it.
    """
    if owner["job"] and owner["job"] == current_job():
        return False
    if owner["host"] == socket.gethostname():
        return _process_start(owner["pid"]) == owner["born"] is not None
    since = max(owner.get("beat") or 0.0, owner.get("claimed") or 0.0)
    return time.time() - since < STALE


def _process_start(pid: int) -> str | None:
    """When a process of this host began, as text; None where there is none."""
    stat = pathlib.Path("/proc", str(pid), "stat")
    try:
        fields = stat.read_text().rpartition(")")[2].split()
        boot = pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except FileNotFoundError:
        return _process_start_without_proc(pid)
    return None if fields[0] == "Z" else f"{boot}:{fields[19]}"  # clock ticks after the boot


def _process_start_without_proc(pid: int) -> str | None:
    """Where there is no /proc: whether a process of that number lives is all that is known."""
    if pathlib.Path("/proc/self").exists():
        return None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        return "alive"
    return "alive"
