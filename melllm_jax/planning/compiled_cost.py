"""Reads what a compiled program does in one run on one chip from the text of its optimised HLO.

How long XLA thinks a step takes is best had from `ProgramCost.matrix_cycles` over the chip's clock
for matrix products (8192³ in bfloat16: 88 % of the peak rate on v5e, 90 % on v5p), from `traffic`
over its bandwidth for the rest, and from `collectives` over its links. `ProgramCost.cycles` bounds
it from above: what is no matrix product is estimated at 1.7 times (v5e) to 2.3 times (v5p, v6e) the
time that its bytes take, in on-chip memory too, and Pallas kernels and collectives have no
estimate. `cost_analysis()["optimal_seconds"]` is none: it counts the body of a loop once, knows no
more than bytes and FLOPs at peak, and for a step with collectives inside fusions it was −4.0
seconds.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
import dataclasses
import functools
import pathlib
import re
import tempfile
import types
from typing import NamedTuple

import jax

from melllm_jax.errors import Fault
from melllm_jax.planning import hbm_traffic, hlo_text, trip_counts
from melllm_jax.planning.collectives import Collective, read_collective, slice_axes


@dataclasses.dataclass(frozen=True)
class ProgramCost:
    """One run of a compiled program, as one chip sees it."""

    collectives: tuple[Collective, ...]  # those that send most first
    traffic: float  # bytes that move to and from main memory, estimated
    cycles: int | None  # XLA's estimate for all instructions that it gives one; None off TPUs
    matrix_cycles: int | None  # the part of them that its model of the matrix units gave
    unknown: tuple[str, ...]  # loops whose trip count is not known; each counts as one turn


def compile_with_hlo(
    lowered: jax.stages.Lowered, options: Mapping[str, str | bool] = types.MappingProxyType({})
) -> tuple[jax.stages.Compiled, str]:
    """A program compiled with these options of XLA, and the text of its optimised HLO.

    A program for TPUs is read from what the compiler dumps, which costs a tenth more time: of some
    that libtpu 0.0.52 compiles for absent TPUs, `as_text()` fails (an async-update has more
    operands than its own check allows). Raises Fault where no text can be had.
    """
    with tempfile.TemporaryDirectory(prefix="melllm-hlo-") as folder:
        dump: dict[str, str | bool] = {"xla_dump_to": folder, "xla_dump_hlo_as_text": True}
        program = lowered.compile(compiler_options={**dump, **options})
        dumps = list(pathlib.Path(folder).glob("*.after_codegen.txt"))
        if dumps:
            return program, max(dumps, key=lambda path: path.stat().st_size).read_text()
    try:
        return program, program.as_text() or ""
    except jax.errors.JaxRuntimeError as error:
        raise Fault(f"XLA gives no text of the compiled program: {error}") from error


def program_cost(text: str, sizes: Mapping[str, int]) -> ProgramCost:
    """What the program that `text` prints does, for a mesh of these axes and sizes.

    Raises Fault where the text is no HLO module.
    """
    reader = _Reader(hlo_text.parse_module(text), sizes)
    cost = reader.cost(reader.module.entry)
    collectives = (
        dataclasses.replace(one, times=times, bytes=one.bytes * times)
        for one, times in cost.sent.items()
    )
    return ProgramCost(
        collectives=tuple(sorted(_merge_alike(collectives), key=lambda one: -one.bytes)),
        traffic=cost.traffic,
        cycles=cost.cycles if cost.cycles else None,
        matrix_cycles=cost.matrix if cost.cycles else None,
        unknown=tuple(sorted(cost.unknown)),
    )


class _Cost(NamedTuple):
    """What a computation does in one run."""

    sent: Counter[Collective] = Counter()
    traffic: float = 0.0
    cycles: int = 0
    matrix: int = 0
    unknown: frozenset[str] = frozenset()

    def plus(self, other: "_Cost", times: int = 1) -> "_Cost":
        """The sum of this and `times` runs of the other."""
        sent = Counter(self.sent)
        for one, runs in other.sent.items():
            sent[one] += runs * times
        return _Cost(
            sent,
            self.traffic + times * other.traffic,
            self.cycles + times * other.cycles,
            self.matrix + times * other.matrix,
            self.unknown | other.unknown,
        )

    @property
    def bytes_moved(self) -> float:
        """All bytes, of memory and links: the measure of which branch costs most."""
        return self.traffic + sum(one.bytes * runs for one, runs in self.sent.items())


class _Reader:
    """Costs of a module's computations, each counted once."""

    def __init__(self, module: hlo_text.HloModule, sizes: Mapping[str, int]):
        self.module, self.axes = module, slice_axes(sizes, module.devices)
        self.trip_counts = trip_counts.TripCounts(module)
        self.cost = functools.cache(self._cost)

    def _cost(self, name: str) -> _Cost:
        """What one run of the computation `name` does, its calls and loops included."""
        computation = self.module.computations[name]
        total, chains = _Cost(), set[str]()
        for instruction in computation.instructions.values():
            moved = hbm_traffic.hbm_bytes(self.module, computation, instruction)
            cycles = instruction.number("estimated_cycles") or 0
            matrix = cycles if "COST_MODEL_TYPE_INVALID" not in instruction.attributes else 0
            total = total.plus(_Cost(Counter(), moved, cycles, matrix))
            total = total.plus(self._inside(instruction, chains))
            if instruction.op == "while":
                count = self.trip_counts.trip_count(computation, instruction)
                if count is None:
                    total = total.plus(_Cost(unknown=frozenset({instruction.name})))
                for body in (*instruction.callees("body"), *instruction.callees("condition")):
                    total = total.plus(self.cost(body), 1 if count is None else count)
            elif branches := _branches(instruction):
                total = total.plus(max(map(self.cost, branches), key=lambda cost: cost.bytes_moved))
            elif instruction.op == "call":
                total = total.plus(self.cost(instruction.callees("to_apply")[0]))
        return total

    def _inside(self, instruction: hlo_text.Instruction, chains: set[str]) -> _Cost:
        """Collectives that an instruction is, or that the fusion or async call around them hides.

        TPU fusions print one collective where it starts, where it goes on beside other work and
        where it ends; `chains` holds those that were met.
        """
        waits = '"is_sync":true' in instruction.attributes
        hidden = instruction.op.endswith("-start") and not waits
        around = instruction.callees("calls") or instruction.callees("called_computations")
        if instruction.op not in {"fusion", "async-start", "custom-call"} or not around:
            found = read_collective(instruction, self.axes, hidden=hidden)
            return _Cost(Counter([found] if found else []))
        sent: Counter[Collective] = Counter()
        for callee in map(self.module.computations.__getitem__, around):
            for inner in callee.instructions.values():
                sent.update(self._wrapped(callee, inner, hidden, chains))
        return _Cost(sent)

    def _wrapped(
        self,
        around: hlo_text.Computation,
        inner: hlo_text.Instruction,
        hidden: bool,
        chains: set[str],
    ) -> Counter[Collective]:
        """Collectives that an instruction inside such a fusion or call is, or wraps in its turn."""
        chain = re.search(r'chain_id="(\d+)"', inner.attributes)
        if chain and chain.group(1) in chains:
            return Counter()
        chains.update(chain.groups() if chain else ())
        hidden = hidden or chain is not None
        scattered = _is_reduce_scatter(around, inner)
        found = read_collective(inner, self.axes, hidden=hidden, scattered=scattered)
        if found:
            return Counter([found])
        deeper = self._inside(inner, chains).sent
        return Counter(
            {dataclasses.replace(one, hidden=hidden or one.hidden): n for one, n in deeper.items()}
        )


def _branches(instruction: hlo_text.Instruction) -> tuple[str, ...]:
    """Computations of a conditional's branches."""
    sides = (instruction.callees(f"{side}_computation") for side in ("true", "false"))
    return instruction.callees("branch_computations") or tuple(name for s in sides for name in s)


def _is_reduce_scatter(computation: hlo_text.Computation, reduced: hlo_text.Instruction) -> bool:
    """Whether a device keeps only its own part of an all-reduce, as fused reduce-scatters do."""
    if reduced.op != "all-reduce":
        return False
    users = [i for i in computation.instructions.values() if reduced.name in i.operands]
    views = {"get-tuple-element", "bitcast"}
    while any(i.op in views for i in users):
        names = {i.name for i in users if i.op in views}
        more = [i for i in computation.instructions.values() if names & set(i.operands)]
        users = [i for i in users if i.op not in views] + more
    return bool(users) and all(i.op == "dynamic-slice" for i in users)


def _merge_alike(collectives: Iterable[Collective]) -> list[Collective]:
    """Collectives that differ in their bytes and runs alone, each group as one."""
    groups: dict[tuple, list[Collective]] = {}
    for one in collectives:
        groups.setdefault((one.kind, one.axes, one.devices, one.hidden), []).append(one)
    return [
        dataclasses.replace(
            group[0], times=sum(o.times for o in group), bytes=sum(o.bytes for o in group)
        )
        for group in groups.values()
    ]
