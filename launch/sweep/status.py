"""The state of a sweep: a table of its cells, and when it will end at the pace seen so far."""

from collections import Counter
from collections.abc import Mapping, Sequence
import math
import time
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from launch.sweep import claim_owner
from launch.sweep.ledger import Cell
from launch.sweep.spec import differing_fields
from launch.terminal import text_table
from launch.terminal.number_format import format_seconds, shorten


def state(cell: Cell) -> str:
    """The state in the ledger; "lost" where that is "running" and the owner is gone."""
    if cell.state != "running" or cell.owner is None:
        return cell.state
    return "running" if claim_owner.is_alive({**cell.owner, "beat": cell.beat}) else "lost"


def remaining_seconds(cells: Sequence[Cell]) -> dict[str, float | None]:
    """Seconds of work left in each cell that is not done; None where no cell shows the pace.

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
    """Seconds until all is done with as many cells at once as now; None where one is unknown."""
    if any(seconds is None for seconds in left.values()):
        return None
    known = [seconds for seconds in left.values() if seconds is not None]
    width = max(sum(state(cell) == "running" for cell in cells), 1)
    return max(max(known, default=0.0), sum(known) / width)


def figures(cells: Sequence[Cell]) -> dict[str, Any]:
    """The state of a sweep as plain data."""
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


def lines(cells: Sequence[Cell]) -> list[str]:
    """The table as plain lines."""
    return text_table.lines(table(cells))


def table(cells: Sequence[Cell], most: int = 0) -> RenderableType:
    """A row a cell with what differs between cells, then what failed ones say, then the counts.

    Of more cells than fit `most` lines, those not yet done come first, and the rest is counted;
    0 shows all, in order.
    """
    shown = list(cells)
    if most and _line_count(shown) > most:
        shown.sort(key=lambda cell: (_URGENCY.index(state(cell)), cell.number))
        while _line_count(shown) > most:
            shown.pop()
    left = remaining_seconds(cells)
    varied = differing_fields([cell.overrides for cell in cells])
    heads = (*_HEADS, *varied)
    rows = [_row(cell, left, varied) for cell in shown]
    below = [Text(f"{'':10}  {cell.error}") for cell in shown if cell.error]
    if len(shown) < len(cells):
        below.append(Text(f"… and {len(cells) - len(shown)} more"))
    below.append(Text(_summary(cells, left)))
    for text in below:
        text.no_wrap, text.overflow = bool(most), "ellipsis"
    return Group(text_table.table(heads, rows, elastic=range(len(_HEADS), len(heads))), *below)


_HEADS = ("cell", "state", "updates", "left", "loss", "WER")
_URGENCY = ("running", "lost", "failed", "preempted", "pending", "done")


def _line_count(cells: Sequence[Cell]) -> int:
    return len(cells) + sum(bool(cell.error) for cell in cells)


def _row(cell: Cell, left: Mapping[str, float | None], varied: Sequence[str]) -> tuple[str, ...]:
    result = cell.result or {}
    return (
        cell.id,
        state(cell) + (f" ({cell.attempt})" if cell.attempt > 1 else ""),
        f"{cell.step:,}/{cell.steps:,}",
        format_seconds(left[cell.id]) if cell.id in left else "",
        f"{result['loss']:.3f}" if result else "",
        f"{result['wer']:.1%}" if result.get("wer") is not None else "",
        *(shorten(cell.overrides.get(name, "")) for name in varied),
    )


def _summary(cells: Sequence[Cell], left: Mapping[str, float | None]) -> str:
    """How many cells are in which state, and when all will be done."""
    text = ", ".join(f"{count} {name}" for name, count in Counter(map(state, cells)).items())
    seconds = eta(cells, left)
    if left and seconds is not None:
        when = time.strftime("%d %b %H:%M", time.localtime(time.time() + seconds))
        text += f"; {format_seconds(seconds)} left, until {when}"
    return text


def _pace(cell: Cell) -> float | None:
    """Seconds a FLOP, None where the cell has not shown them."""
    work = cell.plan.get("flops")
    if not work:
        return None
    if cell.result and cell.result.get("train_seconds"):
        return float(cell.result["train_seconds"] / work)
    return cell.steps / cell.rate / work if cell.rate else None
