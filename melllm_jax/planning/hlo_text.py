"""Parses the text of an HLO module, as XLA prints it after compilation.

Only what accounting needs is read: names, operations, shapes with the memory they lie in, operands
and the attributes' own text. Layouts, tilings and literals are passed over.
"""

from collections.abc import Iterator, Mapping
import dataclasses
import math
import re
from typing import Any

from melllm_jax.errors import Fault


@dataclasses.dataclass(frozen=True)
class Buffer:
    """An array on one chip."""

    dtype: str  # as XLA names it: bf16, f32, pred, s4, token
    dims: tuple[int, ...]
    space: int = 0  # memory that it lies in: S(n) of the layout, 0 the chip's main memory

    @property
    def bytes(self) -> float:
        """Size without the padding that tiles may add."""
        bits = re.search(r"\d+", self.dtype)  # c64 and f8e4m3fn say their bits first as well
        width = 8 if self.dtype == "pred" else int(bits.group()) if bits else 0
        return math.prod(self.dims) * width / 8


Shape = Buffer | tuple[Any, ...]  # a tuple holds shapes in its turn


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation."""

    name: str
    op: str  # fusion, all-gather-start, get-tuple-element, …
    shape: Shape
    operands: tuple[str, ...]
    inside: str  # the text between the operation's brackets: a parameter's number, a literal
    attributes: str  # the text after them
    root: bool

    @property
    def buffers(self) -> tuple[Buffer, ...]:
        """The arrays that it returns, tuples flattened."""
        return tuple(leaves(self.shape))

    @property
    def index(self) -> int:
        """Which part of a tuple a get-tuple-element takes."""
        return self.number("index") or 0

    def callees(self, attribute: str) -> tuple[str, ...]:
        """Names of the computations under `attribute=`, such as `calls` or `body`."""
        found = re.search(rf"\b{attribute}=(%[\w.-]+|\{{[^}}]*\}})", self.attributes)
        return tuple(NAME.findall(found.group(1))) if found else ()

    def number(self, attribute: str) -> int | None:
        """The integer of `attribute=n`, or of `"attribute":"n"` in a backend's own settings."""
        found = re.search(rf'\b{attribute}(?:=|":"?)(\d+)', self.attributes)
        return int(found.group(1)) if found else None


@dataclasses.dataclass(frozen=True)
class Computation:
    """Instructions in the order in which they are printed."""

    name: str
    instructions: Mapping[str, Instruction]

    @property
    def root(self) -> Instruction:
        """The instruction that it returns."""
        return next(i for i in self.instructions.values() if i.root)

    @property
    def parameters(self) -> tuple[Instruction, ...]:
        """Its parameters in order."""
        found = (i for i in self.instructions.values() if i.op == "parameter")
        return tuple(sorted(found, key=lambda i: int(i.inside)))


@dataclasses.dataclass(frozen=True)
class HloModule:
    """A compiled program."""

    computations: Mapping[str, Computation]
    entry: str
    tpu: bool  # tiled layouts are printed for TPUs alone
    devices: int  # that it is one program for: of several slices, those of one


NAME = re.compile(r"%([\w.-]+(?:#\d+)*)")
HEAD = re.compile(r"(ENTRY )?%([\w.-]+) \(.*\{$")
END = re.compile(r"\}(, execution_thread=.*)?$")  # of a computation; `}}, …` ends metadata
LINE = re.compile(r"\s+(ROOT )?%([\w.-]+) = (.*)")
ARRAY = re.compile(r"(\w+)\[([^\]]*)\](\{[^}]*\})?")


def parse_module(text: str) -> HloModule:
    """The module that `text` prints. Raises Fault where it holds no entry computation."""
    computations: dict[str, Computation] = {}
    lines: list[str] = []
    name = entry = ""
    for line in text.splitlines():
        if head := HEAD.match(line):
            name, lines = head.group(2), []
            entry = name if head.group(1) else entry
        elif name and END.match(line):
            instructions = [_instruction(line) for line in map(LINE.match, lines) if line]
            computations[name] = Computation(name, _with_tuple_parts(instructions))
            name = ""
        elif name and LINE.match(line):
            lines.append(line)
        elif lines:
            lines[-1] += line  # metadata of kernels is printed over several lines
    if entry not in computations:
        raise Fault(f"no HLO module: none of {len(text)} characters opens an entry computation")
    devices = re.search(r"num_partitions=(\d+)", text.partition("\n")[0])
    return HloModule(computations, entry, ":T(" in text, int(devices.group(1)) if devices else 1)


def leaves(shape: Shape) -> Iterator[Buffer]:
    """The arrays of a shape, tuples flattened."""
    if isinstance(shape, Buffer):
        yield shape
    else:
        for part in shape:
            yield from leaves(part)


def _with_tuple_parts(instructions: list[Instruction]) -> dict[str, Instruction]:
    """Instructions by name, with those that an operand such as `%loop#1` stands for: part 1."""
    known = {i.name: i for i in instructions}
    for operand in (name for i in instructions for name in i.operands if "#" in name):
        name, *parts = operand.split("#")
        for part in parts:
            whole, name = name, f"{name}#{part}"
            shape = known[whole].shape
            if isinstance(shape, Buffer):
                raise Fault(f"HLO operand not understood: %{operand} is no part of a tuple")
            element = shape[int(part)]
            known[name] = Instruction(
                name, "get-tuple-element", element, (whole,), "", f"index={part}", False
            )
    return known


def _instruction(line: re.Match[str]) -> Instruction:
    """The instruction of a line that `LINE` matched."""
    root, name, text = line.groups()
    text = re.sub(r"/\*index=\d+\*/", "", text)
    shape, at = _shape(text, 0)
    op, _, rest = text[at:].strip().partition("(")
    end = _closing(rest, 0)
    inside, attributes = rest[:end], rest[end + 1 :]
    return Instruction(
        name, op, shape, tuple(NAME.findall(inside)), inside, attributes, root is not None
    )


def _shape(text: str, at: int) -> tuple[Shape, int]:
    """The shape that starts at `at`, and where it ends."""
    if text[at] != "(":
        found = ARRAY.match(text, at)
        if not found:
            raise Fault(f"HLO shape not understood: {text[at : at + 60]!r}")
        dtype, dims, layout = found.groups(default="")
        space = re.search(r"S\((\d+)\)", layout)
        sizes = tuple(map(int, re.findall(r"\d+", dims)))
        return Buffer(dtype, sizes, int(space.group(1)) if space else 0), found.end()
    parts: list[Shape] = []
    at += 1
    while text[at] != ")":
        part, at = _shape(text, at)
        parts.append(part)
        while text[at] in ", ":
            at += 1
    return tuple(parts), at + 1


def _closing(text: str, at: int) -> int:
    """Where the bracket that was opened before `at` closes."""
    depth = 1
    for bracket in re.finditer(r"[()]", text[at:]):
        depth += 1 if bracket.group() == "(" else -1
        if depth == 0:
            return at + bracket.start()
    raise Fault(f"HLO line not understood: {text[:60]!r}")
