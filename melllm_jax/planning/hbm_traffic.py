"""Counts bytes that an instruction of a compiled program moves to and from main memory.

An estimate: operands are read once and results written once; what lies in on-chip memory moves
nothing. Of an array of which a part is read or replaced in place, as a scan over stacked layers
does, the part counts. Padding of tiles and reads that caches save are not seen.
"""

from collections.abc import Iterator

from melllm_jax.planning import collectives, hlo_text

HOST_MEMORY = 5  # the memory space of the host, on every platform
# These name what is there already, or are calls whose insides count.
FREE_OPS = {
    "parameter",
    "constant",
    "tuple",
    "get-tuple-element",
    "bitcast",
    "after-all",
    "domain",
} | {*("partition-id", "replica-id", "opt-barrier", "while", "conditional", "call")}
PARTIAL_READS = {
    "dynamic-slice",
    "slice",
    "gather",
}  # these read what they return, of their first operand
IN_PLACE_WRITES = {
    "dynamic-update-slice": 1,
    "scatter": 2,
}  # in place: which operand is what is written
VIEW_OPS = {"bitcast", "convert", "copy", "reshape", "transpose"}  # in a fusion, element by element
FREE_CUSTOM_CALLS = (
    "AllocateBuffer",
    "ConcatBitcast",
    "AsyncCollectiveDone",
)  # custom calls that move none


def hbm_bytes(
    module: hlo_text.HloModule, inside: hlo_text.Computation, instruction: hlo_text.Instruction
) -> float:
    """Bytes of main memory that one run of an instruction reads and writes."""
    op, instructions = instruction.op, inside.instructions
    if op in FREE_OPS or op.endswith(("-done", "-update")):
        return 0.0
    if op == "custom-call" and any(
        f'"{name}"' in instruction.attributes for name in FREE_CUSTOM_CALLS
    ):
        return 0.0
    if op == "async-start":
        callee = module.computations[instruction.callees("calls")[0]]
        return sum((hbm_bytes(module, callee, i) for i in callee.instructions.values()), 0.0)
    if op == "fusion":
        return _fusion_bytes(module, inside, instruction)
    results = tuple(hlo_text.leaves(collectives.result_shape(instruction)))
    if op in {"copy-start", "recv"}:
        results = instruction.buffers[:1]  # the rest are the source again, and flags
    if op == "send":
        results = ()
    if op in IN_PLACE_WRITES:
        part = _buffer_bytes(
            module, instructions[instruction.operands[IN_PLACE_WRITES[op]]].buffers
        )
        return part + part * _in_hbm(module, results[0])
    if op in PARTIAL_READS:
        source = instructions[instruction.operands[0]].buffers[0]
        return sum(b.bytes for b in results) * _in_hbm(module, source) + _buffer_bytes(
            module, results
        )
    operands = (instructions[name].buffers for name in dict.fromkeys(instruction.operands))
    return sum(_buffer_bytes(module, buffers) for buffers in operands) + _buffer_bytes(
        module, results
    )


def continues_collective(computation: hlo_text.Computation) -> bool:
    """Whether a fusion goes on with, or ends, a collective that another fusion started."""
    texts = [i.attributes for i in computation.instructions.values()]
    return any("chain_id=" in t for t in texts) and not any("CollectiveStart" in t for t in texts)


def _fusion_bytes(
    module: hlo_text.HloModule, inside: hlo_text.Computation, fusion: hlo_text.Instruction
) -> float:
    """Bytes that a fusion reads of its operands and writes of its results."""
    callee = module.computations[fusion.callees("calls")[0]]
    total = 0.0
    for parameter, name in zip(callee.parameters, fusion.operands, strict=True):
        buffer = inside.instructions[name].buffers[0]
        total += _in_hbm(module, buffer) * _bytes_read(module, callee, parameter)
    written = _bytes_written(module, callee, callee.root)
    for buffer, part in zip(fusion.buffers, written, strict=True):
        total += _in_hbm(module, buffer) * part
    return total


def _bytes_read(
    module: hlo_text.HloModule, inside: hlo_text.Computation, value: hlo_text.Instruction
) -> float:
    """Bytes of `value`, an array in a fusion, that those who use it read."""
    whole = sum((b.bytes for b in value.buffers), 0.0)
    total = 0.0
    for user in inside.instructions.values():
        if value.name not in user.operands:
            continue
        first = user.operands[0] == value.name
        if user.op in VIEW_OPS:
            total += _bytes_read(module, inside, user) * whole / max(user.buffers[0].bytes, 1)
        elif user.op == "fusion":
            callee = module.computations[user.callees("calls")[0]]
            total += _bytes_read(module, callee, callee.parameters[user.operands.index(value.name)])
        elif user.op in PARTIAL_READS and first:
            total += sum(b.bytes for b in user.buffers)
        elif user.op in IN_PLACE_WRITES and first:
            total += 0 if _is_returned(inside, user) else _bytes_read(module, inside, user)
        elif not (
            (user.op == "tuple" and user.root)
            or (_is_collective(user) and continues_collective(inside))
        ):
            return whole
    # A value that is returned, or seen in another form, and used by none is read to be written.
    return min(total, whole) if total or not value.root else whole


def _is_returned(inside: hlo_text.Computation, value: hlo_text.Instruction) -> bool:
    """Whether a fusion returns `value` as it is, so that it may take the place of an operand."""
    if value.root:
        return True
    users = (i for i in inside.instructions.values() if value.name in i.operands)
    return any(i.op in {"tuple", "bitcast"} and _is_returned(inside, i) for i in users)


def _bytes_written(
    module: hlo_text.HloModule, inside: hlo_text.Computation, value: hlo_text.Instruction
) -> Iterator[float]:
    """Bytes that a fusion writes for each array of `value`, a part of what it returns."""
    source = inside.instructions[value.operands[0]] if value.operands else value
    if value.op == "tuple":
        for name in value.operands:
            yield from _bytes_written(module, inside, inside.instructions[name])
    elif value.op == "bitcast":
        yield from _bytes_written(module, inside, source)
    elif value.op in IN_PLACE_WRITES:
        update = inside.instructions[value.operands[IN_PLACE_WRITES[value.op]]]
        yield sum(b.bytes for b in update.buffers)
    elif value.op == "fusion":
        callee = module.computations[value.callees("calls")[0]]
        yield from _bytes_written(module, callee, callee.root)
    elif "AsyncCollectiveStart" in value.attributes:
        yield from (0.0, *(b.bytes for b in value.buffers[1:]))  # the first is the source again
    elif value.op == "parameter" or (_is_collective(value) and continues_collective(inside)):
        yield from (0.0 for _ in value.buffers)
    else:
        yield from (b.bytes for b in value.buffers)


def _is_collective(value: hlo_text.Instruction) -> bool:
    """Whether an instruction stands for a collective, whose bytes count where it starts."""
    return (
        value.op.removesuffix("-start") in collectives.RING_FACTORS
        or "AsyncCollective" in value.attributes
    )


def _buffer_bytes(module: hlo_text.HloModule, buffers: tuple[hlo_text.Buffer, ...]) -> float:
    """Bytes of those buffers that lie in main memory."""
    return sum((b.bytes * _in_hbm(module, b) for b in buffers), 0.0)


def _in_hbm(module: hlo_text.HloModule, buffer: hlo_text.Buffer) -> bool:
    """Whether a buffer lies in main memory.

    A TPU numbers its on-chip memories from 1; a GPU's 1 is memory that NVLink may reach.
    """
    return buffer.space == 0 if module.tpu else buffer.space != HOST_MEMORY
