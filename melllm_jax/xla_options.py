"""Options of the XLA compiler: collectives run while matrix products do.

The same for training and for `plan`, so that what is planned is what runs. Of chips before v5p the
TensorCore itself must carry collectives on beside its products ("async collective fusion", by
libtpu's own word for v5e alone); from v5p on SparseCores take them over.
"""

from collections.abc import Callable, Mapping
from typing import TypeVar

import jax

Program = TypeVar("Program")

_FUSED = {
    "xla_tpu_enable_async_collective_fusion": True,
    "xla_tpu_enable_async_collective_fusion_fuse_all_gather": True,
    "xla_tpu_enable_async_collective_fusion_multiple_steps": True,
    "xla_tpu_overlap_compute_collective_tc": True,
    "xla_enable_async_all_gather": True,
}
_OFFLOADED = {
    "xla_tpu_enable_async_collective_fusion_fuse_all_gather": False,
    "xla_tpu_enable_async_collective_fusion_fuse_all_reduce": False,
    "xla_tpu_enable_async_collective_fusion_fuse_reduce_scatter": False,
    "xla_tpu_enable_sparse_core_collective_offload_all_gather": True,
    "xla_tpu_enable_sparse_core_collective_offload_reduce_scatter": True,
    "xla_tpu_enable_sparse_core_collective_offload_all_reduce": True,
}
OPTIONS: Mapping[str, Mapping[str, bool]] = {  # by JAX's device_kind
    "TPU v5 lite": _FUSED,
    "TPU v5": _OFFLOADED,
    "TPU v5p": _OFFLOADED,
    "TPU v6 lite": _OFFLOADED,
}


def compiler_options(mesh: jax.sharding.Mesh) -> dict[str, str | bool]:
    """Options for `lowered.compile` of a program on this mesh; none where one device is alone."""
    if mesh.size == 1:
        return {}
    return dict(OPTIONS.get(mesh.devices.flat[0].device_kind, {}))


def compile_lowered(
    lowered: jax.stages.Lowered,
    mesh: jax.sharding.Mesh,
    log: Callable[[str], None] = lambda text: None,
) -> jax.stages.Compiled:
    """Compiles a program for a mesh that is here, as `compile_with_fallback` does."""
    return compile_with_fallback(
        lambda options: lowered.compile(compiler_options=options), mesh, log
    )


def compile_with_fallback(
    compile_fn: Callable[[dict[str, str | bool]], Program],
    mesh: jax.sharding.Mesh,
    log: Callable[[str], None] = lambda text: None,
) -> Program:
    """Compiles with the mesh's options; without them, and logs that, where XLA fails at those.

    libtpu 0.0.52 did at one of hundreds of programs: async-collective-start "overlaps with another
    chunk", for v5e with time split eightfold.
    """
    options = compiler_options(mesh)
    try:
        return compile_fn(options)
    except jax.errors.JaxRuntimeError as error:
        if not options or "RESOURCE_EXHAUSTED" in str(error):
            raise
        reason = str(error).splitlines()[0][:200]
        log(f"XLA fails at asynchronous collectives ({reason}): compiling without them")
        return compile_fn({})


def absent_chip_options(mesh: jax.sharding.Mesh) -> dict[str, str | bool]:
    """Options that a compiler needs for chips which are not here: none can time its kernels."""
    gpu = mesh.devices.flat[0].platform in ("cuda", "gpu")
    return {"xla_gpu_autotune_level": "0"} if gpu else {}
