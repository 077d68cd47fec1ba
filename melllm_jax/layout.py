"""Where every array lives: one alphabet of dimensions, one table for weights, one for activations.

b batch   t time   s time attended to   d model width   n query heads   k key/value heads
g query heads a KV head   h head width   f MLP width   v vocabulary   p one mel patch, flattened
l layers   r LoRA rank   c channels   j bands left after the conv stem   m mel bands
e model width, held whole   u width after the conv stem   w waveform samples

Mesh axes are named here alone: `replica` copies everything across slices, `fsdp` splits weights
and rows, `seq` splits time, `tp` splits heads, MLP width and vocabulary.
"""

from collections.abc import Mapping, Sequence

import jax
import numpy as np

from melllm_jax import config
from melllm_jax.batch import Batch
from melllm_jax.errors import Mistake

MeshAxis = str | tuple[str, ...] | None

AXES = ("replica", "fsdp", "seq", "tp")
WEIGHTS: Mapping[str, MeshAxis] = dict(d="fsdp", n="tp", k="tp", f="tp", v="tp")
ACTIVATIONS: Mapping[str, MeshAxis] = dict(
    b=("replica", "fsdp"), t="seq", n="tp", k="tp", f="tp", v="tp"
)
# A mesh of one device that does not exist: for shapes alone.
NOWHERE = jax.sharding.AbstractMesh((1,) * 4, AXES, (jax.sharding.AxisType.Explicit,) * 4)


def w(dims: str) -> jax.P:
    """The layout of a weight: `w("d n h")` is `P("fsdp", "tp", None)`."""
    return _spec(dims, WEIGHTS)


def a(dims: str) -> jax.P:
    """The layout of an activation: `a("b t d")` is `P(("replica", "fsdp"), "seq", None)`."""
    return _spec(dims, ACTIVATIONS)


def make_mesh(cfg: config.Mesh, devices: Sequence[jax.Device] | None = None) -> jax.sharding.Mesh:
    """The explicit mesh of all devices (or of those given), axes as in `AXES`.

    Raises Mistake where the axes' product is not the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    rest = cfg.replica * cfg.seq * cfg.tp
    fsdp = cfg.fsdp or max(len(devices) // rest, 1)
    if fsdp * rest != len(devices):
        raise Mistake(
            f"mesh replica={cfg.replica} fsdp={cfg.fsdp} seq={cfg.seq} tp={cfg.tp}: "
            f"the product must be the {len(devices)} devices here"
        )
    return jax.make_mesh((cfg.replica, fsdp, cfg.seq, cfg.tp), AXES, devices=devices)


def check(run: config.Run, mesh: jax.sharding.Mesh | jax.sharding.AbstractMesh) -> None:
    """Refuse a mesh that does not divide what it splits. Raises Mistake naming both."""
    model, data, size = run.model, run.data, dict(mesh.shape)
    rows = data.b // run.optim.micro
    splits = [
        ("fsdp", "model.d", model.d),
        ("tp", "model.n", model.n),
        ("tp", "model.k", model.k),
        ("tp", "model.f", model.f),
        ("tp", "model.v", model.v),
        ("seq", "data.t", data.t),
    ]
    for axis, name, value in splits:
        if value % size[axis]:
            raise Mistake(f"mesh.{axis}={size[axis]}: does not divide {name}={value}")
    if model.attention == "splash" and data.t // size["seq"] % 128:
        raise Mistake(
            f'model.attention="splash": works in tiles of 128 positions: '
            f"data.t={data.t} / mesh.seq={size['seq']} must be a multiple"
        )
    if run.keep.score and size["seq"] > 1:
        raise Mistake(f"keep.score={run.keep.score}: decoding needs mesh.seq=1, not {size['seq']}")
    if rows % (size["replica"] * size["fsdp"]):
        raise Mistake(
            f"mesh replica={size['replica']} × fsdp={size['fsdp']}: "
            f"does not divide the {rows} rows of data.b={data.b} / optim.micro={run.optim.micro}"
        )


def parts_of_time() -> int:
    """Parts into which the mesh in force splits time."""
    return int(jax.sharding.get_abstract_mesh().shape["seq"])


def place(batch: Batch) -> Batch:
    """This host's rows (NumPy) as a part of the global batch on the mesh in force."""
    mesh = jax.sharding.get_mesh()

    def one(x: np.ndarray) -> jax.Array:
        sharding = jax.NamedSharding(mesh, a("b t p" if x.ndim == 3 else "b t"))
        return jax.make_array_from_process_local_data(sharding, x)

    return Batch(*map(one, batch))


def _spec(dims: str, table: Mapping[str, MeshAxis]) -> jax.P:
    axes = [table.get(letter) for letter in dims.split()]
    used = jax.tree.leaves(axes)  # None is no leaf, and a pair of axes is two
    if len(used) != len(set(used)):
        raise ValueError(f"one mesh axis splits two dimensions of {dims!r}: {axes}")
    return jax.P(*axes)
