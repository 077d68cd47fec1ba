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
    cells: Sequence[Cell], curves: Mapping[str, Curve], groups: CellGroups, name: str
) -> Markup:
    """Training loss over `name`, tokens or flops, a line a cell; "" where no cell has a curve.

    `curves` are by the id of the cell.
    """
    x = {
        "tokens": Axis("positions trained on", format_count),
        "flops": Axis("FLOPs of training", format_power),
    }[name]

    series = []
    for index, title in enumerate(groups.names):
        marks = []
        for cell in groups.cells(cells, index):
            if cell.id in curves and cell.steps and (total := amount(cell, name)):
                points = tuple((total * step / cell.steps, loss) for step, loss in curves[cell.id])
                marks.append(Mark(points, cell_tooltip(cell), "curve thin"))
        if marks:
            series.append(Series(title, series_colour(index, len(groups.names)), tuple(marks)))
    return chart(series, x, LOSS, f"training loss over {name}") if series else Markup()


def scatter(
    cells: Sequence[Cell], groups: CellGroups, of_x: CellFigure, of_y: CellFigure, x: Axis, y: Axis
) -> Markup:
    """A dot a cell that has both figures, means joined by a line a group; "" without any cell."""
    series = []
    for index, name in enumerate(groups.names):
        pairs = [(of_x(cell), of_y(cell), cell) for cell in groups.cells(cells, index)]
        known = [(a, b, cell) for a, b, cell in pairs if a is not None and b is not None]
        known = [one for one in known if (one[0] > 0 or not x.log) and (one[1] > 0 or not y.log)]
        dots = [Mark(((a, b),), cell_tooltip(cell), "dot") for a, b, cell in known]
        if dots:
            path = means([(a, b) for a, b, _ in known])
            joined = [Mark(path, name, "curve thin")] if len(path) > 1 else []
            series.append(Series(name, series_colour(index, len(groups.names)), (*joined, *dots)))
    return chart(series, x, y, f"{y.title} against {x.title}") if series else Markup()


def means(points: Sequence[XY]) -> tuple[XY, ...]:
    """The mean of y at each x, by ascending x."""
    xs = sorted({x for x, _ in points})
    return tuple((a, statistics.fmean(y for x, y in points if x == a)) for a in xs)


def cell_tooltip(cell: Cell) -> str:
    """A line about a cell: its sizes and, where it is done, its loss and WER."""
    parts = [f"cell {cell.number}"]
    for name, format_value, unit in (
        ("params", format_count, "parameters"),
        ("tokens", format_count, "positions"),
        ("flops", format_power, "FLOPs"),
    ):
        value = amount(cell, name)
        parts += [f"{format_value(value)} {unit}"] if value else []
    for name in ("loss", "wer"):
        value = final_figure(cell, name)
        parts += [f"{name} {format_number(value)}"] if value is not None else []
    return " · ".join(parts if cell.state == "done" else [*parts, cell.state])
