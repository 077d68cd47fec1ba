"""Charts of a sweep: its loss curves, and word errors, loss and cost against what was varied."""

from collections.abc import Callable, Mapping, Sequence
import statistics

from markupsafe import Markup

from launch.charts.line_chart import XY, Axis, Mark, Series, chart, series_colour
from launch.sweep.ledger import Cell
from launch.sweep_report.cell_figures import CellGroups, amount, final_figure
from launch.sweep_report.loss_curves import Curve
from launch.terminal.number_format import format_count, format_number, format_power

LOSS = Axis("loss, nats a text token", format_number)
ERRORS = Axis("word error rate", lambda value: f"{100 * value:.3g}%", log=False, zero=True)
PARAMS = Axis("parameters", format_count)

CellFigure = Callable[[Cell], float | None]


def curves_chart(
    cells: Sequence[Cell], found: Mapping[str, Curve], kinds: CellGroups, name: str
) -> Markup:
    """Training loss over tokens or FLOPs, a line a cell; "" where there is none."""
    x = {
        "tokens": Axis("positions trained on", format_count),
        "flops": Axis("FLOPs of training", format_power),
    }[name]

    groups = []
    for place, title in enumerate(kinds.names):
        marks = []
        for cell in kinds.cells(cells, place):
            if cell.id in found and cell.steps and (whole := amount(cell, name)):
                points = tuple((whole * step / cell.steps, loss) for step, loss in found[cell.id])
                marks.append(Mark(points, cell_tooltip(cell), "curve thin"))
        if marks:
            groups.append(Series(title, series_colour(place, len(kinds.names)), tuple(marks)))
    return chart(groups, x, LOSS, f"training loss over {name}") if groups else Markup()


def scatter(
    cells: Sequence[Cell], kinds: CellGroups, of_x: CellFigure, of_y: CellFigure, x: Axis, y: Axis
) -> Markup:
    """Dots of the cells that have both figures, joined within a group; "" where there is none."""
    groups = []
    for place, name in enumerate(kinds.names):
        pairs = [(of_x(cell), of_y(cell), cell) for cell in kinds.cells(cells, place)]
        known = [(a, b, cell) for a, b, cell in pairs if a is not None and b is not None]
        known = [one for one in known if (one[0] > 0 or not x.log) and (one[1] > 0 or not y.log)]
        dots = [Mark(((a, b),), cell_tooltip(cell), "dot") for a, b, cell in known]
        if dots:
            path = means([(a, b) for a, b, _ in known])
            joined = [Mark(path, name, "curve thin")] if len(path) > 1 else []
            groups.append(Series(name, series_colour(place, len(kinds.names)), (*joined, *dots)))
    return chart(groups, x, y, f"{y.title} against {x.title}") if groups else Markup()


def means(points: Sequence[XY]) -> tuple[XY, ...]:
    """The mean height at each place, from left to right."""
    places = sorted({a for a, _ in points})
    return tuple((a, statistics.fmean(y for x, y in points if x == a)) for a in places)


def cell_tooltip(cell: Cell) -> str:
    """A cell in a line, for a tooltip."""
    parts = [f"cell {cell.number}"]
    for name, written, unit in (
        ("params", format_count, "parameters"),
        ("tokens", format_count, "positions"),
        ("flops", format_power, "FLOPs"),
    ):
        found = amount(cell, name)
        parts += [f"{written(found)} {unit}"] if found else []
    for name in ("loss", "wer"):
        found = final_figure(cell, name)
        parts += [f"{name} {format_number(found)}"] if found is not None else []
    return " · ".join(parts if cell.state == "done" else [*parts, cell.state])
