"""Reads and writes a checkpoint's weights block by block, never all of them in memory.

Orbax makes the checkpoint and says in its metadata what is there; the numbers go through
TensorStore into the arrays that Orbax would have made (zarr 3, uncompressed, one file a block).
`melllm_jax.checkpoints.checkpointer` restores such a checkpoint like any other.
"""

from collections.abc import Mapping
import dataclasses
import json
import math
import pathlib
from typing import Any

import numpy as np
import tensorstore

from melllm_jax import sharding
from melllm_jax.checkpoints import checkpointer

CACHE = 4 << 30  # bytes: a stacked weight that one device saved is one chunk, read by layers
PARTS = {"fsdp": 16, "tp": 8}  # of a weight along the mesh's axes that split it
SMALL = 1 << 18  # elements: a smaller block is not parted

Shape = tuple[int, ...]
Index = tuple[int | slice, ...]


@dataclasses.dataclass(frozen=True)
class WeightLayout:
    """How a weight is written."""

    shape: Shape
    dtype: np.dtype
    block: Shape  # written at once: a file
    chunk: Shape  # read at once


def weight_layout(shape: Shape, dtype: np.dtype, block: Shape, dims: str) -> WeightLayout:
    """A weight of letters `dims` (the last axes of `shape`), written in blocks of shape `block`.

    Inside a block it is parted along the axes that a mesh splits, so that every device of many
    reads little more than its own part.
    """
    chunk = list(block)
    if math.prod(block) > SMALL:
        first = len(shape) - len(dims.split())
        for axis, name in enumerate(sharding.w(dims), start=first):
            part = -(-shape[axis] // PARTS.get(name, 1))
            if block[axis] % part == 0:
                chunk[axis] = part
    return WeightLayout(shape, dtype, block, tuple(chunk))


class WeightWriter:
    """Writes a new checkpoint of weights alone, in any order; `seal` completes it.

    Writes are safe from several threads. Raises OSError where the disk is full.
    """

    def __init__(self, folder: pathlib.Path, layouts: Mapping[str, WeightLayout]):
        self._folder = folder
        checkpointer.write_placeholder(folder, {name: x.dtype for name, x in layouts.items()})
        context = tensorstore.Context(
            {"file_io_sync": False, "cache_pool": {"total_bytes_limit": 0}}  # as cp does
        )
        opening = {
            name: tensorstore.open(
                {
                    "driver": "zarr3",
                    "kvstore": {"driver": "file", "path": f"{folder}/weights/{name}/"},
                    "metadata": _metadata(x),
                    "store_data_equal_to_fill_value": True,
                },
                create=True,
                delete_existing=True,
                context=context,
            )
            for name, x in layouts.items()
        }
        self._arrays = {name: _await_result(name, array) for name, array in opening.items()}

    def write(self, name: str, index: Index, values: np.ndarray) -> None:
        """Write a block of a weight; returns once it is in the file."""
        target = self._arrays[name][index]
        _await_result(name, target.write(values, can_reference_source_data_indefinitely=True))

    def seal(self) -> None:
        """Complete the checkpoint: write its checksums, and let it count."""
        checkpointer.complete_placeholder(self._folder)


class WeightReader:
    """Reads the weights of a checkpoint block by block, of one that training wrote, too.

    Of several networks in it those alone whose names begin with `part`, which is then left out.
    """

    def __init__(self, folder: pathlib.Path, part: str = ""):
        weights = folder / "weights"
        tree: dict[str, Any] = json.loads((weights / "_METADATA").read_text())
        keys = (x["key_metadata"][0]["key"] for x in tree["tree_metadata"].values())
        names = [key for key in keys if key.startswith(part)]
        driver = "zarr3" if tree["use_zarr3"] else "zarr"
        files = {"driver": "file", "path": f"{weights}/"}
        uncached, cached = (
            tensorstore.Context({"cache_pool": {"total_bytes_limit": limit}})
            for limit in (0, CACHE)
        )
        self._arrays = {}
        for name in names:
            if tree["use_ocdbt"]:
                store = {"driver": "ocdbt", "base": files, "path": f"{name}/"}
            else:
                store = {"driver": "file", "path": f"{weights}/{name}/"}
            spec = {"driver": driver, "kvstore": store}
            array = tensorstore.open(spec, context=uncached, read=True).result()
            layers = (array.chunk_layout.read_chunk.shape or (1,))[0] or 1
            if name.startswith("stack.") and layers > 1:
                array = tensorstore.open(spec, context=cached, read=True).result()
            self._arrays[name.removeprefix(part)] = array

    @property
    def shapes(self) -> dict[str, tuple[np.dtype, Shape]]:
        """Dtype and shape of every weight by name."""
        return {
            name: (array.dtype.numpy_dtype, tuple(array.shape))
            for name, array in self._arrays.items()
        }

    def read(self, name: str, index: Index = ()) -> np.ndarray:
        """A block of a weight."""
        return np.asarray(self._arrays[name][index].read().result())


def _await_result(name: str, future: Any) -> Any:
    """Waits for an action on a weight and returns its result. Raises OSError."""
    try:
        return future.result()
    except ValueError as error:  # TensorStore's word for any trouble with a file
        raise OSError(f"{name}: {error}") from error


def _metadata(x: WeightLayout) -> dict[str, Any]:
    """zarr 3's metadata of a weight."""
    plain = [{"name": "bytes", "configuration": {"endian": "little"}}]
    chunked = {
        "name": "sharding_indexed",
        "configuration": {
            "chunk_shape": x.chunk,
            "codecs": plain,
            "index_codecs": [*plain, {"name": "crc32c"}],
        },
    }
    return {
        "shape": x.shape,
        "data_type": x.dtype.name,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": x.block}},
        "codecs": plain if x.chunk == x.block else [chunked],
    }
