"""Counts FLOPs of the matrix products that a traced function executes, over all devices.

Counted from its jaxpr, so that nothing need be compiled. What the backward pass of a checkpointed
layer computes again counts, which `flops.update_flops` leaves out; what no output needs does not.
Arrays have their global shapes there, so that work which every device repeats counts once.
"""

from collections.abc import Callable, Sequence
import dataclasses
import math
from typing import Any

import jax
from jax.extend import core
from jax.interpreters import partial_eval
import numpy as np


@dataclasses.dataclass(frozen=True)
class TracedFlops:
    """FLOPs by what executes them: 2 for each multiplication and addition."""

    dot: float = 0.0  # products of matrices
    conv: float = 0.0  # convolutions
    kernel: float = 0.0  # Pallas kernels and cuDNN's attention
    unknown: tuple[str, ...] = ()  # what could not be counted: loops and calls to foreign code

    @property
    def total(self) -> float:
        """All of them; a loop of `unknown` counts as one turn in it."""
        return self.dot + self.conv + self.kernel

    def plus(self, other: "TracedFlops", times: int = 1) -> "TracedFlops":
        """The sum of this and `times` runs of the other."""
        return TracedFlops(
            self.dot + times * other.dot,
            self.conv + times * other.conv,
            self.kernel + times * other.kernel,
            tuple(sorted({*self.unknown, *other.unknown})),
        )


def count_flops(jaxpr: core.ClosedJaxpr) -> TracedFlops:
    """FLOPs of one call of a traced function.

    `jaxpr` is `jax.make_jaxpr(f)(…)` or `jax.jit(f).trace(…).jaxpr`.

    A conditional counts its most expensive branch. A kernel counts as its author states, or else as
    what its body does at every point of its grid: an upper bound where it leaves some out.
    """
    whole, _ = partial_eval.dce_jaxpr(jaxpr.jaxpr, [True] * len(jaxpr.jaxpr.outvars))
    return _count(whole)


def _count(jaxpr: core.Jaxpr) -> TracedFlops:
    total = TracedFlops()
    for eqn in jaxpr.eqns:
        total = total.plus(RULES.get(eqn.primitive.name, _called_flops)(eqn))
    return total


def _called_flops(eqn: core.JaxprEqn) -> TracedFlops:
    """All that a call, a checkpoint or a function with its own derivative holds, once."""
    return _total([_count(inner) for inner in core.jaxprs_in_params(eqn.params)])


def _shape(value: Any) -> tuple[int, ...]:
    return value.aval.shape


def _total(parts: Sequence[TracedFlops]) -> TracedFlops:
    total = TracedFlops()
    for part in parts:
        total = total.plus(part)
    return total


def _dot(eqn: core.JaxprEqn) -> TracedFlops:
    (contracted, _), _ = eqn.params["dimension_numbers"]
    depth = math.prod(_shape(eqn.invars[0])[axis] for axis in contracted)
    return TracedFlops(dot=2.0 * math.prod(_shape(eqn.outvars[0])) * depth)


def _conv(eqn: core.JaxprEqn) -> TracedFlops:
    """Products with the padding, and with zeros that dilation puts between, do not count."""
    params, (x, w), (y,) = eqn.params, eqn.invars, eqn.outvars
    numbers = params["dimension_numbers"]
    pairs = 1  # (position of the output, tap) whose input is a number of x
    for i, (low, _) in enumerate(params["padding"]):
        size = _shape(x)[numbers.lhs_spec[2 + i]]
        taps = np.arange(_shape(w)[numbers.rhs_spec[2 + i]]) * params["rhs_dilation"][i]
        starts = np.arange(_shape(y)[numbers.out_spec[2 + i]]) * params["window_strides"][i]
        at = starts[:, None] + taps[None] - low
        apart = params["lhs_dilation"][i]
        pairs *= int(np.sum((at >= 0) & (at <= (size - 1) * apart) & (at % apart == 0)))
    rows, channels = (_shape(y)[axis] for axis in numbers.out_spec[:2])
    depth = _shape(w)[numbers.rhs_spec[1]]  # input channels of one group
    return TracedFlops(conv=2.0 * rows * channels * depth * pairs)


def _scan(eqn: core.JaxprEqn) -> TracedFlops:
    return TracedFlops().plus(_called_flops(eqn), eqn.params["length"])


def _while(eqn: core.JaxprEqn) -> TracedFlops:
    once = _called_flops(eqn)
    return once.plus(TracedFlops(unknown=("while",))) if once.total else once


def _cond(eqn: core.JaxprEqn) -> TracedFlops:
    branches = [_count(branch.jaxpr) for branch in eqn.params["branches"]]
    return max(branches, key=lambda branch: branch.total)


def _shard_map(eqn: core.JaxprEqn) -> TracedFlops:
    """Local work times the devices that are given different parts of the inputs."""
    mesh = eqn.params["mesh"].shape
    used = {axis for spec in eqn.params["in_specs"] for axis in jax.tree.leaves(tuple(spec))}
    return TracedFlops().plus(_called_flops(eqn), math.prod(mesh[axis] for axis in used))


def _pallas(eqn: core.JaxprEqn) -> TracedFlops:
    cost, grid = eqn.params["cost_estimate"], eqn.params["grid_mapping"].grid
    if cost is not None:
        return TracedFlops(kernel=float(cost.flops))
    body = _count(eqn.params["jaxpr"])
    if all(isinstance(size, int) for size in grid):
        return TracedFlops(kernel=math.prod(grid) * body.total, unknown=body.unknown)
    return TracedFlops(kernel=body.total, unknown=(*body.unknown, "pallas_call"))


def _attention(products: int) -> Callable[[core.JaxprEqn], TracedFlops]:
    """cuDNN's attention: so many products of its whole square of scores."""

    def rule(eqn: core.JaxprEqn) -> TracedFlops:
        q, k = map(_shape, eqn.invars[:2])
        time = 1 if eqn.params["layout"] == 0 else 2  # [b t n h], or [b n t h]
        return TracedFlops(kernel=2.0 * products * math.prod(q) * k[time])

    return rule


def _uncounted(eqn: core.JaxprEqn) -> TracedFlops:
    return TracedFlops(unknown=(eqn.primitive.name,))


RULES: dict[str, Callable[[Any], TracedFlops]] = {
    "dot_general": _dot,
    "conv_general_dilated": _conv,
    "scan": _scan,
    "while": _while,
    "cond": _cond,
    "shard_map": _shard_map,
    "pallas_call": _pallas,
    "dot_product_attention_fwd_wrapper": _attention(2),  # scores, and their sum of values
    "dot_product_attention_bwd_wrapper": _attention(5),  # scores again, and four gradients
    "ragged_dot_general": _uncounted,
    "ffi_call": _uncounted,
}
