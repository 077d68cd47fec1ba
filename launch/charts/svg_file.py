"""Writes a chart as an SVG file of its own, with the paper, colours and legend of a page."""

from collections.abc import Sequence
import re

from launch.charts import line_chart
from launch.charts.html import STYLE, escape_text
from launch.charts.line_chart import Axis, Series

GAP, ROW, LETTER = 8, 17, 5.8  # above the legend, of its rows, of a letter in it
# Lines of a page's style sheet that a drawing needs: colours, and the looks of its marks.
_DRAWN = re.compile(r"^(?::root|@media \(prefers|  --|svg text|\.plot).*$", re.MULTILINE)


def standalone_svg(series: Sequence[Series], x: Axis, y: Axis, about: str) -> str:
    """The text of an SVG file, legible in light and dark. `about` says in words what it shows."""
    drawn = line_chart.drawing(series, x, y, about)
    body = drawn[drawn.index(">") + 1 : drawn.rindex("</svg>")]
    entries, rows = _legend([one for one in series if one.name])
    wide, tall = line_chart.WIDE, line_chart.TALL + GAP + ROW * rows
    sheet = "\n".join(_DRAWN.findall(STYLE + line_chart.STYLE))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="plot" role="img" width="{2 * wide}" '
        f'viewBox="0 0 {wide} {tall}" aria-label="{escape_text(about)}"><style>{sheet}</style>'
        f'<rect width="{wide}" height="{tall}" style="fill: var(--card)"/>{body}{entries}</svg>\n'
    )


def _legend(series: Sequence[Series]) -> tuple[str, int]:
    """The names in rows below the drawing, each behind its colour, and the number of rows."""
    parts, x, row = [], float(line_chart.LEFT), 0
    for one in series:
        wide = 24 + LETTER * len(one.name)
        if x + wide > line_chart.WIDE and x > line_chart.LEFT:
            x, row = float(line_chart.LEFT), row + 1
        y = line_chart.TALL + GAP + ROW * row
        parts.append(
            f'<rect x="{x:.0f}" y="{y}" width="9" height="9" rx="2.5" '
            f'style="fill: {one.colour}"/>'
            f'<text x="{x + 14:.0f}" y="{y + 8.5}">{escape_text(one.name)}</text>'
        )
        x += wide
    return "".join(parts), row + 1
