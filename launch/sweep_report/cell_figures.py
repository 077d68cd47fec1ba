"""Figures of the cells of a sweep for its page, and cells in groups by size or token rate.

A figure is of the result where there is one, else of the plan; one that is not finite counts as
missing.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
import dataclasses
import json
import math
import statistics
from typing import Any

from launch.sweep.ledger import Cell
from launch.sweep.spec import differing_fields
from launch.terminal.number_format import format_count, format_hours

MOST = 16  # groups, each with a colour: those of the ladder, and few enough to tell apart


def figure(tree: Mapping[str, Any] | None, name: str) -> float | None:
    """A finite number of a plan or a result, or None."""
    value = (tree or {}).get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def final_figure(cell: Cell, name: str) -> float | None:
    """A figure of the final evaluation; None of a cell that is not done."""
    return figure(cell.result, name) if cell.state == "done" else None


def amount(cell: Cell, name: str) -> float | None:
    """params, tokens or flops as measured, else as planned; None where it is not above 0."""
    found = final_figure(cell, name)
    found = figure(cell.plan, name) if found is None else found
    return found if found and found > 0 else None


def share(cell: Cell) -> float:
    """The share of a cell's updates that are made, 0 to 1."""
    return 1.0 if cell.state == "done" else min(cell.step / cell.steps, 1.0) if cell.steps else 0.0


def hours(cell: Cell) -> float | None:
    """Hours of training so far: measured of a done cell, by plan of the others."""
    seconds = final_figure(cell, "train_seconds")
    if seconds is not None:
        return seconds / 3600
    planned = figure(cell.plan, "hours")
    return planned * share(cell) if planned is not None else None


def cost(cell: Cell) -> float | None:
    """What the training so far has cost, at the plan's price of an hour."""
    spent, planned = hours(cell), figure(cell.plan, "hours")
    price = figure(cell.plan, "cost")
    return spent * price / planned if price and planned and spent is not None else None


def total(numbers: Sequence[float | None]) -> float | None:
    """The sum of those that are known; None where none is."""
    known = [value for value in numbers if value is not None]
    return math.fsum(known) if known else None


def common_rate_cells(cells: Sequence[Cell]) -> list[Cell]:
    """Cells of the commonest token rate among those done: others lie on another curve."""
    rates = Counter(r for cell in cells if (r := final_figure(cell, "r")))
    if not rates:
        return list(cells)
    common, _ = rates.most_common(1)[0]
    return [cell for cell in cells if final_figure(cell, "r") in (None, common)]


def cluster(values: Sequence[float], near: float = 1.08) -> list[list[float]]:
    """Numbers above 0 in groups, upwards: those within a factor of `near` of a neighbour."""
    groups: list[list[float]] = []
    for value in sorted(values):
        if groups and value <= groups[-1][-1] * near:
            groups[-1].append(value)
        else:
            groups.append([value])
    return groups


@dataclasses.dataclass(frozen=True)
class CellGroups:
    """Cells in groups, each to be drawn in a colour of its own."""

    title: str  # what the groups differ in
    names: tuple[str, ...]
    group_by_id: Mapping[str, int]  # index of the group by cell id; cells of no group are absent

    def cells(self, cells: Sequence[Cell], index: int) -> list[Cell]:
        """Those of `cells` that are in group `index`."""
        return [cell for cell in cells if self.group_by_id.get(cell.id) == index]


def group_by_amount(
    cells: Sequence[Cell],
    name: str,
    title: str,
    format_value: Callable[[float], str] = format_count,
) -> CellGroups:
    """Cells by an amount such as their size; neighbours share a group where there are too many."""
    known = {cell.id: found for cell in cells if (found := amount(cell, name))}
    groups = cluster(list(known.values()))
    each = max(1, math.ceil(len(groups) / MOST))  # neighbours that share a colour
    merged = [
        [value for group in groups[i : i + each] for value in group]
        for i in range(0, len(groups), each)
    ]
    tops = [group[-1] for group in merged]
    group_index = lambda value: next(i for i, top in enumerate(tops) if value <= top)
    return CellGroups(
        title,
        tuple(_range_text(group, format_value) for group in merged),
        {cell: group_index(value) for cell, value in known.items()},
    )


def _range_text(values: Sequence[float], format_value: Callable[[float], str]) -> str:
    """The first and last of ascending numbers; their median where all are near each other."""
    if len(cluster(values)) == 1:
        return format_value(statistics.median(values))
    return f"{format_value(values[0])} to {format_value(values[-1])}"


def group_by_rate(cells: Sequence[Cell]) -> CellGroups:
    """Done cells that differ in the token rate alone: of equal depth, width and sound heard."""
    heard = group_by_amount([cell for cell in cells if cell.state == "done"], "audio_hours", "")
    alike: dict[tuple[float | None, ...], list[Cell]] = {}
    for cell in cells:
        if cell.id in heard.group_by_id and final_figure(cell, "r"):
            like = (final_figure(cell, "d"), final_figure(cell, "l"), heard.group_by_id[cell.id])
            alike.setdefault(like, []).append(cell)
    groups = [
        group for group in alike.values() if len({final_figure(one, "r") for one in group}) > 1
    ]
    return CellGroups(
        "size and sound",
        tuple(
            f"{_median_amount(group, 'params')} parameters, {_median_sound(group)}"
            for group in groups
        ),
        {cell.id: index for index, group in enumerate(groups) for cell in group},
    )


def _median_amount(cells: Sequence[Cell], name: str) -> str:
    return format_count(statistics.median(amount(cell, name) or 0 for cell in cells))


def _median_sound(cells: Sequence[Cell]) -> str:
    return format_hours(statistics.median(final_figure(cell, "audio_hours") or 0 for cell in cells))


def group_cells(cells: Sequence[Cell]) -> CellGroups:
    """Cells by size; where all are of one size, by the first field that groups them."""
    sizes = group_by_amount(cells, "params", "parameters")
    if len(sizes.names) > 1:
        return sizes
    for field in differing_fields([cell.overrides for cell in cells]):
        values = [json.dumps(cell.overrides.get(field)) for cell in cells]
        names = list(dict.fromkeys(values))
        if len(names) <= min(MOST, len(cells) - 1 or 1):
            indices = map(names.index, values)
            by_id = {cell.id: index for cell, index in zip(cells, indices, strict=True)}
            return CellGroups(field, tuple(names), by_id)
    return sizes
