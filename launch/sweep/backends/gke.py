"""Runs cells on GKE, a JobSet each, by kubectl.

xpk submits JobSets of the same form, one at a time: `xpk workload create --tpu-type … --command
"melllm sweep cell FOLDER ID"`; on a cluster that it made, these go to its Kueue queue by
`queue="multislice-queue"`. Kueue decides how many run at once. JobSets are found by their labels,
which hold folder and cell; Kubernetes keeps the logs: `kubectl logs -l melllm/cell=ID`.
"""

from collections.abc import Mapping, Sequence
import json
import re
import shutil
import subprocess
import sys
from typing import Any

import yaml

from launch.sweep.backends import jobset_manifest
from launch.sweep.backends.jobset_manifest import Gke
from launch.sweep.ledger import Cell, Ledger
from melllm_jax.errors import Fault, Mistake


def check(options: Gke, folder: str) -> None:
    """Raises Mistake where kubectl is missing, pods cannot reach the folder, or an option fails."""
    if shutil.which("kubectl") is None:
        raise Mistake("backend=gke: kubectl cannot be found on this machine")
    if "://" in folder:
        raise Mistake(
            f"workdir={folder}: runs write to a disk: mount the bucket (Cloud Storage FUSE), and "
            "say so with gke.volume=CLAIM:PATH"
        )
    jobset_manifest.manifest(folder, "0" * 10, options)


def start(folder: str, ids: Sequence[str], options: Gke) -> int:
    """Submit a JobSet a cell, but for those that wait or run already: how many.

    Raises Mistake for a folder that pods cannot reach, Fault with kubectl's message.
    """
    known = _jobset_states(folder, options.namespace)
    ids = [id for id in ids if known.get(id) != ""]
    if not ids:
        return 0
    wanted = text(folder, ids, options)
    finished = [jobset_manifest.jobset_name(folder, id) for id in ids if id in known]
    if finished:  # such a one cannot be started again
        _kubectl("delete", "jobset", "-n", options.namespace, "--ignore-not-found", *finished)
    _kubectl("apply", "-n", options.namespace, "-f", "-", given=wanted)
    print(f"melllm sweep: {len(ids)} cells are JobSets in {options.namespace}", file=sys.stderr)
    return len(ids)


def cancel(folder: str, cells: Sequence[Cell]) -> None:
    """Delete the JobSets of the cells: their pods are told to stop, and save."""
    namespace = Ledger(folder).sweep.options.get("namespace", "default")
    known = _jobset_states(folder, namespace)
    names = [
        jobset_manifest.jobset_name(folder, cell.id) for cell in cells if known.get(cell.id) == ""
    ]
    if names:
        _kubectl("delete", "jobset", "-n", namespace, "--wait=false", "--ignore-not-found", *names)


def text(folder: str, ids: Sequence[str], options: Gke) -> str:
    """The JobSets of the cells as `kubectl apply -f -` takes them: YAML."""
    manifests = [jobset_manifest.manifest(folder, id, options) for id in ids]
    return yaml.dump_all(manifests, Dumper=_QuotedDumper, sort_keys=False)


class _QuotedDumper(yaml.SafeDumper):
    """YAML for kubectl: to it, unlike to PyYAML, 0123456789 and 12e3456789 are numbers."""


def _string(dumper: yaml.SafeDumper, value: str) -> yaml.Node:
    style = "|" if "\n" in value else None if value[:1].isalpha() else '"'
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style)


_QuotedDumper.add_representer(str, _string)


def _jobset_states(folder: str, namespace: str) -> dict[str, str]:
    """How the JobSet of each cell of the folder ended: Completed, Failed, or "" if it did not."""
    words = [
        "get",
        "jobsets",
        "-n",
        namespace,
        "-l",
        f"melllm/sweep={jobset_manifest.folder_digest(folder)}",
    ]
    found = json.loads(_kubectl(*words, "-o", "json"))["items"]
    return {one["metadata"]["labels"]["melllm/cell"]: _end_state(one) for one in found}


def _end_state(found: Mapping[str, Any]) -> str:
    """Completed, Failed, or Deleted while it is being deleted; "" where it is none of these."""
    if "deletionTimestamp" in found["metadata"]:
        return "Deleted"
    return str(found.get("status", {}).get("terminalState", ""))


def _kubectl(*words: str, given: str | None = None) -> str:
    """Standard output of kubectl. Raises Fault with its message."""
    try:
        done = subprocess.run(
            ["kubectl", *words], input=given or "", capture_output=True, text=True
        )
    except OSError as error:
        raise Fault(f"kubectl: cannot be run: {error.strerror}") from error
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if not re.match(r"[EWI]\d{4} ", line)]
        said = " ".join(" ".join(lines).split()).removeprefix("error: ")[:300]
        raise Fault(f"kubectl {words[0]}: {said or f'ended with status {done.returncode}'}")
    return done.stdout
