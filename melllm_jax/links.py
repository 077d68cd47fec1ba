"""How fast a chip sends along the axes of a mesh: which links of the network lie along them."""

from collections.abc import Collection

import jax
import numpy as np

from melllm_jax.pods import Pod


def rate(mesh: jax.sharding.Mesh, axes: Collection[str], pod: Pod) -> tuple[float, bool]:
    """Bytes a second one device sends in a group along `axes`, and whether they leave the domain.

    On a torus both directions of every side that the group spans are used, a side that is not
    closed to a ring in one direction alone (a line's ends get everything from one neighbour).
    Where a group spans slices or servers, every device of it there sends through its own adapter.
    """
    group, chip = _group(mesh, axes), pod.chip
    if chip.torus:
        parts = len({getattr(device, "slice_index", 0) for device in group})
        if parts > 1:
            return chip.network / chip.devices * (len(group) // parts), True
        return chip.link / chip.devices * _directions(group, pod), False
    servers = {device.process_index for device in group}
    if len(servers) > 1:
        return min(chip.link, chip.network * (len(group) // len(servers))), True
    return chip.link, False


def _group(mesh: jax.sharding.Mesh, axes: Collection[str]) -> list[jax.Device]:
    """The devices that differ in `axes` alone, or all where none is named."""
    index = tuple(slice(None) if name in axes or not axes else 0 for name in mesh.axis_names)
    return list(mesh.devices[index].flat)


def _directions(group: list[jax.Device], pod: Pod) -> int:
    """Links over which each device of the group can send to others of it."""
    coords = np.array([device.coords for device in group])
    spanned = [len(set(side.tolist())) for side in coords.T[: len(pod.shape)]]
    sides = zip(spanned, pod.shape, pod.rings, strict=True)
    total = sum(2 if ring and n == length else 1 for n, length, ring in sides if n > 1)
    return max(total, 1)  # two devices of one chip
