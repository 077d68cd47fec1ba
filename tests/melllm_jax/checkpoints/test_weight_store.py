from concurrent.futures import ThreadPoolExecutor
import itertools
import json
import os
import types

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from melllm_jax import sharding
from melllm_jax.checkpoints import integrity
from melllm_jax.checkpoints.checkpointer import Checkpoints
from melllm_jax.checkpoints.integrity import SEAL
from melllm_jax.checkpoints.weight_store import WeightReader, WeightWriter, weight_layout
from melllm_jax.config.run import CheckpointIntervals, Mesh
from melllm_jax.errors import Fault, Mistake

BF16 = np.dtype(ml_dtypes.bfloat16)
# Shape, dtype, block and letters. The first has layers, and blocks large enough to be parted.
WEIGHTS = {
    "stack.blocks.mlp.up": ((2, 1024, 512), np.dtype(np.float32), (1, 1024, 512), "d f"),
    "embed": ((96, 8), BF16, (32, 8), "v d"),
    "front.depth.0": ((3, 3, 8), np.dtype(np.float16), (3, 3, 8), "x y c"),
    "norm.scale": ((8,), np.dtype(np.float32), (8,), "d"),
}


def blanks():
    return {name: weight_layout(*row) for name, row in WEIGHTS.items()}


def values():
    rng = np.random.default_rng(0)
    return {
        name: rng.standard_normal(shape, dtype=np.float32).astype(dtype)
        for name, (shape, dtype, *_) in WEIGHTS.items()
    }


def blocks():
    """Every block of every weight, as (name, index), the last first."""
    for name, (shape, _, block, _) in reversed(WEIGHTS.items()):
        starts = [range(0, size, step) for size, step in zip(shape, block, strict=True)]
        for corner in reversed(list(itertools.product(*starts))):
            ends = zip(corner, block, strict=True)
            yield name, tuple(slice(start, start + step) for start, step in ends)


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    """A checkpoint written from four threads, the last blocks first, and what is in it."""
    folder = tmp_path_factory.mktemp("filled") / "0"
    filling, numbers = WeightWriter(folder, blanks()), values()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda b: filling.write(*b, numbers[b[0]][b[1]]), blocks()))
    filling.seal()
    return types.SimpleNamespace(folder=folder, values=numbers)


def wanted(mesh, shapes, dtype=None):
    return {
        name: jax.ShapeDtypeStruct(
            shape, dtype or kind, sharding=jax.NamedSharding(mesh, spec_of(name, len(shape)))
        )
        for name, (kind, shape) in shapes.items()
    }


def spec_of(name, rank):
    if name not in WEIGHTS:
        return jax.P()
    letters = sharding.w(WEIGHTS[name][3])
    return jax.P(*[None] * (rank - len(letters)), *letters)


def bits(x):
    return np.asarray(x).tobytes()


def test_filled_in_any_order_from_threads_is_read_back_to_the_bit(filled):
    stored = WeightReader(filled.folder)
    assert stored.shapes == {name: (row[1], row[0]) for name, row in WEIGHTS.items()}
    for name, x in filled.values.items():
        assert bits(stored.read(name)) == bits(x), name
    some = (1, slice(100, 300), slice(7, 9))
    found = stored.read("stack.blocks.mlp.up", some)
    np.testing.assert_array_equal(found, filled.values["stack.blocks.mlp.up"][some])


def test_filled_is_restored_onto_a_mesh_as_a_checkpoint_of_training_is(filled):
    mesh = sharding.make_mesh(Mesh(fsdp=4, tp=2))
    shapes = wanted(mesh, WeightReader(filled.folder).shapes)
    with Checkpoints(str(filled.folder.parent), CheckpointIntervals()) as checkpoints:
        step, found = checkpoints.restore_weights(shapes)
    assert step == 0
    for name, x in filled.values.items():
        assert found[name].dtype == x.dtype
        assert found[name].sharding.is_equivalent_to(shapes[name].sharding, x.ndim)
        assert bits(found[name]) == bits(x), name


def test_filled_is_restored_in_the_dtype_asked_for(filled):
    mesh = sharding.make_mesh(Mesh())
    shapes = wanted(mesh, {"embed": (BF16, (96, 8))}, jnp.float32)
    with Checkpoints(str(filled.folder.parent), CheckpointIntervals()) as checkpoints:
        found = checkpoints.restore_weights(shapes)[1]
    assert found["embed"].dtype == jnp.float32
    np.testing.assert_array_equal(found["embed"], filled.values["embed"].astype(np.float32))


def test_blocks_are_files_parted_along_the_axes_that_a_mesh_splits(filled):
    def described(name):
        return json.loads((filled.folder / "weights" / name / "zarr.json").read_text())

    large = described("stack.blocks.mlp.up")
    assert large["chunk_grid"]["configuration"]["chunk_shape"] == [1, 1024, 512]
    (codec,) = large["codecs"]
    assert codec["name"] == "sharding_indexed"
    assert codec["configuration"]["chunk_shape"] == [1, 64, 64]  # 16 parts of d, 8 of f
    files = (filled.folder / "weights/stack.blocks.mlp.up").rglob("*")
    assert sum(path.is_file() for path in files) == 1 + 2  # zarr.json, a block a layer
    small = described("embed")
    assert small["chunk_grid"]["configuration"]["chunk_shape"] == [32, 8]
    assert [codec["name"] for codec in small["codecs"]] == ["bytes"]


@pytest.mark.parametrize(
    ("shape", "block", "dims", "chunk"),
    [
        ((1024, 512), (1024, 512), "d f", (64, 64)),
        ((1024, 512), (512, 512), "d f", (512, 512)),  # 2¹⁸ numbers are not yet parted
        ((1000, 512), (1000, 512), "d f", (1000, 64)),  # 16 parts of 63 are 1008
        ((4, 1024, 16, 64), (1, 1024, 16, 64), "d n h", (1, 64, 2, 64)),
        ((4096, 512), (2048, 512), "v d", (512, 32)),  # parts of the whole, not of the block
        ((9, 9, 8192), (9, 9, 8192), "x y c", (9, 9, 8192)),
    ],
)
def test_blank_parts_what_is_large_and_comes_out_even(shape, block, dims, chunk):
    assert weight_layout(shape, BF16, block, dims).chunk == chunk


def test_stored_reads_what_training_wrote(tmp_path):
    class Nowhere:
        """An input pipeline without a place of its own."""

        async def save(self, directory):
            async def write():
                await directory.await_creation()

            return write()

        async def load(self, directory):
            raise AssertionError("nobody reads it")

    mesh = sharding.make_mesh(Mesh(fsdp=4, tp=2))
    numbers = {name: x for name, x in values().items() if name != "front.depth.0"}
    put = lambda name, x: jax.device_put(x, jax.NamedSharding(mesh, spec_of(name, x.ndim)))
    with Checkpoints(str(tmp_path), CheckpointIntervals()) as checkpoints:
        weights = {name: put(name, x) for name, x in numbers.items()}
        checkpoints.save(3, weights, {"step": jnp.int32(3)}, Nowhere())
    assert list(tmp_path.rglob("*ocdbt*"))
    stored = WeightReader(tmp_path / "3")
    assert stored.shapes == {name: (x.dtype, x.shape) for name, x in numbers.items()}
    for name, x in numbers.items():
        assert bits(stored.read(name)) == bits(x), name
    index = (1, slice(0, 3))
    found = stored.read("stack.blocks.mlp.up", index)
    np.testing.assert_array_equal(found, numbers["stack.blocks.mlp.up"][index])


def test_seal_finds_a_flipped_bit(tmp_path):
    filling = WeightWriter(tmp_path / "0", {"embed": blanks()["embed"]})
    filling.write("embed", (slice(None),), values()["embed"])
    filling.seal()
    assert integrity.newest_checkpoint(tmp_path) == tmp_path / "0"
    files = (path for path in (tmp_path / "0/weights/embed").rglob("*") if path.is_file())
    block = max(files, key=os.path.getsize)
    content = bytearray(block.read_bytes())
    content[len(content) // 2] ^= 1
    block.write_bytes(content)
    with pytest.raises(Mistake, match="holds no whole checkpoint"):
        integrity.newest_checkpoint(tmp_path)
    said = []
    with (
        Checkpoints(str(tmp_path), CheckpointIntervals(), said.append) as checkpoints,
        pytest.raises(Fault, match=r"none of the checkpoints \[0\] is whole"),
    ):
        checkpoints.restore_weights(wanted(sharding.make_mesh(Mesh()), {}))
    assert "has changed since it was written" in said[0]


def test_filling_is_no_checkpoint_until_it_is_ended(tmp_path):
    filling = WeightWriter(tmp_path / "0", {"embed": blanks()["embed"]})
    filling.write("embed", (slice(None),), values()["embed"])
    assert not (tmp_path / "0" / SEAL).exists()
    with pytest.raises(Mistake, match="holds no whole checkpoint"):
        integrity.newest_checkpoint(tmp_path)
    filling.seal()
    assert integrity.newest_checkpoint(tmp_path) == tmp_path / "0"
    sums = json.loads((tmp_path / "0" / SEAL).read_text())
    files = [path for path in (tmp_path / "0").rglob("*") if path.is_file() and path.name != SEAL]
    assert sorted(sums) == sorted(str(path.relative_to(tmp_path / "0")) for path in files)
