import jax
import jax.numpy as jnp
import pytest

from melllm_jax import sharding, xla_options
from melllm_jax.config.run import Mesh
from melllm_jax.planning.topology import parse_pod, pod_devices

FUSED = "xla_tpu_enable_async_collective_fusion"
OFFLOADED = "xla_tpu_enable_sparse_core_collective_offload_all_gather"

pytestmark = pytest.mark.libtpu


def tpus(topology):
    pytest.importorskip("libtpu", reason="needs the extra `plan`")
    return sharding.make_mesh(Mesh(), pod_devices(parse_pod(topology)))


def lowered(mesh):
    """A product whose weight is gathered and whose gradient is scattered."""
    w = jax.ShapeDtypeStruct((256, 256), jnp.bfloat16, sharding=jax.NamedSharding(mesh, jax.P()))
    x = jax.ShapeDtypeStruct((256, 256), jnp.bfloat16, sharding=w.sharding)

    def loss(w, x):
        w = jax.reshard(w, jax.P("fsdp", None))
        return jnp.sum(jnp.dot(x, jax.reshard(w, jax.P())).astype(jnp.float32))

    with jax.set_mesh(mesh):
        return jax.jit(jax.grad(loss)).lower(w, x)


@pytest.mark.parametrize(
    ("topology", "has", "lacks"),
    [("v5e:2x2", FUSED, OFFLOADED), ("v5p:2x2x1", OFFLOADED, FUSED), ("v6e:2x2", OFFLOADED, FUSED)],
)
def test_options_of_a_pod_are_its_chips_and_the_compiler_knows_each(topology, has, lacks):
    mesh = tpus(topology)
    told = xla_options.compiler_options(mesh)
    assert told[has] is True
    assert lacks not in told
    assert xla_options.absent_chip_options(mesh) == {}
    program = lowered(mesh)
    program.compile(compiler_options=told)
    with pytest.raises(jax.errors.JaxRuntimeError, match="xla_tpu_no_such_thing"):
        program.compile(compiler_options={**told, "xla_tpu_no_such_thing": True})


def test_a_chip_without_options_of_its_own_has_none():
    assert xla_options.compiler_options(tpus("v4:2x2x1")) == {}


def test_devices_that_are_here_and_are_no_tpus_have_no_options():
    mesh = sharding.make_mesh(Mesh())
    assert mesh.size == 8
    assert xla_options.compiler_options(mesh) == xla_options.absent_chip_options(mesh) == {}


def test_one_device_alone_has_no_collectives_and_no_options():
    pytest.importorskip("libtpu", reason="needs the extra `plan`")
    first = pod_devices(parse_pod("v5e:2x2"))[:1]
    assert xla_options.compiler_options(sharding.make_mesh(Mesh(), first)) == {}


def failing(message):
    """A compilation that fails with any option, and says which it was tried with."""
    tried = []

    def compiled(options):
        tried.append(dict(options))
        if options:
            raise jax.errors.JaxRuntimeError(message)
        return "compiled"

    return compiled, tried


def test_what_xla_fails_at_is_compiled_without_options_and_said(monkeypatch):
    mesh, said = sharding.make_mesh(Mesh()), []
    monkeypatch.setitem(xla_options.OPTIONS, "cpu", {"xla_some_option": True})
    compiled, tried = failing("INTERNAL: overlaps with another chunk\nand more")
    assert xla_options.compile_with_fallback(compiled, mesh, said.append) == "compiled"
    assert tried == [{"xla_some_option": True}, {}]
    assert len(said) == 1
    assert "INTERNAL: overlaps with another chunk" in said[0]


def test_too_little_memory_is_no_fault_of_the_options(monkeypatch):
    monkeypatch.setitem(xla_options.OPTIONS, "cpu", {"xla_some_option": True})
    compiled, tried = failing("RESOURCE_EXHAUSTED: HBM")
    with pytest.raises(jax.errors.JaxRuntimeError, match="HBM"):
        xla_options.compile_with_fallback(compiled, sharding.make_mesh(Mesh()))
    assert len(tried) == 1
