"""Histograms and mel levels by band as inline SVG.

Colours are the page's own (`currentColor` and its custom properties), so that charts turn dark with
it.
"""

from collections.abc import Sequence
import math

from markupsafe import Markup

from launch.charts.distribution import Distribution
from launch.charts.html import escape_text
from launch.charts.ticks import linear_ticks
from launch.terminal.number_format import format_tick, format_tick_count

WIDE, TALL = 460, 170  # units of the drawing; the page scales it
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 10, 34  # margins, for the numbers at the axes


def histogram(numbers: Distribution, unit: str, what: str = "utterances") -> Markup:
    """Bars over an axis in `unit`; a last bar, set apart, counts what lies beyond the axis."""
    counts = [*numbers.counts, *([numbers.beyond] if numbers.beyond else [])]
    top = _ceiling(max(counts))
    apart = 0.6 if numbers.beyond else 0.0  # of a bar, between the others and the last
    step = (WIDE - LEFT - RIGHT) / (len(counts) + apart)
    end = numbers.start + numbers.width * len(numbers.counts)
    parts = [_levels(top)]
    for index, count in enumerate(counts):
        last = index == len(numbers.counts)
        low = numbers.start + numbers.width * index
        span = (
            f"over {format_tick(end)}"
            if last
            else f"{format_tick(low)} to {format_tick(low + numbers.width)}"
        )
        height = (TALL - TOP - BOTTOM) * count / top
        x = LEFT + step * (index + (apart if last else 0))
        parts.append(
            f'<rect class="{"beyond" if last else "bar"}" x="{x:.1f}" '
            f'y="{TALL - BOTTOM - height:.1f}" width="{max(step - 1, 0.5):.1f}" '
            f'height="{height:.1f}"><title>{span} {escape_text(unit)}: {count:,}</title></rect>'
        )
    for value in linear_ticks(numbers.start, end, most=8):
        x = LEFT + step * (value - numbers.start) / numbers.width
        parts.append(
            f'<text x="{x:.1f}" y="{TALL - 18}" text-anchor="middle">{format_tick(value)}</text>'
        )
    if numbers.beyond:
        x = LEFT + step * (len(counts) - 0.5 + apart)
        parts.append(f'<text x="{x:.1f}" y="{TALL - 18}" text-anchor="middle">more</text>')
    parts.append(_axis(unit))
    return _drawing(parts, f"histogram of {what}, {unit}")


def bands(mean: Sequence[float], deviation: Sequence[float], unit: str) -> Markup:
    """Mean of each mel band, and one standard deviation to either side."""
    lows = [x - y for x, y in zip(mean, deviation, strict=True)]
    highs = [x + y for x, y in zip(mean, deviation, strict=True)]
    low, high = min(lows), max(highs)
    high = high if high > low else low + 1
    across = lambda band: LEFT + (WIDE - LEFT - RIGHT) * band / max(len(mean) - 1, 1)
    up = lambda value: TALL - BOTTOM - (TALL - TOP - BOTTOM) * (value - low) / (high - low)
    line = lambda values: [f"{across(i):.1f},{up(value):.1f}" for i, value in enumerate(values)]
    around = " ".join(line(highs) + line(lows)[::-1])
    parts = []
    for value in linear_ticks(low, high, most=4):
        parts.append(_level(up(value), format_tick(value)))
    parts.append(f'<polygon class="around" points="{around}"/>')
    parts.append(f'<polyline class="line" points="{" ".join(line(mean))}"/>')
    for band in linear_ticks(0, len(mean) - 1, most=8):
        parts.append(
            f'<text x="{across(band):.1f}" y="{TALL - 18}" text-anchor="middle">{band:.0f}</text>'
        )
    parts.append(_axis(unit))
    return _drawing(parts, "mean and standard deviation of each mel band")


def _drawing(parts: Sequence[str], label: str) -> Markup:
    return Markup(
        f'<svg viewBox="0 0 {WIDE} {TALL}" role="img" aria-label="{escape_text(label)}">'
        f"{''.join(parts)}</svg>"
    )


def _levels(top: float) -> str:
    height = TALL - TOP - BOTTOM
    return "".join(
        _level(TALL - BOTTOM - height * value / top, format_tick_count(value))
        for value in linear_ticks(0, top, most=3, finest=1)
    )


def _level(y: float, label: str) -> str:
    return (
        f'<line class="level" x1="{LEFT}" x2="{WIDE - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        f'<text x="{LEFT - 6}" y="{y + 3.5:.1f}" text-anchor="end">{label}</text>'
    )


def _axis(unit: str) -> str:
    middle = (LEFT + WIDE - RIGHT) / 2
    return f'<text x="{middle}" y="{TALL - 3}" text-anchor="middle">{escape_text(unit)}</text>'


def _ceiling(count: int) -> float:
    """A round number that is not less than a count, and one at least."""
    ticks = linear_ticks(0, max(count, 1), most=3, finest=1)
    step = ticks[1] - ticks[0]
    return step * math.ceil(max(count, 1) / step)
