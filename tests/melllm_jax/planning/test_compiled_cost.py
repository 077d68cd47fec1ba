import functools
import json
import os
import subprocess
import sys
import tempfile

import jax
import jax.numpy as jnp
import pytest

from melllm_jax.errors import Fault
from melllm_jax.planning import collectives, compiled_cost
from tests.support.paths import ROOT

SIZES = {"replica": 1, "fsdp": 4, "seq": 1, "tp": 2}

pytestmark = pytest.mark.libtpu


def ran(function, *arrays):
    """What `function` does on the mesh in force, compiled for the CPU's eight devices."""
    _, text = compiled_cost.compile_with_hlo(jax.jit(function).lower(*arrays))
    return compiled_cost.program_cost(text, SIZES)


def shaped(*shape, spec=None):
    sharding = jax.NamedSharding(jax.sharding.get_mesh(), spec or jax.P())
    return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=sharding)


def each_device(function, out):
    """`function` of one device's part [2, 8] of an array that all axes split."""
    spec = jax.P(("fsdp", "tp"))
    return functools.partial(
        jax.shard_map, function, in_specs=spec, out_specs=out, check_vma=False
    )()


@pytest.mark.usefixtures("mesh")
@pytest.mark.parametrize("axes", [("fsdp",), ("tp",), ("fsdp", "tp")])
@pytest.mark.parametrize(
    ("kind", "function", "whole"),
    [
        ("all-gather", lambda x, axes: jax.lax.all_gather(x, axes), "n"),
        ("all-reduce", lambda x, axes: jax.lax.psum(x, axes), "1"),
        ("all-to-all", lambda x, axes: jax.lax.all_to_all(x, axes, 1, 0, tiled=True), "1"),
        ("reduce-scatter", lambda x, axes: jax.lax.psum_scatter(x, axes, scatter_dimension=1), "1"),
    ],
)
def test_a_compiled_collective_is_found_with_its_axes_and_bytes(kind, function, whole, axes):
    n = {("fsdp",): 4, ("tp",): 2, ("fsdp", "tp"): 8}[axes]
    some = functools.partial(function, axes=axes)
    apart = each_device(lambda x: some(x), jax.P(("fsdp", "tp")))
    x = shaped(16, n, spec=jax.P(("fsdp", "tp")))
    (found,) = ran(apart, x).collectives
    size = 2 * n * 4 * (n if whole == "n" else 1)
    assert (found.kind, found.axes, found.devices, found.times) == (kind, axes, n, 1)
    assert found.bytes == pytest.approx(collectives.RING_FACTORS[kind](n) * size)


@pytest.mark.usefixtures("mesh")
def test_a_compiled_permutation_is_found_with_its_axis():
    shift = lambda x: jax.lax.ppermute(x, "fsdp", [(i, (i + 1) % 4) for i in range(4)])
    x = shaped(16, 8, spec=jax.P(("fsdp", "tp")))
    (found,) = ran(each_device(shift, jax.P(("fsdp", "tp"))), x).collectives
    assert (found.kind, found.axes, found.bytes) == ("collective-permute", ("fsdp",), 64.0)


def layered(x, ws):
    """Layers whose weights are split over fsdp and tp, as ours are."""

    def layer(x, w):
        h = jnp.einsum("bd,df->bf", x, w[0], out_sharding=jax.P("fsdp", "tp"))
        return jnp.einsum("bf,df->bd", jnp.tanh(h), w[1], out_sharding=jax.P("fsdp")), None

    return jax.lax.scan(layer, x, ws)[0]


def weights(layers, d=64, f=128):
    return shaped(layers, 2, d, f, spec=jax.P(None, None, "fsdp", "tp"))


@pytest.mark.usefixtures("mesh")
def test_a_scan_multiplies_what_a_layer_does():
    x = shaped(32, 64, spec=jax.P("fsdp"))
    three, six = (ran(layered, x, weights(layers)) for layers in (3, 6))
    sums = lambda found: {(c.kind, c.axes): (c.times, c.bytes) for c in found.collectives}
    assert sums(three) == {
        ("all-gather", ("fsdp",)): (6, 6 * 3 / 4 * 64 * 64 * 4),
        ("all-reduce", ("tp",)): (3, 3 * 8 * 64 * 4),
    }
    assert sums(six) == {key: (2 * times, 2 * bytes) for key, (times, bytes) in sums(three).items()}
    assert three.unknown == six.unknown == ()
    # A layer reads its own weights: were it the whole stack, traffic would grow by the square.
    assert six.traffic == pytest.approx(2 * three.traffic, rel=0.02)
    gathered = 2 * 64 * 64 * 4
    assert 3 * 2 * gathered < three.traffic < 3 * 8 * gathered


@pytest.mark.usefixtures("mesh")
def test_a_loop_without_a_known_end_is_reported():
    def until(x):
        return jax.lax.while_loop(lambda x: x[0, 0] < 9, lambda x: jnp.sin(x) * 2, x)

    found = ran(until, shaped(8, 8))
    assert len(found.unknown) == 1
    assert found.unknown[0].startswith("while")


@pytest.mark.parametrize(("first", "second"), [(10, 1000), (1000, 10)])
def test_the_dearest_branch_counts(first, second):
    branch = """
%{name} (p: f32[{size}]) -> f32[{size}] {{
  %p = f32[{size}]{{0}} parameter(0)
  ROOT %sum = f32[{size}]{{0}} all-reduce(%p), replica_groups=[4,2]<=[8], to_apply=%add
}}
"""
    text = f"""HloModule jit_cond, num_partitions=8
{branch.format(name="one", size=first)}{branch.format(name="other", size=second)}
ENTRY %main (i: s32[], x: f32[{first}], y: f32[{second}]) -> f32[] {{
  %i = s32[] parameter(0)
  %x = f32[{first}]{{0}} parameter(1)
  %y = f32[{second}]{{0}} parameter(2)
  ROOT %c = f32[] conditional(%i, %x, %y), branch_computations={{%one, %other}}
}}
"""
    found = compiled_cost.program_cost(text, SIZES)
    assert [(c.axes, c.times, c.bytes) for c in found.collectives] == [(("tp",), 1, 4000.0)]
    assert found.traffic == 8000


def test_compiling_leaves_no_files(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    compiled, text = compiled_cost.compile_with_hlo(jax.jit(jnp.sin).lower(1.0))
    assert text.startswith("HloModule jit_sin")
    assert compiled(0.0) == 0.0
    assert list(tmp_path.iterdir()) == []


def test_a_program_without_text_is_a_fault():
    class Silent(jax.stages.Compiled):
        def __init__(self):
            pass

        def as_text(self):
            raise jax.errors.JaxRuntimeError("INTERNAL: RET_CHECK failure")

    class Lowered(jax.stages.Lowered):
        def __init__(self):
            pass

        def compile(self, compiler_options=None):
            assert compiler_options["xla_dump_hlo_as_text"]
            return Silent()

    with pytest.raises(Fault, match="no text of the compiled program: INTERNAL"):
        compiled_cost.compile_with_hlo(Lowered())


# From a program for four TPU v5e chips, cut down: a weight is gathered while two products run,
# gradients are summed and kept in parts, and the loop's turns are not written beside it.
TPU = """HloModule jit_step, is_scheduled=true, num_partitions=4

%start (p0: bf16[1024,512]) -> (bf16[1024,512], bf16[1024,1024], s32[2]) {
  %p0 = bf16[1024,512]{1,0:T(8,128)(2,1)S(1)} parameter(0)
  %all-gather.40 = bf16[1024,1024]{1,0:T(8,128)(2,1)} all-gather(%p0), channel_id=6, \
replica_groups=[2,2]<=[2,2]T(1,0), dimensions={1}, use_global_device_ids=true, \
frontend_attributes={chain_id="1"}
  ROOT %c = (bf16[1024,512]{1,0:T(8,128)(2,1)S(1)}, bf16[1024,1024]{1,0:T(8,128)(2,1)S(1)}, \
s32[2]{0:S(4)}) custom-call(%all-gather.40), custom_call_target="AsyncCollectiveStart"
}

%beside (p0: bf16[1024,512], p1: bf16[1024,1024], p2: s32[2], p3: bf16[64,1024]) -> \
(bf16[64,1024], bf16[1024,512], bf16[1024,1024], s32[2]) {
  %p0 = bf16[1024,512]{1,0:T(8,128)(2,1)S(1)} parameter(0)
  %p1 = bf16[1024,1024]{1,0:T(8,128)(2,1)S(1)} parameter(1)
  %p2 = s32[2]{0:S(4)} parameter(2)
  %p3 = bf16[64,1024]{1,0:T(8,128)(2,1)} parameter(3)
  %convolution.33 = bf16[64,1024]{1,0:T(8,128)(2,1)} convolution(%p3, %p1), dim_labels=bf_io->bf
  %all-gather.42 = bf16[1024,1024]{1,0:T(8,128)(2,1)S(1)} all-gather(%p0), channel_id=6, \
replica_groups=[2,2]<=[2,2]T(1,0), dimensions={1}, use_global_device_ids=true, \
frontend_attributes={chain_id="1"}
  ROOT %t = (bf16[64,1024]{1,0:T(8,128)(2,1)}, bf16[1024,512]{1,0:T(8,128)(2,1)S(1)}, \
bf16[1024,1024]{1,0:T(8,128)(2,1)S(1)}, s32[2]{0:S(4)}) \
tuple(%convolution.33, %p0, %all-gather.42, %p2)
}

%all-reduce-scatter.2 (p0: bf16[1024,1024]) -> bf16[512,1024] {
  %p0 = bf16[1024,1024]{1,0:T(8,128)(2,1)} parameter(0)
  %all-reduce.14 = (bf16[1024,1024]{1,0:T(8,128)(2,1)}) all-reduce(%p0), channel_id=1, \
replica_groups={{0,2},{1,3}}, use_global_device_ids=true, to_apply=%add
  %part = bf16[1024,1024]{1,0:T(8,128)(2,1)} get-tuple-element(%all-reduce.14), index=0
  %zero = u32[] constant(0)
  ROOT %kept = bf16[512,1024]{1,0:T(8,128)(2,1)} dynamic-slice(%part, %zero, %zero)
}

%body (p: (s32[], bf16[64,1024], bf16[1024,1024])) -> (s32[], bf16[64,1024], bf16[1024,1024]) {
  %p = (s32[]{:T(128)}, bf16[64,1024]{1,0:T(8,128)(2,1)}, bf16[1024,1024]{1,0:T(8,128)(2,1)}) \
parameter(0)
  %one = s32[]{:T(128)} constant(1)
  %add.1 = s32[]{:T(128)} add(%p#0, %one)
  %w = bf16[1024,512]{1,0:T(8,128)(2,1)S(1)} slice(%p#2), slice={[0:1024], [0:512]}
  %begin = (bf16[1024,512]{1,0:T(8,128)(2,1)S(1)}, bf16[1024,1024]{1,0:T(8,128)(2,1)S(1)}, \
s32[2]{0:S(4)}) fusion(%w), kind=kCustom, calls=%start
  %middle = (bf16[64,1024]{1,0:T(8,128)(2,1)}, bf16[1024,512]{1,0:T(8,128)(2,1)S(1)}, \
bf16[1024,1024]{1,0:T(8,128)(2,1)S(1)}, s32[2]{0:S(4)}) \
fusion(%begin#0, %begin#1, %begin#2, %p#1), kind=kOutput, calls=%beside, \
backend_config={"window_config":{"cost_model_type":"COST_MODEL_TYPE_CLASSIC",\
"estimated_cycles":"1000"}}
  %more = (bf16[64,1024]{1,0:T(8,128)(2,1)}, bf16[1024,512]{1,0:T(8,128)(2,1)S(1)}, \
bf16[1024,1024]{1,0:T(8,128)(2,1)S(1)}, s32[2]{0:S(4)}) \
fusion(%middle#1, %middle#2, %middle#3, %middle#0), kind=kOutput, calls=%beside, \
backend_config={"window_config":{"cost_model_type":"COST_MODEL_TYPE_INVALID",\
"estimated_cycles":"300"}}
  %grads = bf16[512,1024]{1,0:T(8,128)(2,1)} fusion(%p#2), kind=kCustom, calls=%all-reduce-scatter.2
  %x = bf16[64,1024]{1,0:T(8,128)(2,1)} all-reduce(%more#0), channel_id=4, \
replica_groups=[2,2]<=[4], use_global_device_ids=true, to_apply=%add
  ROOT %t = (s32[]{:T(128)}, bf16[64,1024]{1,0:T(8,128)(2,1)}, \
bf16[1024,1024]{1,0:T(8,128)(2,1)}) tuple(%add.1, %x, %p#2)
}

%test (q: (s32[], bf16[64,1024], bf16[1024,1024])) -> pred[] {
  %q = (s32[]{:T(128)}, bf16[64,1024]{1,0:T(8,128)(2,1)}, bf16[1024,1024]{1,0:T(8,128)(2,1)}) \
parameter(0)
  %six = s32[]{:T(128)} constant(6)
  ROOT %lt = pred[]{:T(512)} compare(%q#0, %six), direction=LT
}

ENTRY %main (x: bf16[64,1024], w: bf16[1024,1024]) -> bf16[64,1024] {
  %x = bf16[64,1024]{1,0:T(8,128)(2,1)} parameter(0)
  %w = bf16[1024,1024]{1,0:T(8,128)(2,1)} parameter(1)
  %zero = s32[]{:T(128)} constant(0)
  %t = (s32[]{:T(128)}, bf16[64,1024]{1,0:T(8,128)(2,1)}, bf16[1024,1024]{1,0:T(8,128)(2,1)}) \
tuple(%zero, %x, %w)
  %while.1 = (s32[]{:T(128)}, bf16[64,1024]{1,0:T(8,128)(2,1)}, \
bf16[1024,1024]{1,0:T(8,128)(2,1)}) while(%t), condition=%test, body=%body
  ROOT %y = bf16[64,1024]{1,0:T(8,128)(2,1)} get-tuple-element(%while.1), index=1
}
"""


def test_a_collective_in_tpu_fusions_counts_once_a_turn_and_is_hidden():
    found = compiled_cost.program_cost(TPU, {"fsdp": 2, "tp": 2})
    matrix = 1024 * 1024 * 2
    assert set(found.collectives) == {
        collectives.Collective("all-gather", ("fsdp",), 2, True, 6, 6 * matrix / 2),
        collectives.Collective("reduce-scatter", ("fsdp",), 2, False, 6, 6 * matrix / 2),
        collectives.Collective("all-reduce", ("tp",), 2, False, 6, 6 * 64 * 1024 * 2.0),
    }
    assert found.unknown == ()
    assert (found.cycles, found.matrix_cycles) == (6 * 1300, 6 * 1000)
    # A turn: the slice read, two products in and out, gradients in and out, the sum in and out.
    # Of the gathered weight nothing is in main memory, and the turn's number is not counted here.
    rows = 64 * 1024 * 2
    assert found.traffic == pytest.approx(
        6 * (matrix / 2 + 4 * rows + 1.5 * matrix + 2 * rows), 1e-4
    )


def test_a_collective_that_a_tpus_sparse_cores_run_is_found_two_calls_deep():
    text = """HloModule jit_step, is_scheduled=true, num_partitions=8

%called_computation.6 (p0: bf16[16,256]) -> bf16[16,256] {
  %p0 = bf16[16,256]{1,0:T(8,128)(2,1)} parameter(0)
  ROOT %all-reduce.16 = bf16[16,256]{1,0:T(8,128)(2,1)} all-reduce(%p0), channel_id=8, \
replica_groups=[4,2]<=[8], use_global_device_ids=true, to_apply=%add.clone.clone.1
}, execution_thread="sparsecore"

%async_computation.1 (p1: bf16[16,256]) -> bf16[16,256] {
  %p1 = bf16[16,256]{1,0:T(8,128)(2,1)} parameter(0)
  ROOT %custom-call.3 = bf16[16,256]{1,0:T(8,128)(2,1)} custom-call(%p1), \
custom_call_target="sparse_core", called_computations={%called_computation.6}
}, execution_thread="sparsecore"

ENTRY %main (x: bf16[16,256]) -> bf16[16,256] {
  %x = bf16[16,256]{1,0:T(8,128)(2,1)} parameter(0)
  %call-start = ((), (), (s32[8192]{0:T(1024)}, s32[47]{0:T(1)S(11)})) async-start(), \
async_execution_thread="sparsecore", calls=%async_computation.1
  %call-update = ((bf16[16,256]{1,0:T(8,128)(2,1)}), bf16[16,256]{1,0:T(8,128)(2,1)}, \
(s32[8192]{0:T(1024)})) async-update(%call-start, %x)
  ROOT %call-done = bf16[16,256]{1,0:T(8,128)(2,1)} async-done(%call-update)
}
"""
    found = compiled_cost.program_cost(text, SIZES)
    size = 16 * 256 * 2
    assert found.collectives == (
        collectives.Collective("all-reduce", ("tp",), 2, True, 1, float(size)),
    )
    assert found.traffic == 2 * size


def test_what_a_gpu_runs_at_once_is_not_hidden():
    text = """HloModule jit_step, is_scheduled=true, num_partitions=8

ENTRY %main (x: bf16[256,1024], y: f32[16]) -> bf16[1024,1024] {
  %x = bf16[256,1024]{1,0} parameter(0)
  %y = f32[16]{0} parameter(1)
  %all-gather-start = ((bf16[256,1024]{1,0}, bf16[256,1024]{1,0}), (bf16[1024,1024]{1,0}, \
bf16[1024,1024]{1,0})) all-gather-start(%x, %x), channel_id=1, \
replica_groups=mesh['axis_0'=4,'axis_1'=2] {'axis_0'}, dimensions={0}, \
backend_config={"collective_backend_config":{"is_sync":true,"backend":"DEFAULT"}}
  %all-gather-done = (bf16[1024,1024]{1,0}, bf16[1024,1024]{1,0}) all-gather-done(%all-gather-start)
  %all-reduce-start = f32[16]{0} all-reduce-start(%y), channel_id=3, replica_groups=[4,2]<=[8], \
to_apply=%add, backend_config={"collective_backend_config":{"is_sync":false}}
  %all-reduce-done = f32[16]{0} all-reduce-done(%all-reduce-start)
  ROOT %w = bf16[1024,1024]{1,0} get-tuple-element(%all-gather-done), index=0
}
"""
    gather, reduce = compiled_cost.program_cost(text, SIZES).collectives
    assert (gather.kind, gather.axes, gather.hidden) == ("all-gather", ("fsdp",), False)
    assert gather.bytes == 2 * 1024 * 1024 * 2 * 3 / 4
    assert (reduce.kind, reduce.axes, reduce.hidden) == ("all-reduce", ("tp",), True)


def test_exchanges_of_one_kind_over_the_same_axes_are_put_together():
    text = """HloModule jit_two, num_partitions=8

ENTRY %main (x: f32[16], y: f32[48], z: f32[8]) -> f32[16] {
  %x = f32[16]{0} parameter(0)
  %y = f32[48]{0} parameter(1)
  %z = f32[8]{0} parameter(2)
  %long = f32[48]{0} all-reduce(%y), replica_groups=[4,2]<=[8], to_apply=%add
  %other = f32[8]{0} all-reduce(%z), replica_groups={}, to_apply=%add
  ROOT %short = f32[16]{0} all-reduce(%x), replica_groups=[4,2]<=[8], to_apply=%add
}
"""
    assert compiled_cost.program_cost(text, SIZES).collectives == (
        collectives.Collective("all-reduce", ("tp",), 2, False, 2, 256.0),
        collectives.Collective("all-reduce", ("fsdp", "tp"), 8, False, 1, 56.0),
    )


def test_text_that_is_no_module_is_a_fault():
    with pytest.raises(Fault, match="no HLO module"):
        compiled_cost.program_cost("", SIZES)


ABSENT_POD = """
import dataclasses, json, sys
import jax
from jax.experimental import topologies
from melllm_jax.planning import compiled_cost
from tests.melllm_jax.planning.test_compiled_cost import layered

pod = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2")
mesh = jax.make_mesh((2, 2), ("fsdp", "tp"), devices=pod.devices)
with jax.set_mesh(mesh):
    placed = lambda spec: jax.NamedSharding(mesh, jax.P(*spec))
    x = jax.ShapeDtypeStruct((512, 256), "bfloat16", sharding=placed(["fsdp"]))
    w = placed([None, None, "fsdp", "tp"])
    w = jax.ShapeDtypeStruct((5, 2, 256, 512), "bfloat16", sharding=w)
    compiled, text = compiled_cost.compile_with_hlo(jax.jit(layered).lower(x, w))
print(json.dumps(dataclasses.asdict(compiled_cost.program_cost(text, dict(mesh.shape)))))
"""


def test_a_program_for_tpus_that_are_not_here_is_compiled_and_read():
    pytest.importorskip("libtpu")
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "TPU_SKIP_MDS_QUERY": "1",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # else libtpu serves one process of a machine alone
        "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]),
    }
    done = subprocess.run(
        [sys.executable, "-c", ABSENT_POD], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    sums = {(c["kind"], *c["axes"]): (c["times"], c["bytes"]) for c in found["collectives"]}
    assert sums["all-reduce", "tp"] == (5, 5 * 256 * 256 * 2)
    assert sum(c["bytes"] for c in found["collectives"] if c["axes"] == ["fsdp"]) == pytest.approx(
        5 * 2 * 256 * 256 * 2 / 2
    )
    assert found["unknown"] == []
    ideal = 5 * 2 * 2 * 256 * 256 * 256 / (4 * 128 * 128 * 2)  # cycles of four matrix units
    assert 0.9 * ideal < found["matrix_cycles"] <= found["cycles"] < 20 * ideal
    assert found["traffic"] > 0
