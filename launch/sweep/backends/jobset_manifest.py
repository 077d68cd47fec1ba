"""The manifest of a cell as a JobSet: a Job for each slice of TPUs, or one for the hosts of GPUs.

What must hold: a cell that loses its machines (a pod with the condition DisruptionTarget, or one
that got SIGTERM) is restarted as often as that happens; one that fails by itself is restarted
`restarts` times. A pod that got SIGTERM ends with 143, not with its cell's 0, for a pod that
succeeds is never replaced.

Sources: api/jobset/v1alpha2 of kubernetes-sigs/jobset, batch/v1 of Kubernetes, GKE's pages on TPUs.
"""

from collections.abc import Mapping
import dataclasses
import hashlib
import math
import re
import shlex
from typing import Any

from launch.sweep.backends.signal_forwarding import RUN_FORWARDING_SIGTERM
from melllm_jax.errors import Mistake

TPUS = {  # GKE's name of each, and the dimensions of its grid
    "v4": ("tpu-v4-podslice", 3),
    "v5e": ("tpu-v5-lite-podslice", 2),
    "v5p": ("tpu-v5p-slice", 3),
    "v6e": ("tpu-v6e-slice", 2),
    "tpu7x": ("tpu7x", 3),
}
GPUS = {"a100": "nvidia-a100-80gb", "h100": "nvidia-h100-80gb", "h200": "nvidia-h200-141gb"}
PORT = 8476  # of the coordinator, where GPUs of several hosts meet
STOPPED = 143  # 128 + SIGTERM
LASTING = 7 * 86_400  # seconds that Kubernetes keeps a finished JobSet and its logs
PATTERN = "[a-z0-9]([-a-z0-9]*[a-z0-9])?"  # of a name


@dataclasses.dataclass(frozen=True)
class Gke:
    """What a cell asks of GKE. The folder must lie on `volume`, a mounted bucket for example."""

    image: str = ""  # a container with melllm_jax and its extra for the chips
    topology: str = ""  # of a cell: v5e:2x4, h100:2x8 (hosts × GPUs a host), or cpu
    slices: int = 1  # of TPUs, over the data centre's network
    host: int = 0  # chips of a host; 0: 4 of a slice of TPUs that has so many
    accelerator: str = ""  # GKE's name, where not the usual one: nvidia-h100-mega-80gb
    namespace: str = "default"  # of Kubernetes, in which its JobSets are
    queue: str = ""  # of Kueue, a LocalQueue; "" is none
    service_account: str = ""  # of Kubernetes, with rights to the bucket
    volume: str = ""  # CLAIM:PATH, a PersistentVolumeClaim that all pods mount at PATH
    spot: bool = False  # machines that GKE may take back, with 25 s of notice
    select: tuple[str, ...] = ()  # further labels of nodes: LABEL=VALUE
    restarts: int = 3  # after which a cell that ends badly by itself stays so
    grace: int = 120  # seconds to save in, once told to stop
    melllm: str = "melllm"  # how the container calls it

    def __post_init__(self) -> None:
        object.__setattr__(self, "select", tuple(self.select))  # a list, where read from a ledger
        for name, least in (("slices", 1), ("host", 0), ("restarts", 0), ("grace", 0)):
            if getattr(self, name) < least:
                raise Mistake(f"gke.{name}={getattr(self, name)}: must be {least} or more")
        for name in ("namespace", "queue", "service_account"):
            value = getattr(self, name)
            if (value or name == "namespace") and not re.fullmatch(PATTERN, value):
                raise Mistake(f"gke.{name}={value!r}: must be lower-case letters, digits and -")
        for word in self.select:
            if not re.fullmatch(r"[\w./-]+=[\w.-]*", word):
                raise Mistake(f"gke.select={word!r}: must be LABEL=VALUE")
        if self.volume and not re.fullmatch(rf"{PATTERN}:/.*", self.volume):
            raise Mistake(f"gke.volume={self.volume!r}: must be CLAIM:PATH")


@dataclasses.dataclass(frozen=True)
class Shape:
    """The machines of a cell."""

    hosts: int  # of a slice
    chips: int  # of a host
    resource: str  # Kubernetes' name of the chips; "" where there are none
    labels: Mapping[str, str]  # of the nodes


def manifest(folder: str, id: str, options: Gke) -> dict[str, Any]:
    """The JobSet of a cell. Raises Mistake for a folder that its pods cannot reach."""
    path = options.volume.partition(":")[2].rstrip("/")
    if "://" not in folder and not (path and folder.startswith(f"{path}/")):
        raise Mistake(f"workdir={folder}: pods reach only a bucket, gs://…, or a gke.volume")
    machines, marks, name = shape(options), labels(folder, id), jobset_name(folder, id)
    several = machines.hosts > 1 or options.slices > 1
    metadata: dict[str, Any] = {"name": name, "namespace": options.namespace}
    metadata["labels"] = marks | (
        {"kueue.x-k8s.io/queue-name": options.queue} if options.queue else {}
    )
    if several and machines.resource == "google.com/tpu":  # a slice is a pool of nodes
        metadata["annotations"] = {
            "alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"
        }
    preempted = [  # on one of these, Job and JobSet restart without counting it
        {"action": "FailJob", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
        {
            "action": "FailJob",
            "onExitCodes": {"containerName": "cell", "operator": "In", "values": [STOPPED]},
        },
    ]
    job = {
        "parallelism": machines.hosts,
        "completions": machines.hosts,
        "completionMode": "Indexed",
        "backoffLimit": 0,
        "podFailurePolicy": {"rules": preempted},
        "template": {
            "metadata": {"labels": marks},
            "spec": _pod(folder, id, options, machines, several),
        },
    }
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": metadata,
        "spec": {
            "ttlSecondsAfterFinished": LASTING,
            "failurePolicy": {
                "maxRestarts": options.restarts,
                "rules": [
                    {
                        "name": "preempted",
                        "action": "RestartJobSetAndIgnoreMaxRestarts",
                        "onJobFailureReasons": ["PodFailurePolicy"],
                    }
                ],
            },
            "replicatedJobs": [
                {"name": "slice", "replicas": options.slices, "template": {"spec": job}}
            ],
        },
    }


def shape(options: Gke) -> Shape:
    """The machines that `topology` names. Raises Mistake for what is no topology, or no image."""
    if not options.image:
        raise Mistake("gke.image='': must be a container that has melllm_jax")
    if options.topology == "cpu" and options.slices == 1:
        return Shape(1, 0, "", {})
    kind, _, grid = options.topology.partition(":")
    sides = (
        [int(side) for side in grid.split("x")]
        if re.fullmatch(r"[1-9]\d*(x[1-9]\d*)+", grid)
        else []
    )
    if kind in GPUS and len(sides) == 2 and options.slices == 1:
        name = options.accelerator or GPUS[kind]
        return Shape(
            sides[0], sides[1], "nvidia.com/gpu", {"cloud.google.com/gke-accelerator": name}
        )
    if kind not in TPUS or len(sides) != TPUS[kind][1]:
        raise Mistake(
            f"gke.topology={options.topology!r} of {options.slices} slices: must be "
            f"{', '.join(TPUS)} and a grid (v5e:2x4, v5p:2x2x2), or, of one slice, "
            f"{', '.join(GPUS)} and HOSTSxGPUS, or cpu"
        )
    chips = math.prod(sides)
    each = options.host or min(chips, 4)
    if chips % each:
        raise Mistake(f"gke.host={each}: must divide the {chips} chips of {options.topology}")
    nodes = {
        "cloud.google.com/gke-tpu-accelerator": options.accelerator or TPUS[kind][0],
        "cloud.google.com/gke-tpu-topology": grid,
    }
    return Shape(chips // each, each, "google.com/tpu", nodes)


def _pod(folder: str, id: str, options: Gke, machines: Shape, several: bool) -> dict[str, Any]:
    """The specification of a pod: the same on each host."""
    name = jobset_name(folder, id)
    variables = {"MELLLM_JOBSET": f"{options.namespace}/{name}"}
    if several and machines.resource == "nvidia.com/gpu":  # of TPUs, GKE sets these itself
        variables["JAX_COORDINATOR_ADDRESS"] = f"{name}-slice-0-0.{name}:{PORT}"
        variables["JAX_NUM_PROCESSES"] = str(machines.hosts)
    stopped = f'[ -z "$told" ] || [ "$status" -ne 0 ] || status={STOPPED}\nexit "$status"\n'
    cell: dict[str, Any] = {
        "name": "cell",
        "image": options.image,
        "command": ["sh", "-c", RUN_FORWARDING_SIGTERM + stopped, "cell"],
        "args": [*shlex.split(options.melllm), "sweep", "cell", folder, id],
        "env": [{"name": key, "value": value} for key, value in variables.items()],
    }
    if machines.resource:
        cell["resources"] = {"limits": {machines.resource: machines.chips}}
    select = dict(machines.labels) | dict(word.split("=", 1) for word in options.select)
    pod: dict[str, Any] = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": options.grace,
        "containers": [cell],
    }
    if options.spot:
        select["cloud.google.com/gke-spot"] = "true"
        pod["tolerations"] = [
            {"key": "cloud.google.com/gke-spot", "operator": "Equal", "value": "true"}
        ]
    if select:
        pod["nodeSelector"] = select
    if options.service_account:
        pod["serviceAccountName"] = options.service_account
    if options.slices > 1:  # slices meet over the hosts' own network
        pod |= {"hostNetwork": True, "dnsPolicy": "ClusterFirstWithHostNet"}
    if options.volume:
        claim, _, path = options.volume.partition(":")
        pod["volumes"] = [{"name": "sweep", "persistentVolumeClaim": {"claimName": claim}}]
        cell["volumeMounts"] = [{"name": "sweep", "mountPath": path}]
    return pod


def labels(folder: str, id: str) -> dict[str, str]:
    """Labels of the JobSet of a cell, and of its pods."""
    return {"melllm/sweep": folder_digest(folder), "melllm/cell": id}


def jobset_name(folder: str, id: str) -> str:
    """Name of the JobSet of a cell; with what Kubernetes appends it may have 63 letters."""
    return f"melllm-{folder_digest(folder)}-{id}"


def folder_digest(folder: str) -> str:
    """Digest that tells a sweep from others in the same namespace."""
    return hashlib.sha256(folder.rstrip("/").encode()).hexdigest()[:8]
