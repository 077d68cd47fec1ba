"""Plans as a library: what is compiled, what is reckoned, and what is refused."""

import math
from unittest.mock import Mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from melllm_jax import chips, flops, sharding
from melllm_jax.config.run import Mesh
from melllm_jax.errors import Mistake
from melllm_jax.nn import attention_kernels
from melllm_jax.planning import plan, topology
from melllm_jax.planning.analytic_cost import AnalyticCost
from melllm_jax.planning.topology import parse_pod
from melllm_jax.planning.traced_flops import TracedFlops
from melllm_jax.presets import catalog
from tests.support import plans

POD = parse_pod("v5e:2x2")

pytestmark = pytest.mark.libtpu


# The program of a step on eight devices, fsdp 4 × tp 2. Of main memory, the sum over tp reads and
# writes 4,000 bytes, the gathering over fsdp reads 1,200 and writes 4,800, the addition reads 4,000
# once and writes as many: 22,000. The sum sends 2 · 1/2 · 4,000 bytes, the gathering 3/4 · 4,800.
STEP = """HloModule jit_step, num_partitions=8

ENTRY %main (x: f32[1000], w: f32[300]) -> f32[1000] {
  %x = f32[1000]{0} parameter(0)
  %w = f32[300]{0} parameter(1)
  %whole = f32[1200]{0} all-gather(%w), replica_groups=[2,4]<=[4,2]T(1,0), dimensions={0}
  %sum = f32[1000]{0} all-reduce(%x), replica_groups=[4,2]<=[8], to_apply=%add
  ROOT %y = f32[1000]{0} add(%sum, %sum), backend_config={"window_config":{\
"cost_model_type":"COST_MODEL_TYPE_INVALID","estimated_cycles":"4400"}}
}
"""


def by_hand(monkeypatch, compiled, text):
    """The plan of a step for four chips of two devices each, of which all is made up."""
    flop = TracedFlops(dot=3e6, conv=2e5, kernel=4e5, unknown=("ffi_call",))
    step = plan._CompiledStep(flop, compiled, text, 1.5)
    monkeypatch.setattr(plan, "_compile_step", lambda run, mesh, pod: step)
    monkeypatch.setattr(topology, "pod_devices", lambda pod: jax.devices()[:8])
    rates = {("fsdp",): (2e9, False), ("tp",): (5e8, True)}
    monkeypatch.setattr(topology, "link_rate", lambda mesh, axes, pod: rates[axes])
    run = plans.run(Mesh(fsdp=4, tp=2), data_t=1024, model_attention="splash")
    return plan.compile_plan(run, parse_pod("tpu7x:2x2x1"))


def test_each_term_of_a_compiled_plan_is_what_it_is_by_hand(monkeypatch):
    told = Mock(
        argument_size_in_bytes=1000,
        output_size_in_bytes=700,
        alias_size_in_bytes=600,  # of the output: it lies where arguments were
        temp_size_in_bytes=50,
        generated_code_size_in_bytes=7,
    )
    compiled = Mock(spec=jax.stages.Compiled)
    compiled.memory_analysis.return_value = told
    found = by_hand(monkeypatch, compiled, STEP)
    assert found.memory == plan.Memory(96 * 2**30, 1157.0, 1000.0, 150.0, 7.0)
    # Rows of 1,024 are two tiles long: splash computes three of four.
    assert found.executed_flops == 3e6 + 2e5 + 3 / 4 * 4e5
    sent = {(one.kind, one.axes): (one.times, one.bytes) for one in found.collectives}
    assert sent == {("all-reduce", ("tp",)): (1, 4000.0), ("all-gather", ("fsdp",)): (1, 3600.0)}
    # 2,307 TFLOP/s a chip; a device has half of its 7.37 TB/s; 2.2 GHz.
    assert found.limits == {
        "matmul": pytest.approx(3.5e6 / (4 * 2307e12)),
        "hbm": pytest.approx(22_000 / 3.685e12),
        "ici": pytest.approx(1.8e-6),
        "dcn": pytest.approx(8e-6),
    }
    assert (found.limit, found.step_seconds) == ("dcn", pytest.approx(8e-6))
    assert found.serial_seconds == pytest.approx(9.8063496e-6)
    assert found.mfu == pytest.approx(found.useful_flops / 9.228e15 / 8e-6)
    assert found.xla_seconds == pytest.approx(2e-6)
    assert (found.source, found.fits, found.compile_seconds) == ("compiled", True, 1.5)
    assert found.unknown == ("ffi_call",)


def test_a_step_that_the_compiler_gave_up_on_needs_what_its_complaint_says(monkeypatch):
    said = "RESOURCE_EXHAUSTED: Ran out of memory: Used 1.50T of (98.5G) hbm. Exceeded by 1.4T."
    found = by_hand(monkeypatch, None, said)
    assert (found.fits, found.memory.needed) == (False, 98.5 * 2**30)
    assert (found.memory.activations, found.memory.code, found.collectives) == (None, None, ())
    assert found.limits["matmul"] == pytest.approx(3.5e6 / (4 * 2307e12))


@pytest.mark.usefixtures("mesh")
def test_what_a_donated_argument_gives_back_takes_no_memory_of_its_own():
    """A device has 1/4 of 4,000 bytes of state and all of 400; it returns both, one in place."""
    placed = lambda spec: jax.NamedSharding(jax.sharding.get_mesh(), spec)
    state = jax.ShapeDtypeStruct((1000,), jnp.float32, sharding=placed(jax.P("fsdp")))
    more = jax.ShapeDtypeStruct((100,), jnp.float32, sharding=placed(jax.P()))
    step = lambda state, more: (state + 1, more * 2)
    for donated, results in (((0,), 400), ((), 1400)):
        program = jax.jit(step, donate_argnums=donated).lower(state, more).compile()
        memory = plan._compiled_memory(program, 10**6)
        temporary = program.memory_analysis().temp_size_in_bytes
        # What is returned also counts the two pointers of the pair that is.
        assert memory.arguments == 1400
        assert memory.activations - temporary == pytest.approx(results, abs=16)
        assert memory.needed == memory.arguments + memory.activations + memory.code


# One compilation for all that is told of a run that fits: 8 s.
ACROSS = Mesh(replica=2, fsdp=4)


def across():
    return plans.compiled(slices=2, mesh=ACROSS)


def test_a_compiled_plan_tells_memory_time_and_what_is_sent():
    found, run = across(), plans.run(ACROSS)
    assert (found.source, found.fits, found.unknown) == ("compiled", True, ())
    assert found.mesh == {"replica": 2, "fsdp": 4, "seq": 1, "tp": 1}
    assert found.total == found.trained == flops.count_parameters(run).total
    assert found.positions == 8 * 128
    memory = found.memory
    assert memory.capacity == chips.CHIPS["TPU v5 lite"].hbm
    parts = memory.arguments, memory.activations, memory.code
    assert min(parts) > 0
    assert memory.needed == sum(parts) < memory.capacity
    assert min(found.limits.values()) > 0
    assert found.limits["matmul"] == found.executed_flops / (8 * 197e12)
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
    found = across()
    assert found.useful_flops == flops.update_flops(plans.run())
    assert found.useful_flops < found.executed_flops < 1.5 * found.useful_flops
    assert found.mfu == found.useful_flops / (8 * 197e12) / found.step_seconds
    assert found.mfu < found.useful_flops / found.executed_flops < 1


def test_memory_and_products_lie_near_what_libtpu_allots_and_traces():
    """Products within 15 %: the estimate leaves out that splash computes whole tiles.

    Activations no more than reckoned, and a sixth at least: of a run so small, gradients and
    gathered weights are most of them, and the compiler has them in turn.
    """
    true = across()
    rough = plan.estimate_plan(plans.run(ACROSS), parse_pod("v5e:2x2", 2), true.mesh)
    batch = 8 * 128 / 8 * (7 * 4 + 2 * plans.run().mel.p)
    assert true.memory.arguments == pytest.approx(rough.memory.arguments + batch, rel=0.05)
    assert 1 / 6 < true.memory.activations / rough.memory.activations < 1
    assert true.executed_flops == pytest.approx(rough.executed_flops, rel=0.15)
    assert true.executed_flops > rough.executed_flops


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
    found = across()
    assert (found.pod, found.chips, found.fits) == ("2 × v5e:2x2", 8, True)
    summed = [one for one in found.collectives if "replica" in one.axes]
    assert {one.kind for one in summed} == {"all-reduce"}
    sent = sum(one.bytes for one in summed)
    assert found.limits["dcn"] == pytest.approx(sent / chips.CHIPS["TPU v5 lite"].network)
    # Each chip has a quarter of the gradients, of four bytes or two a number.
    assert 1.9 < sent / (flops.count_parameters(plans.run()).total / 4) < 4.1
    rough = plan.estimate_plan(plans.run(ACROSS), parse_pod("v5e:2x2", 2), found.mesh)
    assert rough.limits["dcn"] == pytest.approx(found.limits["dcn"], rel=0.1)


@pytest.mark.slow  # by default test_traced_flops and test_flops have what a teacher adds
def test_a_compiled_plan_has_the_teacher_that_the_arithmetic_says():
    """Its weights among the arguments, its products among those executed, what it hears among the
    activations: of the estimate half at least, which adds up what need not be there at once.
    """
    sizes = {"d": 256, "n": 2, "f": 512, "l": 4, "positions": 256}
    cfg = {f"distill_whisper.{name}": size for name, size in sizes.items()}
    cfg |= {"distill_teacher": "whisper", "distill_windows": 4}
    cfg |= {"distill_teacher_layers": (1, 3), "optim_train": "lora", "lora_r": 8}
    heard = {"mel_kind": "whisper", "mel_m": 80, "mel_normalize": "none"}
    true, run = plans.compiled(**heard, **cfg), plans.run(**heard, **cfg)
    rough = plan.estimate_plan(run, POD, true.mesh)
    batch = 2 * 128 * (7 * 4 + 2 * run.mel.p)  # a chip's rows
    assert true.memory.arguments == pytest.approx(rough.memory.arguments + batch, rel=0.05)
    assert true.executed_flops == pytest.approx(rough.executed_flops, rel=0.05)
    assert rough.executed_flops > 5 * rough.useful_flops
    assert 1 / 4 < true.memory.activations / rough.memory.activations < 1
    assert true.teacher == flops.teacher_parameters(run)
    assert true.fits and true.unknown == ()


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


@pytest.mark.parametrize(
    ("topology_name", "slices", "ici", "dcn"),
    [
        ("v5e:2x2", 1, 10e9 / 180e9, 0.0),  # two links of 45 GB/s along two sides
        ("v5e:2x2", 2, 4e9 / 180e9, 6e9 / 3.125e9),  # `replica` alone leaves the slice
        ("v5p:2x2x1", 2, 4e9 / 540e9, 6e9 / 6.25e9),
        ("tpu7x:2x2x1", 2, 4e9 / 270e9, 6e9 / 6.25e9),  # two devices share a chip's links
        ("h100:1x8", 1, 10e9 / 450e9, 0.0),
        ("h100:2x8", 1, 0.0, 10e9 / 400e9),  # eight adapters of 50 GB/s are slower than NVLink
    ],
)
def test_arithmetic_divides_what_is_sent_by_what_it_goes_over(
    monkeypatch, topology_name, slices, ici, dcn
):
    sent = {"replica": 6e9, "fsdp": 3e9, "seq": 0.0, "tp": 1e9}
    cost = AnalyticCost(state=5e9, activations=2e9, executed_flops=1e15, bytes_sent=sent)
    monkeypatch.setattr(plan, "estimate_cost", lambda run, sizes: cost)
    pod = parse_pod(topology_name, slices)
    found = plan.estimate_plan(plans.run(), pod, {})
    peak = pod.chips * pod.chip.flops
    times = {"matmul": 1e15 / peak, "hbm": 0.0, "ici": ici, "dcn": dcn}
    assert found.limits == pytest.approx(times)
    assert found.memory == plan.Memory(pod.chip.hbm // pod.chip.devices, 7e9, 5e9, 2e9, 0.0)


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
    work = 1 + found.distillation_flops / found.useful_flops  # a teacher's is no use, but is work
    assert found.mfu * work > ROOM[pod.name]
