"""Charts of a sweep: its loss curves, and word errors, loss and cost against what was varied."""

from collections.abc import Callable, Mapping, Sequence
import statistics

from launch.axes import Axis, Group, Mark, Point, chart, shade
from launch.inspect_html import counted, number, power
from launch.ledger import Cell
from launch.report_curves import Curve
from launch.report_facts import Kinds, amount, scored

LOSS = Axis("loss, nats a text token", number)
ERRORS = Axis("word error rate", lambda value: f"{100 * value:.3g}%", log=False, zero=True)
PARAMS = Axis("parameters", counted)

Wanted = Callable[[Cell], float | None]


def curves(cells: Sequence[Cell], found: Mapping[str, Curve], kinds: Kinds, name: str) -> str:
    """Training loss over tokens or FLOPs, a line a cell; "" where there is none."""
    x = {
        "tokens": Axis("positions trained on", counted),
        "flops": Axis("FLOPs of training", power),
    }[name]

    groups = []
    for place, title in enumerate(kinds.names):
        marks = []
        for cell in kinds.cells(cells, place):
            if cell.id in found and cell.steps and (whole := amount(cell, name)):
                points = tuple((whole * step / cell.steps, loss) for step, loss in found[cell.id])
                marks.append(Mark(points, told(cell), "curve thin"))
        if marks:
            groups.append(Group(title, shade(place, len(kinds.names)), tuple(marks)))
    return chart(groups, x, LOSS, f"training loss over {name}") if groups else ""


def scatter(
    cells: Sequence[Cell], kinds: Kinds, of_x: Wanted, of_y: Wanted, x: Axis, y: Axis
) -> str:
    """Dots of the cells that have both figures, joined within a group; "" where there is none."""
    groups = []
    for place, name in enumerate(kinds.names):
        pairs = [(of_x(cell), of_y(cell), cell) for cell in kinds.cells(cells, place)]
        known = [(a, b, cell) for a, b, cell in pairs if a is not None and b is not None]
        known = [one for one in known if (one[0] > 0 or not x.log) and (one[1] > 0 or not y.log)]
        dots = [Mark(((a, b),), told(cell), "dot") for a, b, cell in known]
        if dots:
            path = means([(a, b) for a, b, _ in known])
            joined = [Mark(path, name, "curve thin")] if len(path) > 1 else []
            groups.append(Group(name, shade(place, len(kinds.names)), (*joined, *dots)))
    return chart(groups, x, y, f"{y.title} against {x.title}") if groups else ""


def means(points: Sequence[Point]) -> tuple[Point, ...]:
    """The mean height at each place, from left to right."""
    places = sorted({a for a, _ in points})
    return tuple((a, statistics.fmean(y for x, y in points if x == a)) for a in places)


def told(cell: Cell) -> str:
    """A cell in a line, for a tooltip."""
    parts = [f"cell {cell.number}"]
    for name, written, unit in (
        ("params", counted, "parameters"),
        ("tokens", counted, "positions"),
        ("flops", power, "FLOPs"),
    ):
        found = amount(cell, name)
        parts += [f"{written(found)} {unit}"] if found else []
    for name in ("loss", "wer"):
        found = scored(cell, name)
        parts += [f"{name} {number(found)}"] if found is not None else []
    return " · ".join(parts if cell.state == "done" else [*parts, cell.state])
