"""Whether a run's state fits the devices, told from its shapes before anything is made."""

import jax
import numpy as np
import psutil

from melllm_jax.errors import Mistake
from melllm_jax.training.train_step import Update


def check_state_fits(update: Update, mesh: jax.sharding.Mesh) -> None:
    """Raises Mistake where what stands at once is more than the memory of a device.

    That is a lower bound, without activations: what it refuses cannot run.
    """
    check_bytes_fit(
        update.run.name, state_bytes(update, mesh), mesh, "weights, optimiser state and gradients"
    )


def check_bytes_fit(preset: str, bytes_needed: int, mesh: jax.sharding.Mesh, what: str) -> None:
    """Raises Mistake where so many bytes a device are more than it has."""
    there, shared = memory_limit(mesh)
    if there is not None and bytes_needed * shared > there:
        where = "on this machine" if _is_host(mesh) else "on each device"
        raise Mistake(
            f"preset={preset}: {what} need {bytes_needed * shared / 1e9:.1f} GB {where}, "
            f"which has {there / 1e9:.1f} GB"
        )


def state_bytes(update: Update, mesh: jax.sharding.Mesh) -> int:
    """Bytes on one device of the mesh in force: the run's state, and what stands beside it.

    That is the gradients in training and, at a random start, the frozen weights in float32
    before they are cast.
    """
    shapes = update.shapes(mesh)
    frozen = {name: _as_float32(x) for name, x in shapes.frozen.items()}
    beside = 0 if update.warm is not None else bytes_per_device(frozen)
    return bytes_per_device(shapes) + max(bytes_per_device(shapes.trained), beside)


def bytes_per_device(shapes: object) -> int:
    """Bytes of a tree of shapes with layouts on one device."""
    return sum(
        int(np.prod(x.sharding.shard_shape(x.shape))) * x.dtype.itemsize
        for x in jax.tree.leaves(shapes)
    )


def memory_limit(mesh: jax.sharding.Mesh) -> tuple[int | None, int]:
    """Bytes of memory, None where nothing tells, and how many of the mesh's devices share them."""
    local = mesh.local_devices
    if _is_host(mesh):
        return psutil.virtual_memory().total, len(local)
    stats = local[0].memory_stats()
    return (stats or {}).get("bytes_limit"), 1


def _is_host(mesh: jax.sharding.Mesh) -> bool:
    return mesh.devices.flat[0].platform == "cpu"


def _as_float32(x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, np.float32, sharding=x.sharding)
