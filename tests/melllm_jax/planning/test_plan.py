"""Plans as a library: what is compiled, what is reckoned, and what is refused."""

import dataclasses
import math

import jax
import numpy as np
import pytest

from melllm_jax import flops, sharding
from melllm_jax.config.run import Mesh
from melllm_jax.errors import Mistake
from melllm_jax.nn import attention_kernels
from melllm_jax.planning import plan
from melllm_jax.planning.topology import parse_pod
from melllm_jax.presets import catalog
from tests.support import plans

POD = parse_pod("v5e:2x2")

pytestmark = pytest.mark.libtpu


def test_a_compiled_plan_tells_memory_time_and_what_is_sent():
    found, run = plans.compiled(), plans.run()
    assert (found.source, found.fits, found.unknown) == ("compiled", True, ())
    assert found.mesh == {"replica": 1, "fsdp": 4, "seq": 1, "tp": 1}
    assert found.total == found.trained == flops.count_parameters(run).total
    assert found.positions == 8 * 128
    memory = found.memory
    assert memory.capacity == flops.CHIPS["TPU v5 lite"].hbm
    parts = memory.arguments, memory.activations, memory.code
    assert min(parts) > 0
    assert memory.needed == sum(parts) < memory.capacity
    assert found.limits["dcn"] == 0.0
    assert min(found.limits[name] for name in ("matmul", "hbm", "ici")) > 0
    assert found.limits["matmul"] == found.executed_flops / (4 * 197e12)
    assert found.xla_seconds > 0
    # Weights of the layers are gathered twice at least and their gradients scattered or summed.
    layers = (
        2 * flops.count_parameters(run).layers * 3 / 4
    )  # bfloat16; a chip sends what it has not
    gathered = [one for one in found.collectives if one.kind == "all-gather"]
    assert {one.axes for one in gathered} == {("fsdp",)}
    assert sum(one.bytes for one in gathered) > 1.9 * layers
    assert sum(one.bytes for one in found.collectives) < 10 * layers


def test_what_is_executed_is_what_is_useful_and_what_is_done_twice():
    """Remat of everything adds up to a third, a row of one tile twice what its attention asks."""
    found = plans.compiled()
    assert found.useful_flops == flops.update_flops(plans.run())
    assert found.useful_flops < found.executed_flops < 1.5 * found.useful_flops
    assert found.mfu == found.useful_flops / (4 * 197e12) / found.step_seconds
    assert found.mfu < found.useful_flops / found.executed_flops < 1


def test_the_longest_part_limits_and_the_parts_add_up_where_nothing_is_hidden():
    found = plans.rough()
    found = dataclasses.replace(found, limits={"matmul": 0.2, "hbm": 0.1, "ici": 0.5, "dcn": 0.0})
    assert (found.limit, found.step_seconds, found.serial_seconds) == (
        "ici",
        0.5,
        pytest.approx(0.8),
    )


def test_a_run_that_does_not_fit_is_an_answer_with_the_bytes_it_needs():
    found = plans.compiled(model_v=2**24)
    assert (found.source, found.fits) == ("compiled", False)
    # Masters and two moments in float32, and the gradients, of a chip's quarter of the table.
    assert found.memory.needed > 2**24 * 256 * 12 / 4 + 2**24 * 256 * 2 / 4
    assert math.isfinite(found.memory.needed)
    assert (found.memory.activations, found.memory.code) == (None, None)
    assert found.collectives == ()
    assert found.limits["matmul"] == found.executed_flops / (4 * 197e12)


def test_two_slices_send_gradients_over_the_slow_network():
    mesh = Mesh(replica=2, fsdp=4)
    found = plans.compiled(slices=2, mesh=mesh)
    assert (found.pod, found.chips, found.fits) == ("2 × v5e:2x2", 8, True)
    across = [one for one in found.collectives if "replica" in one.axes]
    assert {one.kind for one in across} == {"all-reduce"}
    sent = sum(one.bytes for one in across)
    assert found.limits["dcn"] == pytest.approx(sent / flops.CHIPS["TPU v5 lite"].network)
    # Each chip has a quarter of the gradients, of four bytes or two a number.
    assert 1.9 < sent / (flops.count_parameters(plans.run()).total / 4) < 4.1
    rough = plan.estimate_plan(plans.run(mesh), parse_pod("v5e:2x2", 2), found.mesh)
    assert rough.limits["dcn"] == pytest.approx(found.limits["dcn"], rel=0.1)


@pytest.mark.parametrize(
    ("mesh", "slices", "rule"),
    [
        (
            Mesh(fsdp=8),
            1,
            "mesh replica=1 fsdp=8 seq=1 tp=1: the product must be the 4 devices of v5e:2x2",
        ),
        (
            Mesh(tp=3),
            1,
            "mesh replica=1 fsdp=0 seq=1 tp=3: the product must be the 4 devices of v5e:2x2",
        ),
        (Mesh(fsdp=8), 2, "mesh.replica=1: must be a multiple of the 2 slices"),
        (Mesh(fsdp=1, tp=4), 1, "mesh.tp=4: does not divide model.k=2"),
    ],
)
def test_a_mesh_that_is_not_the_pods_size_or_does_not_divide_is_refused(mesh, slices, rule):
    pytest.importorskip("libtpu", reason="needs the extra `plan`")
    with pytest.raises(Mistake) as refusal:
        plan.compile_plan(plans.run(mesh), parse_pod("v5e:2x2", slices))
    assert str(refusal.value) == rule


def test_sizes_fill_fsdp_with_the_devices_that_the_other_axes_leave():
    run = plans.run(Mesh(tp=2, replica=2), data_b=32)
    assert plan.mesh_sizes(run, parse_pod("v5p:4x4x4")) == {
        "replica": 2,
        "fsdp": 16,
        "seq": 1,
        "tp": 2,
    }
    # Of tpu7x JAX shows two devices a chip.
    assert plan.mesh_sizes(run, parse_pod("tpu7x:2x2x1"))["fsdp"] == 2


@pytest.mark.parametrize("topology", ["v5e:2x2", "v4:2x2x1", "tpu7x:2x2x1", "h100:1x8"])
def test_arithmetic_shares_a_chips_memory_among_its_devices(topology):
    pod = parse_pod(topology)
    run = plans.run(Mesh())
    found = plan.estimate_plan(run, pod, plan.mesh_sizes(run, pod))
    assert (found.source, found.fits, found.collectives, found.xla_seconds) == (
        "arithmetic",
        True,
        (),
        None,
    )
    assert found.memory.capacity * pod.chip.devices == pod.chip.hbm
    assert found.peak == pod.chip.flops * pod.chips
    assert found.limits["matmul"] == found.executed_flops / found.peak


def test_what_servers_send_each_other_is_dcn_and_what_one_sends_inside_is_ici():
    """As compiled plans have it: `links.rate`."""
    inside, across = (
        plans.rough(f"h100:{servers}x8", mesh=Mesh(), data_b=16) for servers in (1, 2)
    )
    chip = flops.CHIPS["H100"]
    assert inside.limits["dcn"] == across.limits["ici"] == 0.0
    slower = chip.link / min(chip.link, 8 * chip.network)
    grown = (15 / 16) / (7 / 8)  # a ring of 16 in place of 8
    more = across.limits["dcn"] / inside.limits["ici"]
    assert more == pytest.approx(slower * grown, rel=0.05)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"model_remat": "full"}, "full"),
        ({"model_remat": "named", "model_kept": ("qkv", "out")}, "named(qkv,out)"),
        ({"model_remat": "offload", "model_kept": ("qkv",)}, "offload(qkv)"),
    ],
)
def test_a_plan_says_what_remat_keeps(changes, told):
    assert plans.rough(**changes).remat == told


@pytest.mark.parametrize("t", [128, 512, 768, 1024, 2048])
@pytest.mark.parametrize("window", [0, 1, 2, 256, 257, 512, 513, 514, 1024, 4096])
def test_tiles_computed_are_those_with_a_visible_pair(t, window):
    tile = math.gcd(t, attention_kernels.TILE)
    query, key = np.arange(t)[:, None], np.arange(t)[None]
    visible = (key <= query) & (query - key < (window or t))
    tiles = visible.reshape(t // tile, tile, t // tile, tile).any(axis=(1, 3))
    assert attention_kernels.splash_tile_share(t, window) == tiles.mean()


PRODUCTION = [name for name, make in catalog.PRESETS.items() if make().mesh.topology]
# Shares of the peak that others reach: what a production preset's arithmetic must leave room for.
ROOM = {"v5p": 0.715, "v5e": 0.669, "v6e": 0.503, "h100": 0.0}


@pytest.mark.parametrize("name", PRODUCTION)
def test_production_presets_fit_their_pods_and_leave_room_for_a_good_rate(name):
    run = catalog.preset(name)
    pod = parse_pod(run.mesh.topology, run.mesh.slices)
    sizes = plan.mesh_sizes(run, pod)
    assert run.name == name
    assert run.data.t == 4096
    assert math.prod(sizes.values()) == pod.chips * pod.chip.devices
    explicit = (jax.sharding.AxisType.Explicit,) * len(sharding.AXES)
    grid = jax.sharding.AbstractMesh(tuple(sizes.values()), tuple(sizes), explicit)
    sharding.check_mesh(run, grid)
    found = plan.estimate_plan(run, pod, sizes)
    assert found.fits
    assert found.mfu > ROOM[pod.name]
