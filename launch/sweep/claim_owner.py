"""Names the process that works on a cell of a sweep, and tells whether it may still be alive."""

from collections.abc import Mapping
import os
import time
from typing import Any

from launch.runtime import process_identity

BEAT = 10.0  # seconds between two heartbeats of the process that works on a cell
STALE = 180.0  # seconds without one after which an owner that cannot be looked up counts as gone


def current_owner() -> dict[str, Any]:
    """This process as a ledger records it, with the cluster's name of its job."""
    return process_identity.current_process() | {"job": current_job()}


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
    seen = process_identity.runs_here(owner)
    if seen is not None:
        return seen
    since = max(owner.get("beat") or 0.0, owner.get("claimed") or 0.0)
    return time.time() - since < STALE
