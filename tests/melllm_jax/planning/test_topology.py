import importlib.util

import jax
import jax.numpy as jnp
import pytest

from melllm_jax import chips, sharding, xla_options
from melllm_jax.config.run import Mesh
from melllm_jax.errors import Fault, Mistake
from melllm_jax.planning import compiled_cost
from melllm_jax.planning.topology import KINDS, Pod, has_compiler, parse_pod, pod_devices

pytestmark = pytest.mark.libtpu


def has_libtpu():
    pytest.importorskip("libtpu", reason="needs the extra `plan`")


@pytest.mark.parametrize(
    ("topology", "slices", "shape", "chips"),
    [
        ("v5e:16x16", 1, (16, 16), 256),
        ("v5p:4x4x8", 2, (4, 4, 8), 256),
        ("tpu7x:2x2x1", 1, (2, 2, 1), 4),
        ("h100:8x8", 1, (8, 8), 64),
        ("a100:2x4", 1, (2, 4), 8),
    ],
)
def test_a_topology_is_a_kind_and_its_chips(topology, slices, shape, chips):
    pod = parse_pod(topology, slices)
    assert (pod.shape, pod.slices, pod.chips) == (shape, slices, chips)
    assert pod.gpu == (pod.name in ("a100", "h100"))
    assert str(pod) == (f"2 × {topology}" if slices == 2 else topology)


def test_every_kind_is_a_chip_of_which_the_figures_are_known():
    assert {name: Pod(name, (1,), 1).chip for name in KINDS} == {
        "v4": chips.CHIPS["TPU v4"],
        "v5e": chips.CHIPS["TPU v5 lite"],
        "v5p": chips.CHIPS["TPU v5p"],
        "v6e": chips.CHIPS["TPU v6 lite"],
        "tpu7x": chips.CHIPS["TPU7x"],
        "a100": chips.CHIPS["A100"],
        "h100": chips.CHIPS["H100"],
        "h200": chips.CHIPS["H200"],
    }


@pytest.mark.parametrize(
    "topology",
    [
        "v9:2x2",  # no such chip
        "v5e",
        "v5e:4",
        "v5e:2x2x1",  # sides: one too many
        "v5p:4x4",  # and one too few
        "v5e:32x16",  # chips: more than there are
        "v5e:0x4",
        "v5e:-2x2",
        "v5e:2x2 ",
        "h100:4x16",  # sixteen GPUs in one host
        "",
    ],
)
def test_a_topology_that_does_not_exist_is_refused_with_those_that_do(topology):
    with pytest.raises(Mistake) as refusal:
        parse_pod(topology)
    said = str(refusal.value)
    assert said.startswith(f"topology={topology}: is none of v4:(2x2x1 to 12x16x16), v5e:(2x2 2x4 ")
    assert all(f"{name}:(" in said for name in KINDS)
    assert "\n" not in said


@pytest.mark.parametrize(
    ("topology", "slices", "rule"),
    [
        ("v5e:4x4", 0, "slices=0: must be positive"),
        ("h100:8x8", 2, "slices=2: GPUs have none; say more hosts: h100:8x8"),
    ],
)
def test_slices_that_cannot_be_are_refused(topology, slices, rule):
    with pytest.raises(Mistake) as refusal:
        parse_pod(topology, slices)
    assert str(refusal.value) == rule


@pytest.mark.parametrize(
    ("topology", "rings"),
    [
        ("v5e:16x16", (True, True)),
        ("v5e:8x16", (False, True)),  # in two dimensions only 16 closes
        ("v6e:4x4", (False, False)),
        ("v5p:4x4x8", (True, True, True)),
        ("v5p:2x2x4", (False, False, True)),
        ("v4:2x2x1", (False, False, False)),
    ],
)
def test_sides_of_whole_cubes_and_of_sixteen_flat_chips_close_to_rings(topology, rings):
    assert parse_pod(topology).rings == rings


def test_a_pod_compiles_where_the_compiler_of_its_chips_is_installed(monkeypatch):
    tpu, gpu = parse_pod("v5e:2x2"), parse_pod("h100:1x8")
    for module, expected in [
        ("libtpu", (True, False)),
        ("jax_cuda12_plugin", (False, True)),
        ("jax_cuda13_plugin", (False, True)),
        ("another", (False, False)),
    ]:
        spec = lambda name, there=module: name if name == there else None
        monkeypatch.setattr(importlib.util, "find_spec", spec)
        assert (has_compiler(tpu), has_compiler(gpu)) == expected


@pytest.mark.parametrize(
    ("topology", "slices", "kind", "count"),
    [
        ("v5e:4x4", 1, "TPU v5 lite", 16),
        ("v5e:2x2", 2, "TPU v5 lite", 8),
        ("v5p:2x2x4", 1, "TPU v5", 16),
        ("v6e:2x4", 1, "TPU v6 lite", 8),
        ("v4:2x2x1", 1, "TPU v4", 4),  # two cores a chip work as one device
        ("tpu7x:2x2x1", 1, "TPU7x", 8),  # two devices a chip
    ],
)
def test_devices_are_all_of_the_pod_slice_by_slice(topology, slices, kind, count):
    has_libtpu()
    pod = parse_pod(topology, slices)
    devices = pod_devices(pod)
    assert len(devices) == count == pod.chips * pod.chip.devices
    assert {device.device_kind for device in devices} == {kind}
    assert chips.find_chip(kind) == pod.chip
    each = count // slices
    assert [getattr(device, "slice_index", 0) for device in devices] == [
        i // each for i in range(count)
    ]


def test_devices_of_a_shape_that_no_host_has_are_refused_in_one_line():
    has_libtpu()
    with pytest.raises(Mistake, match=r"^topology=v5e:3x7: .*; known: 2x2 2x4 .* 16x16$") as said:
        pod_devices(parse_pod("v5e:3x7"))
    assert "INVALID_ARGUMENT" not in str(said.value)


@pytest.mark.parametrize("topology", ["v5e:2x2", "h100:1x8"])
def test_devices_without_a_compiler_for_them_are_a_fault_in_one_line(topology):
    pod = parse_pod(topology)
    if has_compiler(pod):
        pytest.skip(f"a compiler for {pod} is installed")
    with pytest.raises(Fault, match=r"^(libtpu|CUDA's plugin) cannot be used: [^\n]+$"):
        pod_devices(pod)


def test_on_a_cube_of_rings_a_weight_is_gathered_and_not_summed():
    """Of a cube whose sides were lines, libtpu would sum whole arrays: twice the bytes."""
    has_libtpu()
    mesh = sharding.make_mesh(Mesh(), pod_devices(parse_pod("v5p:4x4x4")))
    split = jax.NamedSharding(mesh, jax.P("fsdp", None))
    x = jax.ShapeDtypeStruct((4096, 4096), jnp.bfloat16, sharding=split)

    def product(x, w):
        return jnp.dot(x, jax.reshard(w, jax.P()), out_sharding=jax.P("fsdp", None))

    with jax.set_mesh(mesh):
        lowered = jax.jit(product).lower(x, x)
    _, text = compiled_cost.compile_with_hlo(lowered, xla_options.compiler_options(mesh))
    (sent,) = compiled_cost.program_cost(text, dict(mesh.shape)).collectives
    assert (sent.kind, sent.devices, sent.bytes) == ("all-gather", 64, 2 * 4096**2 * 63 / 64)
