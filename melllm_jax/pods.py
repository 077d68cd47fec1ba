"""Pods that are not here: their devices as a compiler sees them, which no array can be put on.

A TPU pod is named as libtpu names it, "v5p:4x4x4" in chips; a GPU pod by hosts and GPUs a host,
"h100:8x8".
"""

import dataclasses
import importlib.util
import math
import re
from typing import Any

import jax
from jax.experimental import topologies

from melllm_jax import flops
from melllm_jax.errors import Fault, Mistake


@dataclasses.dataclass(frozen=True)
class Kind:
    """A chip as it is named in a topology."""

    chip: str  # its name in flops.CHIPS
    known: str  # sizes of a slice
    sides: int  # dimensions of the grid of chips
    most: int  # chips of the largest slice; of GPUs, in one host


FLAT = "2x2 2x4 4x4 4x8 8x8 8x16 16x16"
TPUS = {  # Google Cloud's pages on each
    "v4": Kind("TPU v4", "2x2x1 to 12x16x16", 3, 4096),
    "v5e": Kind("TPU v5 lite", FLAT, 2, 256),
    "v5p": Kind("TPU v5p", "2x2x1 to 16x20x28", 3, 8960),
    "v6e": Kind("TPU v6 lite", FLAT, 2, 256),
    "tpu7x": Kind("TPU7x", "2x2x1 to 16x24x24", 3, 9216),
}
GPUS = {name: Kind(name.upper(), "HOSTSx8", 2, 8) for name in ("a100", "h100", "h200")}
KINDS = TPUS | GPUS


@dataclasses.dataclass(frozen=True)
class Pod:
    """Chips in slices; each slice has a fast network of its own."""

    name: str  # of the kind of chip
    shape: tuple[int, ...]  # chips of one slice; of GPUs: hosts, GPUs a host
    slices: int

    @property
    def chips(self) -> int:
        """In all slices."""
        return math.prod(self.shape) * self.slices

    @property
    def chip(self) -> flops.Chip:
        """What one of them can do."""
        return flops.CHIPS[KINDS[self.name].chip]

    @property
    def rings(self) -> tuple[bool, ...]:
        """Which sides of a slice close to a ring: of 16 chips in two dimensions, 4, 8, … in three.

        The compiler must know: on a line it gathers by sums of whole arrays, twice the bytes.
        """
        return tuple(n == 16 if len(self.shape) == 2 else n % 4 == 0 for n in self.shape)

    @property
    def gpu(self) -> bool:
        """Whether it is compiled for by CUDA's plugin, not libtpu."""
        return self.name in GPUS

    def __str__(self) -> str:
        copies = f"{self.slices} × " if self.slices > 1 else ""
        return f"{copies}{self.name}:{'x'.join(map(str, self.shape))}"


def pod(topology: str, slices: int = 1) -> Pod:
    """The pod of that name. Raises Mistake for one that is unknown, with those that are known."""
    found = re.fullmatch(r"([a-z0-9]+):(\d+(?:x\d+)+)", topology)
    kind = KINDS.get(found[1]) if found else None
    shape = tuple(map(int, found[2].split("x"))) if found else ()
    if found is None or kind is None or not _exists(kind, found[1] in GPUS, shape):
        known = ", ".join(f"{name}:({k.known})" for name, k in KINDS.items())
        raise Mistake(f"topology={topology}: is none of {known}")
    if slices < 1:
        raise Mistake(f"slices={slices}: must be positive")
    if slices > 1 and found[1] in GPUS:
        raise Mistake(f"slices={slices}: GPUs have none; say more hosts: {topology}")
    return Pod(found[1], shape, slices)


def compiles(pod: Pod) -> bool:
    """Whether what compiles for such a pod is installed."""
    names = ("jax_cuda12_plugin", "jax_cuda13_plugin") if pod.gpu else ("libtpu",)
    return any(importlib.util.find_spec(name) is not None for name in names)


def devices(pod: Pod) -> list[jax.Device]:
    """The pod's devices, slice by slice, to compile for.

    Raises Mistake for a shape that does not exist, Fault where the compiler cannot be loaded.
    """
    if pod.gpu:
        return _gpus(pod)
    grid = "x".join(map(str, pod.shape))
    try:
        options: dict[str, Any] = {"wrap": (*pod.rings, False)[:3]}
        if pod.slices > 1:
            options["num_slices"] = pod.slices
        if pod.name == "v4":  # else two devices a chip, which no mesh takes
            options["chip_config_name"] = "megacore"
        found = topologies.get_topology_desc(
            platform="tpu", topology_name=f"{pod.name}:{grid}", **options
        )
    except jax.errors.JaxRuntimeError as error:
        if "INVALID_ARGUMENT" not in str(error):
            raise Fault(f"libtpu cannot be used: {str(error).splitlines()[0]}") from error
        said = str(error).splitlines()[0].removeprefix("INVALID_ARGUMENT: ")
        raise Mistake(f"topology={pod}: {said}; known: {TPUS[pod.name].known}") from error
    return list(found.devices)


def _exists(kind: Kind, gpu: bool, shape: tuple[int, ...]) -> bool:
    if len(shape) != kind.sides or 0 in shape:
        return False
    return shape[1] <= kind.most if gpu else math.prod(shape) <= kind.most
