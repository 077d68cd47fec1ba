"""Reads what a compiled program's collectives send, and over which axes of the mesh.

Devices are numbered along the mesh, its last axis fastest, as a program for that mesh numbers
them. Bytes are those that one chip sends when the devices of a group pass parts round a ring.

TPUs in several slices run a program for the devices of one slice; between slices it sends and
receives through the host, and says there what the exchange is (`_xla_megascale_transfer_type`).
"""

from collections.abc import Mapping
import dataclasses
import functools
import itertools
import math
import re

import numpy as np

from melllm_jax.errors import Fault
from melllm_jax.planning import hlo_text

# Bytes sent by a chip, over the bytes of the whole array, in a group of n. Of an all-gather and an
# all-to-all the whole is the result; of a reduce-scatter, what is summed.
RING_FACTORS = {
    "all-gather": lambda n: (n - 1) / n,
    "reduce-scatter": lambda n: (n - 1) / n,
    "all-reduce": lambda n: 2 * (n - 1) / n,
    "all-to-all": lambda n: (n - 1) / n,
    "collective-permute": lambda n: 1.0,
}


@dataclasses.dataclass(frozen=True)
class Collective:
    """One kind of exchange over the same axes, all its runs in a step together."""

    kind: str  # a key of RING_FACTORS
    axes: tuple[str, ...]  # of the mesh, in its order; () where no set of axes makes the groups
    devices: int  # in a group
    hidden: bool  # asynchronous: other work may run meanwhile
    times: int  # a step
    bytes: float  # that one chip sends a step, by all of them


@dataclasses.dataclass(frozen=True)
class SliceAxes:
    """The axes of a mesh and their sizes: those across slices, and those inside one."""

    across: tuple[tuple[str, int], ...]
    inside: tuple[tuple[str, int], ...]


def slice_axes(sizes: Mapping[str, int], devices: int) -> SliceAxes:
    """The mesh of a program for `devices` devices: all of them, or those of one slice.

    Raises Fault where the mesh's last axes do not hold as many.
    """
    axes = tuple(sizes.items())
    for first in range(len(axes) + 1):
        if math.prod(size for _, size in axes[first:]) == devices:
            return SliceAxes(axes[:first], axes[first:])
    raise Fault(f"a program for {devices} devices is not for a mesh of {dict(sizes)}")


def read_collective(
    instruction: hlo_text.Instruction,
    mesh_axes: SliceAxes,
    *,
    hidden: bool,
    scattered: bool = False,
) -> Collective | None:
    """What one run of a collective sends; None for another instruction or a group of one device.

    `scattered` is true of an all-reduce of whose result every device keeps its own part alone.
    """
    if instruction.op == "send":
        return _between_slices(instruction, mesh_axes)
    kind = instruction.op.removesuffix("-start")
    if kind not in RING_FACTORS:
        return None
    axes, devices = _group_axes(kind, instruction.attributes, mesh_axes.inside)
    if devices < 2:
        return None
    if scattered:
        whole, kind = sum(b.bytes for b in instruction.buffers), "reduce-scatter"
    else:
        whole = sum(b.bytes for b in hlo_text.leaves(result_shape(instruction)))
        whole *= devices if kind == "reduce-scatter" else 1
    return Collective(kind, axes, devices, hidden, 1, RING_FACTORS[kind](devices) * whole)


def _between_slices(sent: hlo_text.Instruction, mesh_axes: SliceAxes) -> Collective | None:
    """What a chip sends to its peers in other slices; ONE_TO_ONE goes to one of them."""
    found = re.search(r'_megascale_transfer_type="([A-Z_]+)"', sent.attributes)
    if not found:
        return None
    kind = found.group(1).lower().replace("_", "-")
    names = tuple(name for name, size in mesh_axes.across if size > 1)
    slices = math.prod(size for _, size in mesh_axes.across)
    whole = sent.buffers[0].bytes * (slices if kind == "all-gather" else 1)
    if kind not in RING_FACTORS:
        kind = "collective-permute"
    return Collective(kind, names, slices, True, 1, RING_FACTORS[kind](slices) * whole)


def result_shape(instruction: hlo_text.Instruction) -> hlo_text.Shape:
    """The result of a collective: of most that only start, the second part of a tuple."""
    shape, op = instruction.shape, instruction.op
    if op.endswith("-start") and op != "all-reduce-start" and isinstance(shape, tuple):
        return shape[1]
    return shape


def replica_groups(attributes: str, devices: int) -> np.ndarray:
    """The groups that `replica_groups=` prints, int [group, device].

    Written out `{{0,1},{2,3}}`, as a transposed count `[2,2]<=[2,2]T(1,0)`, or by axes of a mesh
    `mesh['a'=2,'b'=4] {'b'}` (openxla, mesh_and_axis.cc: `'b':(2)2` is the part of axis b that
    has 2 before it, and `device_ids=` may order the mesh's devices). `{}` is one group of all.
    """
    text = attributes.partition("replica_groups=")[2]
    if found := re.match(r"\[([\d,]+)\]<=(\[[\d,]+\](?:T\([\d,]+\))?)", text):
        return _iota_groups(found.group(2)).reshape(_integers(found.group(1)))
    if found := re.match(r"mesh\[([^\]]*)\](?:, device_ids=\((.*?)\))? \{([^}]*)\}", text):
        return _groups_by_axes(*found.groups())
    found = re.match(r"\{(\{[\d,{}]*\})\}", text)
    rows = re.findall(r"\{([\d,]+)\}", found.group(1)) if found else []
    return np.array([_integers(row) for row in rows]) if rows else np.arange(devices)[None]


@functools.cache
def _group_axes(kind: str, attributes: str, mesh: tuple[tuple[str, int], ...]) -> tuple[tuple, int]:
    """The axes of the mesh over which a collective runs, and the devices of a group."""
    names, lengths = tuple(name for name, _ in mesh), tuple(size for _, size in mesh)
    if kind == "collective-permute":
        return _permuted_axes(attributes, names, lengths)
    found = replica_groups(attributes, math.prod(lengths))
    found = np.sort(found, axis=1)
    found = found[np.argsort(found[:, 0])]
    ids = np.arange(math.prod(lengths)).reshape(lengths)
    split = [i for i, length in enumerate(lengths) if length > 1]
    for count in range(1, len(split) + 1):
        for chosen in itertools.combinations(split, count):
            rest = [i for i in range(len(lengths)) if i not in chosen]
            size = math.prod(lengths[i] for i in chosen)
            groups = np.transpose(ids, (*rest, *chosen)).reshape(-1, size)
            if np.array_equal(groups[np.argsort(groups[:, 0])], found):
                return tuple(names[i] for i in chosen), size
    return (), found.shape[1]


def _permuted_axes(
    attributes: str, names: tuple[str, ...], lengths: tuple[int, ...]
) -> tuple[tuple, int]:
    """The axes along which a permutation's pairs differ."""
    text = re.search(r"source_target_pairs=\{([\d,{}]*)\}", attributes)
    pairs = re.findall(r"\{(\d+),(\d+)\}", text.group(1)) if text else []
    ends = np.array(pairs, int).reshape(-1, 2)
    if ends.size and ends.max() >= math.prod(lengths):
        return (), len(ends)
    coordinates = np.array(np.unravel_index(ends, lengths))  # [axis, pair, end]
    crossed = np.any(coordinates[..., 0] != coordinates[..., 1], axis=1)
    axes = [i for i in range(len(lengths)) if crossed[i]]
    return tuple(names[i] for i in axes), math.prod(lengths[i] for i in axes)


def _iota_groups(text: str) -> np.ndarray:
    """`[4,2]T(1,0)`: 0, 1, … in that shape, transposed."""
    dims, _, order = text.partition("T")
    ids = np.arange(math.prod(_integers(dims))).reshape(_integers(dims))
    return ids.transpose(_integers(order)) if order else ids


def _groups_by_axes(mesh: str, order: str | None, chosen: str) -> np.ndarray:
    """Groups along the named axes, or parts of axes, of a mesh that the program itself names."""
    sizes = {name: int(size) for name, size in re.findall(r"'?([\w.-]+)'?=(\d+)", mesh)}
    ids = np.arange(math.prod(sizes.values()))
    if order:
        ids = _iota_groups(order).reshape(-1) if "T" in order else np.array(_integers(order))
    spans: dict[str, list[tuple[int, int]]] = {}
    for name, before, count in re.findall(r"'?([\w.-]+)'?(?::\((\d+)\)(\d+))?", chosen):
        low = int(before or 1)
        spans.setdefault(name, []).append((low, low * int(count or sizes[name])))
    dims: list[int] = []
    grouped: list[int] = []
    for name, size in sizes.items():
        own = spans.get(name, [])
        for low, high in itertools.pairwise(sorted({1, size, *itertools.chain(*own)})):
            if any(start <= low and high <= end for start, end in own):
                grouped.append(len(dims))
            dims.append(high // low)
    rest = [i for i in range(len(dims)) if i not in grouped]
    size = math.prod(dims[i] for i in grouped)
    return ids.reshape(dims).transpose((*rest, *grouped)).reshape(-1, size)


def _integers(text: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", text)))
