"""How far a sweep is: a table of its cells, and when it will end at the pace seen so far."""

from collections import Counter
from collections.abc import Mapping, Sequence
import math
import time
from typing import Any

from launch.sweep import claim_owner
from launch.sweep.ledger import Cell
from launch.sweep.spec import differing_fields
from launch.terminal.number_format import format_seconds, shorten

SHOWN = 40  # cells of a live table; the rest is counted


def state(cell: Cell) -> str:
    """The state as it is: one that says "running", and whose owner is gone, is "lost"."""
    if cell.state != "running" or cell.owner is None:
        return cell.state
    return "running" if claim_owner.is_alive({**cell.owner, "beat": cell.beat}) else "lost"


def remaining_seconds(cells: Sequence[Cell]) -> dict[str, float | None]:
    """Seconds of work left in each cell that is not done; None where nothing tells the pace.

    A running cell goes on at its own rate. Others go at the seconds a FLOP of the cell nearest in
    size that has shown them: small models reach fewer FLOP/s than large ones.
    """
    paces = {cell.id: pace for cell in cells if (pace := _pace(cell)) is not None}
    sizes = {cell.id: math.log(max(cell.plan.get("params") or 1, 1)) for cell in cells}
    left: dict[str, float | None] = {}
    for cell in cells:
        if cell.state == "done":
            continue
        share = 1 - cell.step / cell.steps
        near = min(paces, key=lambda name: abs(sizes[name] - sizes[cell.id]), default=None)
        work = cell.plan.get("flops")
        if cell.state == "running" and cell.rate:
            left[cell.id] = (cell.steps - cell.step) / cell.rate
        else:
            left[cell.id] = work * share * paces[near] if near is not None and work else None
    return left


def eta(cells: Sequence[Cell], left: Mapping[str, float | None]) -> float | None:
    """Seconds until all is done with as many cells at once as now; None where nobody can tell."""
    if any(seconds is None for seconds in left.values()):
        return None
    known = [seconds for seconds in left.values() if seconds is not None]
    width = max(sum(state(cell) == "running" for cell in cells), 1)
    return max(max(known, default=0.0), sum(known) / width)


def figures(cells: Sequence[Cell]) -> dict[str, Any]:
    """All of it as plain data."""
    left = remaining_seconds(cells)
    return {
        "states": dict(Counter(map(state, cells))),
        "eta_seconds": eta(cells, left),
        "cells": [
            {
                "id": cell.id,
                "state": state(cell),
                "attempt": cell.attempt,
                "step": cell.step,
                "steps": cell.steps,
                "left_seconds": left.get(cell.id, 0.0),
                "loss": (cell.result or {}).get("loss"),
                "wer": (cell.result or {}).get("wer"),
                "error": cell.error,
                "overrides": dict(cell.overrides),
            }
            for cell in cells
        ],
    }


def lines(cells: Sequence[Cell], most: int = 0) -> list[str]:
    """The table as text, for people; of up to `most` cells, those not yet done first (0: all)."""
    left = remaining_seconds(cells)
    counts = Counter(map(state, cells))
    shown = list(cells)
    if most and len(cells) > most:
        order = ("running", "lost", "failed", "preempted", "pending", "done")
        shown = sorted(cells, key=lambda cell: (order.index(state(cell)), cell.number))[:most]
    varied = differing_fields([cell.overrides for cell in cells])
    rows = [("cell", "state", "updates", "left", "loss", "WER", *varied)]
    for cell in shown:
        result = cell.result or {}
        rows.append(
            (
                cell.id,
                state(cell) + (f" ({cell.attempt})" if cell.attempt > 1 else ""),
                f"{cell.step:,}/{cell.steps:,}",
                format_seconds(left[cell.id]) if cell.id in left else "",
                f"{result['loss']:.3f}" if result else "",
                f"{result['wer']:.1%}" if result.get("wer") is not None else "",
                *(shorten(cell.overrides.get(name, "")) for name in varied),
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    table = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    table += [f"{'':10}  {cell.error}" for cell in shown if cell.error]
    if len(shown) < len(cells):
        table.append(f"… and {len(cells) - len(shown)} more")
    said = ", ".join(f"{count} {name}" for name, count in counts.items())
    ends = eta(cells, left)
    if left and ends is not None:
        when = time.strftime("%d %b %H:%M", time.localtime(time.time() + ends))
        said += f"; {format_seconds(ends)} left, until {when}"
    return [*table, said]


def _pace(cell: Cell) -> float | None:
    """Seconds a FLOP, where the cell has shown it."""
    work = cell.plan.get("flops")
    if not work:
        return None
    if cell.result and cell.result.get("train_seconds"):
        return float(cell.result["train_seconds"] / work)
    return cell.steps / cell.rate / work if cell.rate else None
