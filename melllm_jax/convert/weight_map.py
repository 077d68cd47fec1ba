"""Rules that say which foreign tensor holds which of our weights, applied in both directions.

A rule is the tensor's name, our names and the einops pattern between the two. One table of rules
imports and exports, so what was read can be written back bit by bit.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
import dataclasses
import fnmatch
import math

import einops
import numpy as np

from melllm_jax.errors import Mistake

LAYER = "{i}"  # stands in a tensor's name for the index of its layer

Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Rule:
    """One foreign tensor and the weights inside it.

    Several weights lie along the tensor's first axis, in order, as fused projections keep them.
    Where the tensor's name has `LAYER`, each of our weights has a leading axis of layers, which
    the pattern leaves out.
    """

    foreign: str  # "model.layers.{i}.self_attn.qkv_proj.weight"
    weights: tuple[str, ...]  # ("stack.blocks.attn.q", …)
    patterns: tuple[str, ...]  # theirs → ours, one each: "(n h) d -> d n h"


@dataclasses.dataclass(frozen=True)
class IgnoredTensors:
    """Foreign tensors that are not read, on purpose."""

    pattern: str  # a pattern with *, ? and [ ]
    reason: str


@dataclasses.dataclass(frozen=True)
class WeightPart:
    """One of our weights, or one layer of it, inside a foreign tensor."""

    name: str
    layer: int | None
    start: int  # its first row in the tensor
    stop: int
    pattern: str
    shape: Shape  # ours, without the axis of layers


@dataclasses.dataclass(frozen=True)
class Piece:
    """A block of rows of a foreign tensor, and the block of one of our weights that it is."""

    name: str  # of the weight
    start: int  # its first row in the tensor
    stop: int
    pattern: str
    shape: Shape  # ours
    index: tuple[int | slice, ...]  # where in the weight, its axis of layers included

    def read(self, rows: np.ndarray) -> np.ndarray:
        """The tensor's rows in our shape, as a view where a transposition is enough."""
        return einops.rearrange(rows, self.pattern, **_axis_lengths(self.pattern, self.shape))

    def write(self, value: np.ndarray) -> np.ndarray:
        """Our block as rows of the tensor: the inverse of `read`."""
        left, right = self.pattern.split("->")
        sizes = {k: n for k, n in _axis_lengths(self.pattern, self.shape).items() if k in left}
        return einops.rearrange(value, f"{right}->{left}", **sizes)


@dataclasses.dataclass(frozen=True)
class ForeignTensor:
    """A foreign tensor that our weights need: its shape, and the weights that lie in it."""

    shape: Shape
    parts: tuple[WeightPart, ...]

    def pieces(self, max_elements: int) -> Iterator[Piece]:
        """The tensor in blocks of at most so many elements, as far as its rows can be parted.

        A block is as many rows as a number of the first letter's values take: whole heads of
        "(n h) d". All blocks of a part are alike but for the last, which may be smaller.
        """
        for part in self.parts:
            letter = part.pattern.split("->")[0].replace("(", " ").split()[0]
            axis = part.pattern.split("->")[1].split().index(letter)
            length = part.shape[axis]
            count = min(-(-math.prod(part.shape) // max_elements), length)
            step, unit = length // count, (part.stop - part.start) // length
            for first in range(0, length, step):
                last = min(first + step, length)
                index: list[int | slice] = [slice(None)] * len(part.shape)
                index[axis] = slice(first, last)
                layer = () if part.layer is None else (part.layer,)
                shape = (*part.shape[:axis], last - first, *part.shape[axis + 1 :])
                rows = part.start + first * unit, part.start + last * unit
                yield Piece(part.name, *rows, part.pattern, shape, (*layer, *index))


def expand_rules(rules: Iterable[Rule], shapes: Mapping[str, Shape]) -> dict[str, ForeignTensor]:
    """Every foreign tensor that the weights of `shapes` (by our names) need, by its name.

    Raises ValueError for a table that names a weight twice, one that does not exist, or weights
    of one rule that disagree: a table's own fault, never a file's.
    """
    tensors: dict[str, ForeignTensor] = {}
    filled: set[str] = set()
    for rule in rules:
        for name in rule.weights:
            if name in filled or name not in shapes:
                raise ValueError(f"{rule.foreign}: {name} is mapped twice or is no weight")
            filled.add(name)
        layered = LAYER in rule.foreign
        counts = {shapes[name][0] for name in rule.weights} if layered else {1}
        if len(counts) != 1:
            raise ValueError(f"{rule.foreign}: its weights have {sorted(counts)} layers")
        for i in range(counts.pop()):
            foreign_name = rule.foreign.replace(LAYER, str(i))
            if foreign_name in tensors:
                raise ValueError(f"{foreign_name}: two rules name it")
            tensors[foreign_name] = _foreign_tensor(rule, shapes, i if layered else None)
    return tensors


def check_tensors(
    tensors: Mapping[str, ForeignTensor],
    found: Mapping[str, Shape],
    left_out: Iterable[IgnoredTensors] = (),
    where: str = "the checkpoint",
) -> dict[str, list[str]]:
    """Check the tensors that are there against those needed; return those left out, by reason.

    Raises Mistake that names the first tensor missing, of another shape, or known to no rule.
    """
    for name, tensor in tensors.items():
        if name not in found:
            raise Mistake(f"{where}: has no tensor {name}, which must be {list(tensor.shape)}")
        if tuple(found[name]) != tensor.shape:
            raise Mistake(
                f"{where}: {name} is {list(found[name])}: its config asks for {list(tensor.shape)}"
            )
    omitted: dict[str, list[str]] = {}
    for name in sorted(found.keys() - tensors.keys()):
        reasons = [rule.reason for rule in left_out if fnmatch.fnmatchcase(name, rule.pattern)]
        if not reasons:
            raise Mistake(f"{where}: no rule knows the tensor {name}: nothing is dropped unasked")
        omitted.setdefault(reasons[0], []).append(name)
    return dict(sorted(omitted.items()))


def read_weights(
    tensors: Mapping[str, ForeignTensor],
    rows: Callable[[str], np.ndarray],
    shapes: Mapping[str, Shape],
) -> dict[str, np.ndarray]:
    """Our weights whole, in float32; `rows` reads all rows of a tensor by its name."""
    weights = {name: np.empty(shape, np.float32) for name, shape in shapes.items()}
    for foreign_name, tensor in tensors.items():
        values = rows(foreign_name)
        for piece in tensor.pieces(max_elements=values.size):
            weights[piece.name][piece.index] = piece.read(values[piece.start : piece.stop])
    return weights


def _foreign_tensor(rule: Rule, shapes: Mapping[str, Shape], layer: int | None) -> ForeignTensor:
    parts, start, rest = [], 0, set()
    for name, pattern in zip(rule.weights, rule.patterns, strict=True):
        shape = tuple(shapes[name]) if layer is None else tuple(shapes[name][1:])
        part_shape = _foreign_shape(pattern, shape)
        parts.append(WeightPart(name, layer, start, start + part_shape[0], pattern, shape))
        start += part_shape[0]
        rest.add(part_shape[1:])
    if len(rest) != 1:
        raise ValueError(f"{rule.foreign}: its weights disagree beyond the first axis: {rest}")
    return ForeignTensor((start, *rest.pop()), tuple(parts))


def _axis_lengths(pattern: str, shape: Shape) -> dict[str, int]:
    """The length of each letter, from our shape: the right side has no brackets."""
    return dict(zip(pattern.split("->")[1].split(), shape, strict=True))


def _foreign_shape(pattern: str, shape: Shape) -> Shape:
    """The foreign shape of a part whose shape is ours."""
    sizes = _axis_lengths(pattern, shape) | {"1": 1}
    left = pattern.split("->")[0].replace("(", " ( ").replace(")", " ) ")
    result, inside = [], False
    for token in left.split():
        if token == "(":
            result.append(1)
        if token in "()":
            inside = token == "("
        elif inside:
            result[-1] *= sizes[token]
        else:
            result.append(sizes[token])
    return tuple(result)
