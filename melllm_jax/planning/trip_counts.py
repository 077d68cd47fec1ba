"""Reads how often the loops of a compiled program run.

XLA writes a loop's trip count beside it on CPUs and GPUs. On TPUs that is lost on the way,
and the loop itself is read: a counter that starts at a constant, grows by one and is compared
with one, each looked for through copies and through the carries of the loops around.
"""

import re

from melllm_jax.planning import hlo_text

COPY_OPS = {"copy", "bitcast", "copy-start", "copy-done"}


class TripCounts:
    """Trip counts of the loops of one module."""

    def __init__(self, module: hlo_text.HloModule):
        self.module = module
        self.callers = {
            body: (computation, instruction)
            for computation in module.computations.values()
            for instruction in computation.instructions.values()
            for body in instruction.callees("body")
        }

    def trip_count(
        self, computation: hlo_text.Computation, loop: hlo_text.Instruction
    ) -> int | None:
        """How often the body of `loop`, an instruction of `computation`, runs; None: not known."""
        known = re.search(r'known_trip_count":\{"n":"(\d+)"', loop.attributes)
        if known:
            return int(known.group(1))
        condition, body = (
            self.module.computations[loop.callees(which)[0]] for which in ("condition", "body")
        )
        test = condition.root
        if test.op != "compare" or "direction=LT" not in test.attributes:
            return None
        counter, limit = (_copy_source(condition, name) for name in test.operands)
        if counter.op != "get-tuple-element":
            return None
        start = self._at_first(computation, loop, counter.index)
        step = self._step(body, counter.index)
        if limit.op == "get-tuple-element":
            end = self._always(computation, loop, limit.index)
        else:
            end = self._constant(condition, limit.name)
        if start is None or end is None or not step or step < 0:
            return None
        return max(0, -(-(end - start) // step))

    def _step(self, body: hlo_text.Computation, index: int) -> int | None:
        """By how much part `index` of the carry grows in one run of the body."""
        grown = _copy_source(body, body.root.operands[index])
        if grown.op != "add":
            return None
        for before, by in (grown.operands, grown.operands[::-1]):
            source = _copy_source(body, before)
            if source.op == "get-tuple-element" and source.index == index:
                return self._constant(body, by)
        return None

    def _constant(self, computation: hlo_text.Computation, name: str) -> int | None:
        """The integer that a scalar always is; None: not known."""
        value = _copy_source(computation, name)
        if value.op == "constant" and re.fullmatch(r"-?\d+", value.inside):
            return int(value.inside)
        if value.op == "get-tuple-element" and computation.name in self.callers:
            outer, loop = self.callers[computation.name]
            source = _copy_source(computation, value.operands[0])
            return self._always(outer, loop, value.index) if source.op == "parameter" else None
        return None

    def _at_first(
        self, outer: hlo_text.Computation, loop: hlo_text.Instruction, index: int
    ) -> int | None:
        """The integer in part `index` of a loop's carry at its start; None: not known."""
        start = _copy_source(outer, loop.operands[0])
        return self._constant(outer, start.operands[index]) if start.op == "tuple" else None

    def _always(
        self, outer: hlo_text.Computation, loop: hlo_text.Instruction, index: int
    ) -> int | None:
        """The integer in part `index` of a loop's carry, where the body passes it on unchanged."""
        body = self.module.computations[loop.callees("body")[0]]
        passed = _copy_source(body, body.root.operands[index])
        same = passed.op == "get-tuple-element" and passed.index == index
        return self._at_first(outer, loop, index) if same else None


def _copy_source(computation: hlo_text.Computation, name: str) -> hlo_text.Instruction:
    """The instruction that a value is a copy of."""
    value = computation.instructions[name]
    while value.op in COPY_OPS:
        value = computation.instructions[value.operands[0]]
    return value
