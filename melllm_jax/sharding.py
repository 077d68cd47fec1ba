"""Lays out every array: one alphabet of dimensions, a table for weights, one for activations.

b batch   t time   s time attended to   d model width   n query heads   k key/value heads
g query heads a KV head   h head width   f MLP width   v vocabulary   p one mel patch, flattened
l layers   r LoRA rank   c channels   j bands left after the conv stem   m mel bands
e model width, held whole   u width after the conv stem   w waveform samples
x taps of a convolution   z distances with a bias of their own

Mesh axes are named here alone: `replica` copies everything across slices, `fsdp` splits weights
and rows, `seq` splits time, `tp` splits heads, MLP width and vocabulary.
"""

from collections.abc import Mapping, Sequence
import dataclasses

import jax
from jax.experimental import mesh_utils
import numpy as np

from melllm_jax.batch import Batch
from melllm_jax.config.distillation import Distill
from melllm_jax.config.model import Model
from melllm_jax.config.run import BaseRun, Mesh, Run
from melllm_jax.errors import Mistake

MeshAxis = str | tuple[str, ...] | None

AXES = ("replica", "fsdp", "seq", "tp")
WEIGHTS: Mapping[str, MeshAxis] = dict(d="fsdp", n="tp", k="tp", f="tp", v="tp")
ACTIVATIONS: Mapping[str, MeshAxis] = dict(
    b=("replica", "fsdp"), t="seq", n="tp", k="tp", f="tp", v="tp"
)
# The axes by what they split, for code that runs device by device.
ROWS, TIME, WIDTH, TOKENS = ("replica", "fsdp"), "seq", "fsdp", "tp"
# A mesh of one device that does not exist: for shapes alone.
ABSTRACT_MESH = jax.sharding.AbstractMesh((1,) * 4, AXES, (jax.sharding.AxisType.Explicit,) * 4)


def w(dims: str) -> jax.P:
    """The layout of a weight: `w("d n h")` is `P("fsdp", "tp", None)`."""
    return _spec(dims, WEIGHTS)


def a(dims: str) -> jax.P:
    """The layout of an activation: `a("b t d")` is `P(("replica", "fsdp"), "seq", None)`."""
    return _spec(dims, ACTIVATIONS)


def make_mesh(cfg: Mesh, devices: Sequence[jax.Device] | None = None) -> jax.sharding.Mesh:
    """The explicit mesh of all devices (or of those given), axes as in `AXES`.

    Inner axes lie on near devices; `replica` alone crosses from one TPU slice to another. Raises
    Mistake where the axes' product is not the number of devices, or `replica` does not hold the
    slices.
    """
    devices = jax.devices() if devices is None else devices
    cfg = resolve_mesh(cfg, len(devices))
    tpu = devices[0].platform == "tpu"  # a GPU's slice is its NVLink domain, which fsdp may cross
    slices = len({getattr(device, "slice_index", 0) for device in devices}) if tpu else 1
    if cfg.replica % slices:
        raise Mistake(
            f"mesh.replica={cfg.replica}: must be a multiple of the {slices} slices: "
            "it alone crosses the slow network between them"
        )
    inner, outer = (cfg.replica // slices, cfg.fsdp, cfg.seq, cfg.tp), (slices, 1, 1, 1)
    # 32 × 2 on a torus of 4 × 4 × 4 splits one of its sides.
    split = {"allow_split_physical_axes": True}
    if slices == 1:
        grid = mesh_utils.create_device_mesh(inner, devices, **split)
    else:
        grid = mesh_utils.create_hybrid_device_mesh(inner, outer, devices, **split)
    return jax.sharding.Mesh(grid, AXES, (jax.sharding.AxisType.Explicit,) * len(AXES))


def resolve_mesh(cfg: Mesh, devices: int, where: str = "here") -> Mesh:
    """`cfg` with the fsdp that so many devices leave. Raises Mistake where none fits."""
    rest = cfg.replica * cfg.seq * cfg.tp
    fsdp = cfg.fsdp or max(devices // rest, 1)
    if fsdp * rest != devices:
        raise Mistake(
            f"mesh replica={cfg.replica} fsdp={cfg.fsdp} seq={cfg.seq} tp={cfg.tp}: "
            f"the product must be the {devices} devices {where}"
        )
    return dataclasses.replace(cfg, fsdp=fsdp)


def split_dimensions(run: BaseRun) -> list[tuple[str, str, int]]:
    """Mesh axis, field and size of every dimension of a run that an axis must divide."""
    if not isinstance(run, Run):
        return []
    model, cfg = run.model, run.distill
    splits = [
        ("fsdp", "model.d", model.d),
        ("tp", "model.n", model.n),
        ("tp", "model.k", model.k),
        ("tp", "model.f", model.f),
        ("tp", "model.v", model.v),
        ("seq", "data.t", run.data.t),
    ]
    splits += _encoder_splits(model.front, "model", model)
    splits += _encoder_splits(cfg.teacher, "distill", cfg)
    if cfg.teacher == "whisper" and cfg.frame == "whole":
        splits.append(("seq", "distill.whisper.positions", cfg.whisper.positions))
    return splits


def check_mesh(run: BaseRun, mesh: jax.sharding.Mesh | jax.sharding.AbstractMesh) -> None:
    """Refuse a mesh that does not divide what it splits. Raises Mistake naming both."""
    data, size = run.data, dict(mesh.shape)
    rows = data.b // run.optim.micro
    for axis, name, value in split_dimensions(run):
        if value % size[axis]:
            raise Mistake(f"mesh.{axis}={size[axis]}: does not divide {name}={value}")
    if not isinstance(run, Run) and size["seq"] > 1:
        raise Mistake(f"mesh.seq={size['seq']}: a vocoder's crops are not split: give 1")
    if isinstance(run, Run) and run.model.attention == "splash" and data.t // size["seq"] % 128:
        raise Mistake(
            f'model.attention="splash": works in tiles of 128 positions: '
            f"data.t={data.t} / mesh.seq={size['seq']} must be a multiple"
        )
    if run.scoring.every and size["seq"] > 1:
        raise Mistake(
            f"scoring.every={run.scoring.every}: decoding needs mesh.seq=1, not {size['seq']}"
        )
    if rows % (size["replica"] * size["fsdp"]):
        raise Mistake(
            f"mesh replica={size['replica']} × fsdp={size['fsdp']}: "
            f"does not divide the {rows} rows of data.b={data.b} / optim.micro={run.optim.micro}"
        )


def _encoder_splits(kind: str, group: str, cfg: Model | Distill) -> list[tuple[str, str, int]]:
    """(axis, field, size) of what a mesh splits of an encoder whose sizes `cfg` has."""
    if kind == "conformer":
        own = cfg.conformer
        return [
            ("fsdp", f"{group}.c", cfg.c),
            ("tp", f"{group}.c", cfg.c),
            ("tp", f"{group}.conformer.n", own.n),
            ("tp", f"{group}.conformer.f", own.f),
        ]
    all_axes = (("fsdp", "d"), ("tp", "n"), ("tp", "f"))
    axes = {"whisper": all_axes, "whisper_conv": all_axes[:1]}.get(kind, ())
    return [(axis, f"{group}.whisper.{x}", getattr(cfg.whisper, x)) for axis, x in axes]


def parts_of_time() -> int:
    """Parts into which the mesh in force splits time."""
    return int(jax.sharding.get_abstract_mesh().shape[TIME])


def device_owners(mesh: jax.sharding.Mesh) -> np.ndarray:
    """The index of the process that holds each device of the mesh."""
    return np.vectorize(lambda device: device.process_index)(mesh.devices)


def host_lanes(run: BaseRun, owners: np.ndarray, process: int) -> list[int]:
    """The lanes of data whose rows a process holds; several hold the same where b is not split.

    `owners` is what `device_owners` gives. Raises Mistake where its rows are no whole lanes.
    """
    b, count = run.data.b, run.data.lane_count
    own, blocks = _row_blocks(owners, process)
    rows = {block * b // blocks + i for block in own for i in range(b // blocks)}
    found = [j for j in range(count) if j * b // count in rows]
    if len(found) * (b // count) != len(rows):
        shares = blocks / len(own)
        raise Mistake(f"data.lanes={count}: {shares:g} hosts cannot share them evenly")
    return found


def shard_batch(batch: Batch) -> Batch:
    """This host's rows (NumPy), in their order, as a part of the global batch on the mesh in force.

    Rows are [t …] whole, also where the mesh splits time over hosts.
    """
    mesh = jax.sharding.get_mesh()
    own, blocks = _row_blocks(device_owners(mesh), jax.process_index())
    b = len(batch.tokens) * blocks // len(own)

    def one(x: np.ndarray) -> jax.Array:
        sharding = jax.NamedSharding(mesh, a("b t p" if x.ndim == 3 else "b t"))
        return jax.make_array_from_process_local_data(sharding, x, (b, *x.shape[1:]))

    # Asked for here, by name; of several processes JAX does not take it for explicit.
    with jax.transfer_guard_host_to_device("allow"):
        return Batch(*map(one, batch))


def _row_blocks(owners: np.ndarray, process: int) -> tuple[list[int], int]:
    """Which blocks of a batch's rows a process holds, and how many blocks there are."""
    rows = owners.reshape(owners.shape[0] * owners.shape[1], -1)
    return np.flatnonzero((rows == process).any(axis=1)).tolist(), len(rows)


def _spec(dims: str, table: Mapping[str, MeshAxis]) -> jax.P:
    axes = [table.get(letter) for letter in dims.split()]
    used = jax.tree.leaves(axes)  # None is no leaf, and a pair of axes is two
    if len(used) != len(set(used)):
        raise ValueError(f"one mesh axis splits two dimensions of {dims!r}: {axes}")
    return jax.P(*axes)
