"""Describes pods that are not here: devices to compile for, which no array can be put on.

A TPU pod is named as libtpu names it, "v5p:4x4x4" in chips; a GPU pod by hosts and GPUs a host,
"h100:8x8".
"""

from collections.abc import Collection
import dataclasses
import importlib.util
import math
import re
from typing import Any

import jax
from jax.experimental import topologies
import numpy as np

from melllm_jax.chips import CHIPS, Chip
from melllm_jax.errors import Fault, Mistake


@dataclasses.dataclass(frozen=True)
class ChipKind:
    """A chip as it is named in a topology."""

    chip: str  # its name in CHIPS
    known_shapes: str  # sizes of a slice
    dimensions: int  # dimensions of the grid of chips
    max_chips: int  # chips of the largest slice; of GPUs, in one host


FLAT_SHAPES = "2x2 2x4 4x4 4x8 8x8 8x16 16x16"
TPUS = {  # Google Cloud's pages on each
    "v4": ChipKind("TPU v4", "2x2x1 to 12x16x16", 3, 4096),
    "v5e": ChipKind("TPU v5 lite", FLAT_SHAPES, 2, 256),
    "v5p": ChipKind("TPU v5p", "2x2x1 to 16x20x28", 3, 8960),
    "v6e": ChipKind("TPU v6 lite", FLAT_SHAPES, 2, 256),
    "tpu7x": ChipKind("TPU7x", "2x2x1 to 16x24x24", 3, 9216),
}
GPUS = {name: ChipKind(name.upper(), "HOSTSx8", 2, 8) for name in ("a100", "h100", "h200")}
KINDS = TPUS | GPUS


@dataclasses.dataclass(frozen=True)
class Pod:
    """Chips in slices; each slice has a fast network of its own."""

    name: str  # of the kind of chip
    shape: tuple[int, ...]  # chips of one slice; of GPUs: hosts, GPUs a host
    slices: int

    @property
    def chips(self) -> int:
        """Chips in all slices."""
        return math.prod(self.shape) * self.slices

    @property
    def chip(self) -> Chip:
        """What one chip can do."""
        return CHIPS[KINDS[self.name].chip]

    @property
    def rings(self) -> tuple[bool, ...]:
        """Which dimensions of a slice close to a ring.

        Of slices of two dimensions those of 16 chips, of three those of 4, 8, … chips.

        The compiler must know: on a line it gathers by sums of whole arrays, twice the bytes.
        """
        return tuple(n == 16 if len(self.shape) == 2 else n % 4 == 0 for n in self.shape)

    @property
    def gpu(self) -> bool:
        """Whether CUDA's plugin compiles for it, not libtpu."""
        return self.name in GPUS

    def __str__(self) -> str:
        copies = f"{self.slices} × " if self.slices > 1 else ""
        return f"{copies}{self.name}:{'x'.join(map(str, self.shape))}"


def parse_pod(topology: str, slices: int = 1) -> Pod:
    """The pod of that name. Raises Mistake for an unknown one, naming those that exist."""
    found = re.fullmatch(r"([a-z0-9]+):(\d+(?:x\d+)+)", topology)
    kind = KINDS.get(found[1]) if found else None
    shape = tuple(map(int, found[2].split("x"))) if found else ()
    if found is None or kind is None or not _exists(kind, found[1] in GPUS, shape):
        known = ", ".join(f"{name}:({k.known_shapes})" for name, k in KINDS.items())
        raise Mistake(f"topology={topology}: is none of {known}")
    if slices < 1:
        raise Mistake(f"slices={slices}: must be positive")
    if slices > 1 and found[1] in GPUS:
        raise Mistake(f"slices={slices}: GPUs have none; say more hosts: {topology}")
    return Pod(found[1], shape, slices)


def has_compiler(pod: Pod) -> bool:
    """Whether a compiler for such a pod is installed."""
    names = ("jax_cuda12_plugin", "jax_cuda13_plugin") if pod.gpu else ("libtpu",)
    return any(importlib.util.find_spec(name) is not None for name in names)


def pod_devices(pod: Pod) -> list[jax.Device]:
    """The pod's devices, slice by slice, to compile for.

    Raises Mistake for a shape that does not exist, Fault where the compiler cannot be loaded.
    """
    if pod.gpu:
        return _gpu_devices(pod)
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
    except RuntimeError as error:  # JAX's own where no plugin is installed
        if "INVALID_ARGUMENT" not in str(error):
            raise Fault(f"libtpu cannot be used: {str(error).splitlines()[0]}") from error
        said = str(error).splitlines()[0].removeprefix("INVALID_ARGUMENT: ")
        raise Mistake(f"topology={pod}: {said}; known: {TPUS[pod.name].known_shapes}") from error
    return list(found.devices)


def _exists(kind: ChipKind, gpu: bool, shape: tuple[int, ...]) -> bool:
    """Whether chips of a kind come in slices (GPUs: hosts and GPUs a host) of that shape."""
    if len(shape) != kind.dimensions or 0 in shape:
        return False
    return shape[1] <= kind.max_chips if gpu else math.prod(shape) <= kind.max_chips


# What XLA's GPU compiler asks of a chip, as it reads the properties of one that is there: streaming
# multiprocessors, clock (GHz), bytes of memory and of L2, bytes a second, shared memory a block,
# compute capability, and the name that the driver gives. NVIDIA's data sheets and tuning guides.
_GPU_FACTS = {
    "a100": (108, 1.41, 85_095_874_560, 41_943_040, 2_039_000_000_000, 166_912, 8),
    "h100": (132, 1.98, 84_929_347_584, 52_428_800, 3_352_320_000_000, 232_448, 9),
    "h200": (132, 1.98, 150_020_423_680, 62_914_560, 4_800_000_000_000, 232_448, 9),
}
_GPU_NAMES = {
    "a100": "NVIDIA A100-SXM4-80GB",
    "h100": "NVIDIA H100 80GB HBM3",
    "h200": "NVIDIA H200",
}


def _gpu_devices(pod: Pod) -> list[jax.Device]:
    """The GPUs of a pod, to compile for."""
    hosts, each = pod.shape
    try:
        found = topologies.get_topology_desc(
            platform="cuda",
            topology_name=pod.name,
            target_config=_gpu_target_config(pod.name),
            topology=f"{hosts}x1x{each}",  # NVLink domains, servers in each, GPUs a server
        )
    except RuntimeError as error:  # JAX's own where no plugin is installed
        raise Fault(f"CUDA's plugin cannot be used: {str(error).splitlines()[0]}") from error
    return list(found.devices)


def _gpu_target_config(name: str) -> str:
    """A chip's properties in protobuf's text form, as XLA's `GpuTargetConfigProto` has them."""
    cores, clock, memory, cache, bandwidth, shared, capability = _GPU_FACTS[name]
    facts = {
        "threads_per_block_limit": 1024,
        "threads_per_warp": 32,
        "shared_memory_per_block": 49_152,
        "shared_memory_per_core": shared + 1024,
        "shared_memory_per_block_optin": shared,
        "threads_per_core_limit": 2048,
        "core_count": cores,
        "fpus_per_core": 128 if capability == 9 else 64,
        "block_dim_limit_x": 2**31 - 1,
        "block_dim_limit_y": 65_535,
        "block_dim_limit_z": 65_535,
        "memory_bandwidth": bandwidth,
        "l2_cache_size": cache,
        "clock_rate_ghz": clock,
        "device_memory_size": memory,
        "registers_per_core_limit": 65_536,
        "registers_per_block_limit": 65_536,
    }
    listed = " ".join(f"{key}: {value}" for key, value in facts.items())
    return (
        f"gpu_device_info {{ {listed} cuda_compute_capability {{ major: {capability} }} }}\n"
        'platform_name: "CUDA" dnn_version_info { major: 9 minor: 7 } '
        "runtime_version { major: 12 minor: 8 patch: 0 } "
        f'device_description_str: "{_GPU_NAMES[name]}"'
    )


def link_rate(mesh: jax.sharding.Mesh, axes: Collection[str], pod: Pod) -> tuple[float, bool]:
    """Bytes a second one device sends in a group along `axes`, and whether they leave the domain.

    On a torus both directions of every dimension that the group spans are used; of one that is not
    closed to a ring, one direction alone (a line's ends get everything from one neighbour).
    Where a group spans slices or servers, every device of it there sends through its own adapter.
    """
    group, chip = _devices_along(mesh, axes), pod.chip
    if chip.torus:
        parts = len({getattr(device, "slice_index", 0) for device in group})
        if parts > 1:
            return chip.network / chip.devices * (len(group) // parts), True
        return chip.link / chip.devices * _link_count(group, pod), False
    servers = {device.process_index for device in group}
    if len(servers) > 1:
        return min(chip.link, chip.network * (len(group) // len(servers))), True
    return chip.link, False


def _devices_along(mesh: jax.sharding.Mesh, axes: Collection[str]) -> list[jax.Device]:
    """The devices that differ in `axes` alone, or all where none is named."""
    index = tuple(slice(None) if name in axes or not axes else 0 for name in mesh.axis_names)
    return list(mesh.devices[index].flat)


def _link_count(group: list[jax.Device], pod: Pod) -> int:
    """Links over which each device of the group can send to others of it."""
    coords = np.array([device.coords for device in group])
    spanned = [len(set(side.tolist())) for side in coords.T[: len(pod.shape)]]
    sides = zip(spanned, pod.shape, pod.rings, strict=True)
    total = sum(2 if ring and n == length else 1 for n, length, ring in sides if n > 1)
    return max(total, 1)  # two devices of one chip
