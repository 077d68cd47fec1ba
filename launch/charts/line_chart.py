"""Charts with two axes as inline SVG: lines, dots and areas in series, a colour each.

They are written here rather than by a library because a page is one file whose policy allows no
script, and still shows the values of a mark under the pointer and follows the reader's light or
dark colours. None of matplotlib, Altair, plotly, bokeh and pygal does all of that: values under the
pointer take scripts, and drawings without are 2.6 or 3 times as large, in fixed colours.

Colours come from the page: `series_colour` uses its property `--lit`.
"""

from collections.abc import Callable, Sequence
import dataclasses
import math

from markupsafe import Markup

from launch.charts.html import escape_text
from launch.charts.ticks import linear_ticks, log_ticks

WIDE, TALL = 460, 290  # units of the drawing; the page scales it
LEFT, RIGHT, TOP, BOTTOM = 62, 14, 12, 46  # margins, for the numbers at the axes
LETTER = 7.5  # width of a digit where the text is largest, on a narrow page
LEGEND_ENTRIES = 17  # names in a legend, at most
STYLE = """
:root { --lit: .56; }
@media (prefers-color-scheme: dark) { :root { --lit: .76; } }
.plot .level, .plot .tick { stroke: var(--rule); }
.plot .curve { fill: none; stroke: currentColor; stroke-width: 1.5; stroke-linejoin: round; }
.plot .thin { stroke-width: 1; opacity: .75; }
.plot .dash { stroke-dasharray: 5 4; }
.plot .dot, .plot .area { fill: currentColor; }
.plot .area { opacity: .18; }
.plot .ring { fill: var(--card); stroke: currentColor; stroke-width: 1.5; }
.key { display: flex; flex-wrap: wrap; gap: 2px 14px; margin-top: 8px; font-size: 13px; }
.key span::before { content: ""; display: inline-block; width: 10px; height: 10px;
  margin-right: 6px; border-radius: 3px; background: currentColor; }
.key b { color: var(--ink); font-weight: 400; }
@media (max-width: 520px) { .plot text { font-size: 14px; } }
"""

XY = tuple[float, float]
Scale = Callable[[float], float]


@dataclasses.dataclass(frozen=True)
class Axis:
    """One axis of a chart: what stands along it, and where."""

    title: str  # with its unit
    format_value: Callable[[float], str]  # the number at a tick
    log: bool = True
    zero: bool = False  # begins at 0, where it is not log
    tick_values: tuple[float, ...] = ()  # where ticks stand, if not at round numbers


@dataclasses.dataclass(frozen=True)
class Mark:
    """A line through points, an area that they bound, or the points themselves."""

    points: tuple[XY, ...]  # finite, above 0 along a log axis
    tooltip: str
    kind: str = "curve"  # curve, area, dot or ring; then CSS classes of its looks: thin, dash


@dataclasses.dataclass(frozen=True)
class Series:
    """Marks of one colour, named in the legend; a series without a name is not in it."""

    name: str
    colour: str  # CSS
    marks: tuple[Mark, ...]


def series_colour(index: int, count: int) -> str:
    """Colour `index` of `count` in order: from blue over green to orange and red."""
    hue = 265 - 240 * (index / (count - 1) if count > 1 else 0)
    return f"oklch(var(--lit) .14 {hue:.0f})"


def chart(series: Sequence[Series], x: Axis, y: Axis, about: str) -> Markup:
    """The drawing with its legend below. `about` says in words what it shows."""
    return drawing(series, x, y, about) + legend(series)


def drawing(series: Sequence[Series], x: Axis, y: Axis, about: str) -> Markup:
    """The drawing without a legend."""
    points = [point for one in series for mark in one.marks for point in mark.points]
    across, x_ticks = _scale([point[0] for point in points], x, LEFT, WIDE - RIGHT)
    up, y_ticks = _scale([point[1] for point in points], y, TALL - BOTTOM, TOP)
    middle = (TOP + TALL - BOTTOM) / 2
    parts = [
        *(_grid_line(up(value), label) for value, label in _tick_labels(y_ticks, y)),
        *_x_tick_labels([(across(value), label) for value, label in _tick_labels(x_ticks, x)]),
        *(_series(one, across, up) for one in series),
        _text((LEFT + WIDE - RIGHT) / 2, TALL - 6, x.title),
        _text(14, middle, y.title, f' transform="rotate(-90 14 {middle:.0f})"'),
    ]
    return Markup(
        f'<svg class="plot" viewBox="0 0 {WIDE} {TALL}" role="img" '
        f'aria-label="{escape_text(about)}">{"".join(parts)}</svg>'
    )


def legend(series: Sequence[Series]) -> Markup:
    """The names of series, each behind its colour; of very many, some of them."""
    named = [one for one in series if one.name]
    if len(named) > LEGEND_ENTRIES:
        every = (len(named) - 1) / (LEGEND_ENTRIES - 1)
        named = [named[round(i * every)] for i in range(LEGEND_ENTRIES)]
    names = "".join(
        f'<span style="color:{one.colour}"><b>{escape_text(one.name)}</b></span>' for one in named
    )
    return Markup(f'<div class="key">{names}</div>' if names else "")


def _scale(values: list[float], axis: Axis, start: float, end: float) -> tuple[Scale, list[float]]:
    """The scale from values to the drawing, with a little room to either side, and the ticks."""
    transform: Scale = math.log10 if axis.log else float
    transformed = [transform(value) for value in values] or [0.0, 1.0]
    low, high = min(transformed), max(transformed)
    room = 0.04 * (high - low) or (0.15 if axis.log else abs(high) / 2 or 1.0)
    low, high = (0.0 if axis.zero and not axis.log else low - room), high + room
    scale = lambda value: start + (end - start) * (transform(value) - low) / (high - low)
    round_numbers = log_ticks(10**low, 10**high) if axis.log else linear_ticks(low, high)
    return scale, list(axis.tick_values) or round_numbers


def _tick_labels(values: Sequence[float], axis: Axis) -> list[tuple[float, str]]:
    """Ticks with their labels, in more digits where the axis's format does not tell them apart."""
    labels = [axis.format_value(value) for value in values]
    if len(set(labels)) < len(labels):
        labels = [f"{value:.6g}" for value in values]
    return list(zip(values, labels, strict=True))


def _series(series: Series, across: Scale, up: Scale) -> str:
    marks = "".join(_mark(mark, across, up) for mark in series.marks)
    return f'<g style="color:{series.colour}">{marks}</g>'


def _mark(mark: Mark, across: Scale, up: Scale) -> str:
    points = [(f"{across(a):.1f}", f"{up(b):.1f}") for a, b in mark.points]
    tooltip = f"<title>{escape_text(mark.tooltip)}</title>"
    kind = mark.kind.split()[0]
    if kind in ("curve", "area"):
        shape = "polyline" if kind == "curve" else "polygon"
        joined = " ".join(f"{a},{b}" for a, b in points)
        return f'<{shape} class="{mark.kind}" points="{joined}">{tooltip}</{shape}>'
    return "".join(
        f'<circle class="{mark.kind}" cx="{a}" cy="{b}" r="3.6">{tooltip}</circle>'
        for a, b in points
    )


def _grid_line(y: float, label: str) -> str:
    line = f'<line class="level" x1="{LEFT}" x2="{WIDE - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
    text = f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{escape_text(label)}</text>'
    return line + text


def _x_tick_labels(labels: Sequence[tuple[float, str]]) -> list[str]:
    """Ticks below the drawing, without those whose label would run into one before."""
    parts, free = [], 0.0
    for x, label in labels:
        half = LETTER * len(label) / 2
        if x - half >= free:
            # A label that would leave the drawing ends with it.
            parts.append(_tick(x, min(x, WIDE - half), label))
            free = min(x, WIDE - half) + half + LETTER
    return parts


def _tick(x: float, middle: float, label: str) -> str:
    foot = TALL - BOTTOM
    line = f'<line class="tick" x1="{x:.1f}" x2="{x:.1f}" y1="{foot}" y2="{foot + 4}"/>'
    return line + _text(middle, foot + 18, label)


def _text(x: float, y: float, text: str, more: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="middle"{more}>{escape_text(text)}</text>'
