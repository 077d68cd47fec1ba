"""A run that libtpu compiles in seconds, and its plans."""

import dataclasses
import functools

import pytest

from melllm_jax.config.model import Lora
from melllm_jax.config.overrides import override
from melllm_jax.config.run import Mesh
from melllm_jax.planning import plan, topology
from tests.support import models

ALL = ("qkv", "attended", "out", "gate_up")
# Splash takes rows of 128 positions; heads of 128 lie in a TPU's memory without padding.
MODEL = dataclasses.replace(models.MODEL, d=256, n=4, k=2, h=128, f=512, l=2, v=1024)


def run(mesh=None, **changes):
    """A small run of matrix products; `changes` are dotted fields, with _ for the dot."""
    base = models.run(MODEL, Lora(), b=8, t=128, compute="bfloat16")
    base = dataclasses.replace(base, mesh=mesh or Mesh(fsdp=4))
    return override(base, {k.replace("_", ".", 1): v for k, v in changes.items()})


def rough(pod="v5e:2x2", **changes):
    """The plan of `run` by arithmetic."""
    there, asked = topology.parse_pod(pod), run(**changes)
    return plan.estimate_plan(asked, there, plan.mesh_sizes(asked, there))


@functools.cache
def compiled(pod="v5e:2x2", slices=1, **changes):
    """The plan of `run` compiled, once for all tests."""
    pytest.importorskip("libtpu", reason="needs the extra `plan`")
    return plan.compile_plan(run(**changes), topology.parse_pod(pod, slices))
