"""A chart with two axes as inline SVG: lines, dots and areas in groups, a colour each.

Colours come from the page: `series_colour` leans on its property `--lit`, so that a chart is as
legible in the dark as in the light. What is drawn carries its own words as a tooltip.
"""

from collections.abc import Callable, Sequence
import dataclasses
import math

from markupsafe import Markup

from launch.charts.html import escape_text

WIDE, TALL = 460, 290  # units of the drawing; the page scales it
LEFT, RIGHT, TOP, BOTTOM = 62, 14, 12, 46  # margins, for the figures at the axes
LETTER = 7.5  # width of a digit where the text is largest, on a narrow page
LEGEND_ENTRIES = 17  # groups in a key
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
    """What one direction of a chart says."""

    title: str  # with its unit
    written: Callable[[float], str]  # a figure at the axis
    log: bool = True
    zero: bool = False  # begins at 0, where it is not log
    at: tuple[float, ...] = ()  # where figures stand, if not where they are round


@dataclasses.dataclass(frozen=True)
class Mark:
    """A line through points, an area that they bound, or the points themselves."""

    points: tuple[XY, ...]  # finite, above 0 along a log axis
    told: str  # its tooltip
    kind: str = "curve"  # curve, area, dot or ring; after it words for its looks: thin, dash


@dataclasses.dataclass(frozen=True)
class Series:
    """Marks of one colour, with a name in the key; without a name it is not in the key."""

    name: str
    colour: str  # CSS
    marks: tuple[Mark, ...]


def series_colour(place: int, of: int) -> str:
    """Colour number `place` of so many in order: from blue over green to orange and red."""
    hue = 265 - 240 * (place / (of - 1) if of > 1 else 0)
    return f"oklch(var(--lit) .14 {hue:.0f})"


def chart(groups: Sequence[Series], x: Axis, y: Axis, about: str) -> Markup:
    """The drawing, and below it its key. `about` says in words what it shows."""
    return drawing(groups, x, y, about) + legend(groups)


def drawing(groups: Sequence[Series], x: Axis, y: Axis, about: str) -> Markup:
    """The drawing alone."""
    points = [point for group in groups for mark in group.marks for point in mark.points]
    across, marked = _scale([one[0] for one in points], x, LEFT, WIDE - RIGHT)
    up, levels = _scale([one[1] for one in points], y, TALL - BOTTOM, TOP)
    middle = (TOP + TALL - BOTTOM) / 2
    parts = [
        *(_grid_line(up(value), said) for value, said in _tick_labels(levels, y)),
        *_x_tick_labels([(across(value), said) for value, said in _tick_labels(marked, x)]),
        *(_series(group, across, up) for group in groups),
        _text((LEFT + WIDE - RIGHT) / 2, TALL - 6, x.title),
        _text(14, middle, y.title, f' transform="rotate(-90 14 {middle:.0f})"'),
    ]
    return Markup(
        f'<svg class="plot" viewBox="0 0 {WIDE} {TALL}" role="img" '
        f'aria-label="{escape_text(about)}">{"".join(parts)}</svg>'
    )


def legend(groups: Sequence[Series]) -> Markup:
    """The names of groups, each behind its colour; of very many, some of them."""
    named = [group for group in groups if group.name]
    if len(named) > LEGEND_ENTRIES:
        every = (len(named) - 1) / (LEGEND_ENTRIES - 1)
        named = [named[round(i * every)] for i in range(LEGEND_ENTRIES)]
    names = "".join(
        f'<span style="color:{group.colour}"><b>{escape_text(group.name)}</b></span>'
        for group in named
    )
    return Markup(f'<div class="key">{names}</div>' if names else "")


def ticks(low: float, high: float, most: int = 7) -> list[float]:
    """Round numbers from `low` to `high` at equal distances, at most so many steps."""
    power = 10.0 ** math.floor(math.log10((high - low) / most))
    step = next(power * x for x in (1, 2, 5, 10) if (high - low) / (power * x) <= most)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [float(f"{step * number:.12g}") for number in range(first, last + 1)]


def log_ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round numbers from `low` to `high` for a log axis: powers of 10, or finer where few are."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    every = math.ceil((last - first) / most)
    fine, coarse = (1, 2, 3, 4, 5, 6, 8), (1,)
    for digits, apart in ((fine, 1), ((1, 2, 5), 1), ((1, 3), 1), (coarse, 1), (coarse, every)):
        round_ones = (x * 10.0**power for power in range(first, last + 1, apart) for x in digits)
        found = [float(f"{value:.12g}") for value in round_ones if low <= value <= high]
        if 3 <= len(found) <= most:
            return found
    return ticks(low, high, most=5) if high < 30 * low else found


def _scale(values: list[float], axis: Axis, start: float, end: float) -> tuple[Scale, list[float]]:
    """Where along the drawing a value lies, with a little room to either side; the figures."""
    inner: Scale = math.log10 if axis.log else float
    found = [inner(value) for value in values] or [0.0, 1.0]
    low, high = min(found), max(found)
    room = 0.04 * (high - low) or (0.15 if axis.log else abs(high) / 2 or 1.0)
    low, high = (0.0 if axis.zero and not axis.log else low - room), high + room
    place = lambda value: start + (end - start) * (inner(value) - low) / (high - low)
    round_ones = log_ticks(10**low, 10**high) if axis.log else ticks(low, high)
    return place, list(axis.at) or round_ones


def _tick_labels(values: Sequence[float], axis: Axis) -> list[tuple[float, str]]:
    """Figures at an axis, with more digits where the axis's own do not tell them apart."""
    said = [axis.written(value) for value in values]
    if len(set(said)) < len(said):
        said = [f"{value:.6g}" for value in values]
    return list(zip(values, said, strict=True))


def _series(group: Series, across: Scale, up: Scale) -> str:
    marks = "".join(_mark(mark, across, up) for mark in group.marks)
    return f'<g style="color:{group.colour}">{marks}</g>'


def _mark(mark: Mark, across: Scale, up: Scale) -> str:
    places = [(f"{across(a):.1f}", f"{up(b):.1f}") for a, b in mark.points]
    told = f"<title>{escape_text(mark.told)}</title>"
    kind = mark.kind.split()[0]
    if kind in ("curve", "area"):
        shape = "polyline" if kind == "curve" else "polygon"
        joined = " ".join(f"{a},{b}" for a, b in places)
        return f'<{shape} class="{mark.kind}" points="{joined}">{told}</{shape}>'
    return "".join(
        f'<circle class="{mark.kind}" cx="{a}" cy="{b}" r="3.6">{told}</circle>' for a, b in places
    )


def _grid_line(y: float, written: str) -> str:
    line = f'<line class="level" x1="{LEFT}" x2="{WIDE - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
    label = f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{escape_text(written)}</text>'
    return line + label


def _x_tick_labels(figures: Sequence[tuple[float, str]]) -> list[str]:
    """Figures below the drawing, without those that would run into one before."""
    parts, free = [], 0.0
    for x, said in figures:
        half = LETTER * len(said) / 2
        if x - half >= free:
            # What would leave the drawing ends with it.
            parts.append(_tick(x, min(x, WIDE - half), said))
            free = min(x, WIDE - half) + half + LETTER
    return parts


def _tick(x: float, middle: float, said: str) -> str:
    foot = TALL - BOTTOM
    line = f'<line class="tick" x1="{x:.1f}" x2="{x:.1f}" y1="{foot}" y2="{foot + 4}"/>'
    return line + _text(middle, foot + 18, said)


def _text(x: float, y: float, written: str, more: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="middle"{more}>{escape_text(written)}</text>'
