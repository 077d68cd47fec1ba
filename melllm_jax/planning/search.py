"""Candidates that `melllm plan --search` tries for a run on a pod.

They differ in mesh, rematerialisation and micro-batches; each comes with its plan by arithmetic.
"""

from collections.abc import Iterator
import math
from typing import Any

from melllm_jax.config.overrides import override
from melllm_jax.config.run import Run
from melllm_jax.planning import plan, topology
from melllm_jax.planning.plan import Plan
from melllm_jax.sharding import split_dimensions

REMAT_CHOICES: tuple[tuple[str, tuple[str, ...]], ...] = (  # from most kept to least
    ("none", ()),
    ("named", ("qkv", "attended", "out", "gate_up")),
    ("named", ("qkv", "attended", "gate_up")),
    ("named", ("qkv", "attended", "out")),
    ("named", ("qkv", "attended")),
    ("named", ("attended",)),
    ("full", ()),
    ("offload", ("qkv", "attended", "out", "gate_up")),
)


def candidate_plans(run: Run, pod: topology.Pod) -> Iterator[tuple[Run, Plan]]:
    """Every mesh, micro-batch and remat policy for `run` on `pod`, with its cost by arithmetic."""
    for mesh in candidate_meshes(pod.chips * pod.chip.devices, pod.slices, run):
        rows = run.data.b // (mesh["replica"] * mesh["fsdp"])
        for micro in (size for size in (1, 2, 4, 8, 16) if rows % size == 0):
            for name, kept in REMAT_CHOICES:
                changes: dict[str, Any] = {f"mesh.{axis}": size for axis, size in mesh.items()}
                changes |= {"optim.micro": micro, "model.remat": name, "model.kept": kept}
                candidate = override(run, changes)
                yield candidate, plan.estimate_plan(candidate, pod, mesh)


def candidate_meshes(chips: int, slices: int, run: Run) -> list[dict[str, int]]:
    """Meshes of so many chips that split the run evenly, `replica` over the slices alone."""
    data, found = run.data, []
    splits = split_dimensions(run)
    for tp in (1, 2, 4, 8):
        for seq in (1, 2, 4, 8):
            fsdp, rest = divmod(chips, slices * seq * tp)
            size = {"fsdp": fsdp or 1, "seq": seq, "tp": tp}
            rows, odd = divmod(data.b, slices * fsdp or 1)
            uneven = any(value % size[axis] for axis, _, value in splits)
            if rest or not fsdp or odd or not rows or uneven:
                continue
            if data.t // seq % 128 and math.prod((seq, tp)) > 1:
                continue
            if run.scoring.every and seq > 1:  # decoding does not split time
                continue
            found.append({"replica": slices, "fsdp": fsdp, "seq": seq, "tp": tp})
    return found
