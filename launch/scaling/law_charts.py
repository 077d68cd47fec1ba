"""Charts of a fitted law: loss over FLOPs, isoFLOP parabolas, the best N and D, residuals.

Each is markup for a page (`line_chart.chart`) or a file of its own (`svg_file.standalone_svg`).
"""

from collections.abc import Iterator, Sequence
import dataclasses
import math

from markupsafe import Markup
import numpy as np

from launch.charts import line_chart
from launch.charts.line_chart import Axis, Mark, Series, series_colour
from launch.charts.svg_file import standalone_svg
from launch.scaling.intervals import cluster_indices
from launch.scaling.isoflop import IsoflopGroup
from launch.scaling.law_fit import LawFit
from launch.scaling.points import Point
from launch.terminal.number_format import format_count, format_number, format_power

INK, LAW, ODD = "var(--ink)", "var(--bar)", "var(--odd)"
CURVE_POINTS = 60  # of a drawn curve
BEYOND = 1.3  # times the budgets of a size, as far as its law is drawn
NAMED = 10  # sizes or budgets named in a legend, at most, and one more for the last
REACH = 10.0  # times the largest budget, as far as the best N and D are drawn


@dataclasses.dataclass(frozen=True)
class Chart:
    """The content of a chart, from which a page or a file is drawn."""

    series: tuple[Series, ...]
    x: Axis
    y: Axis
    about: str

    def html(self) -> Markup:
        """Markup for a page that has `line_chart.STYLE`."""
        return line_chart.chart(self.series, self.x, self.y, self.about)


FLOPS = Axis("FLOPs of training", format_power)
PARAMS = Axis("parameters N", format_count)


def losses(fit: LawFit) -> Markup:
    """Loss over FLOPs: the runs by size, the law of each size, and the frontier."""
    return _losses(fit).html()


def isoflop(fit: LawFit) -> Markup:
    """Loss over N: the runs of each budget, their parabola and its minimum. Empty without any."""
    return _isoflop(fit).html() if fit.isoflop.groups else Markup()


def optimum(fit: LawFit) -> Markup:
    """The best N and D over FLOPs with their 95 %, and what approaches 1 and 2 found."""
    return _optimal(fit).html()


def residuals(fit: LawFit) -> Markup:
    """How far each run lies from the law, in percent, over FLOPs."""
    return _residuals(fit).html()


def files(fit: LawFit) -> dict[str, str]:
    """Each chart as a file of its own, by name."""
    charts = {"losses": _losses(fit), "optimal": _optimal(fit), "residuals": _residuals(fit)}
    if fit.isoflop.groups:
        charts["isoflop"] = _isoflop(fit)
    return {
        f"{name}.svg": standalone_svg(chart.series, chart.x, chart.y, chart.about)
        for name, chart in charts.items()
    }


def _losses(fit: LawFit) -> Chart:
    series = []
    for size, name, colour, indices in _sizes(fit):
        runs = [fit.points[index] for index in indices]
        budgets = _geometric_grid(
            min(p.flops for p in runs) / BEYOND, max(p.flops for p in runs) * BEYOND
        )
        losses = fit.law.loss(np.full(CURVE_POINTS, size), budgets / (fit.per * size))
        law = tuple(zip(budgets, losses, strict=True))
        line = Mark(law, f"the law at N = {format_count(size)}", "curve thin")
        dots = [Mark(((point.flops, point.loss),), _tooltip(point), "dot") for point in runs]
        series.append(Series(name, colour, (line, *dots)))
    budgets = _geometric_grid(*fit.budgets)
    n, d = fit.law.best(budgets, fit.per)
    real = (n >= 1) & (d >= 1)  # of a law that was not determined, few or none
    front = zip(budgets[real], fit.law.loss(n[real], d[real]), strict=True)
    line = Mark(tuple(front), "the law at the best N of each budget", "curve dash")
    series.append(Series("best N of a budget", INK, (line,)))
    return Chart(
        tuple(series),
        FLOPS,
        Axis("loss, nats a token", format_number),
        "held-out loss over training FLOPs by model size, with the fitted law",
    )


def _isoflop(fit: LawFit) -> Chart:
    budgets = fit.isoflop.groups
    series = []
    for index, budget in enumerate(budgets):
        runs = [fit.points[member] for member in budget.members]
        flops = f"{format_power(budget.flops)} FLOPs"
        marks = [Mark(_parabola(budget, runs), f"parabola at {flops}", "curve")]
        for point, loss in zip(runs, budget.moved, strict=True):
            tooltip = f"{point.name}: N {format_count(point.params)}, loss {format_number(loss)}"
            marks.append(Mark(((point.params, loss),), tooltip, "dot"))
        if budget.best is not None and budget.loss is not None:
            tooltip = (
                f"minimum at N = {format_count(budget.best)}, loss {format_number(budget.loss)}"
            )
            marks.append(Mark(((budget.best, budget.loss),), tooltip, "ring"))
        name = _legend_name(flops, index, len(budgets))
        series.append(Series(name, series_colour(index, len(budgets)), tuple(marks)))
    return Chart(
        tuple(series),
        PARAMS,
        Axis("loss, nats a token", format_number, log=False),
        "held-out loss over model size at equal FLOPs, with parabolas and their minima",
    )


def _parabola(budget: IsoflopGroup, runs: Sequence[Point]) -> tuple[tuple[float, float], ...]:
    params = [point.params for point in runs]
    sizes = _geometric_grid(min(params), max(params))
    heights = np.polyval(budget.curve, np.log(sizes) - budget.middle)
    return tuple(zip(sizes.tolist(), heights.tolist(), strict=True))


def _optimal(fit: LawFit) -> Chart:
    series = (_best(fit, "N", 0, LAW), _best(fit, "D", 1, ODD))
    return Chart(
        series,
        FLOPS,
        Axis("parameters N, tokens D", format_count),
        "best parameters and tokens over training FLOPs with 95 % intervals",
    )


def _best(fit: LawFit, letter: str, index: int, colour: str) -> Series:
    """N or D of least loss: approach 3's line and band, 1's and 2's lines, and 2's minima.

    `index` is 0 for N, 1 for D.
    """
    budgets = _geometric_grid(fit.budgets[0], REACH * fit.budgets[1])
    drawn = np.array([law.best(budgets, fit.per)[index] for law in fit.samples])
    low, high = np.percentile(drawn, (2.5, 97.5), axis=0)
    edge = np.concatenate([[budgets, high], np.array([budgets, low])[:, ::-1]], axis=1)
    line = zip(budgets, fit.law.best(budgets, fit.per)[index], strict=True)
    exponent, coefficient = "ab"[index], f"{letter.lower()}_coefficient"
    growth = lambda value: f"{letter} ∝ C^{value:.2f}"
    marks = [
        Mark(tuple(map(tuple, edge.T)), f"95 % of {letter}", "area"),
        Mark(tuple(line), f"approach 3: {growth(fit.constants[exponent].value)}"),
    ]
    for name, found in (("1", fit.envelope.optimal), ("2", fit.isoflop.optimal)):
        if found:
            power_law = found[coefficient].value * budgets ** found[exponent].value
            tooltip = f"approach {name}: {growth(found[exponent].value)}"
            marks.append(
                Mark(tuple(zip(budgets, power_law, strict=True)), tooltip, "curve thin dash")
            )
    for group in fit.isoflop.groups:
        if group.best is not None:
            value = (group.best, group.flops / (fit.per * group.best))[index]
            tooltip = (
                f"approach 2: {letter} = {format_count(value)} at {format_power(group.flops)} FLOPs"
            )
            marks.append(Mark(((group.flops, value),), tooltip, "ring"))
    return Series(f"best {growth(fit.constants[exponent].value)}", colour, tuple(marks))


def _residuals(fit: LawFit) -> Chart:
    off = 100 * np.expm1(fit.residuals)
    series = []
    for _, name, colour, indices in _sizes(fit):
        dots = []
        for index in indices:
            point, value = fit.points[index], float(off[index])
            tooltip = f"{_tooltip(point)}, {value:+.2f} %"
            dots.append(Mark(((point.flops, value),), tooltip, "dot"))
        series.append(Series(name, colour, tuple(dots)))
    rings = []
    for row in fit.held_out.rows:
        value = 100 * (row.loss / row.predicted - 1)
        tooltip = f"{row.name}: {value:+.2f} % over what the smaller runs say"
        rings.append(Mark(((row.flops, value),), tooltip, "ring"))
    level = Mark(tuple((budget, 0.0) for budget in fit.budgets), "the law", "curve thin dash")
    name = "rings: by the law of the smaller runs alone" if rings else ""
    series.append(Series(name, INK, (level, *rings)))
    return Chart(
        tuple(series),
        FLOPS,
        Axis("loss over the law, %", format_number, log=False),
        "how far each run's loss lies from the law, in percent",
    )


def _sizes(fit: LawFit) -> Iterator[tuple[float, str, str, list[int]]]:
    """Mean, name in the legend, colour and indices of points of each size, from the smallest up."""
    n = np.array([point.params for point in fit.points])
    size_indices = cluster_indices(n)
    count = int(size_indices.max()) + 1
    for index in range(count):
        (runs,) = np.nonzero(size_indices == index)
        size = float(np.exp(np.log(n[runs]).mean()))
        name = _legend_name(format_count(size), index, count)
        yield size, name, series_colour(index, count), runs.tolist()


def _legend_name(name: str, index: int, count: int) -> str:
    """The name in the legend of series `index` of `count`; of many, only some have one."""
    return name if index % math.ceil(count / NAMED) == 0 or index == count - 1 else ""


def _tooltip(point: Point) -> str:
    return (
        f"{point.name}: N {format_count(point.params)}, D {format_count(point.tokens)}, "
        f"{format_power(point.flops)} FLOPs, loss {format_number(point.loss)}"
    )


def _geometric_grid(low: float, high: float) -> np.ndarray:
    return np.geomspace(low, high, CURVE_POINTS)
