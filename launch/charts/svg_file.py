"""A chart as a file of its own: what a page would give it of paper, colours and key goes along."""

from collections.abc import Sequence
import re

from launch.charts import line_chart
from launch.charts.html import STYLE, escape_text
from launch.charts.line_chart import Axis, Series

GAP, ROW, LETTER = 8, 17, 5.8  # above the key, of its rows, of a letter in it
# Of a page's style, the lines that a drawing needs: colours, and how its parts look.
_DRAWN = re.compile(r"^(?::root|@media \(prefers|  --|svg text|\.plot).*$", re.MULTILINE)


def standalone_svg(groups: Sequence[Series], x: Axis, y: Axis, about: str) -> str:
    """The text of an SVG file, legible in light and dark. `about` says in words what it shows."""
    drawn = line_chart.drawing(groups, x, y, about)
    body = drawn[drawn.index(">") + 1 : drawn.rindex("</svg>")]
    entries, rows = _legend([group for group in groups if group.name])
    wide, tall = line_chart.WIDE, line_chart.TALL + GAP + ROW * rows
    sheet = "\n".join(_DRAWN.findall(STYLE + line_chart.STYLE))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="plot" role="img" width="{2 * wide}" '
        f'viewBox="0 0 {wide} {tall}" aria-label="{escape_text(about)}"><style>{sheet}</style>'
        f'<rect width="{wide}" height="{tall}" style="fill: var(--card)"/>{body}{entries}</svg>\n'
    )


def _legend(groups: Sequence[Series]) -> tuple[str, int]:
    """The names in rows below the drawing, each behind its colour, and how many rows."""
    parts, x, row = [], float(line_chart.LEFT), 0
    for group in groups:
        wide = 24 + LETTER * len(group.name)
        if x + wide > line_chart.WIDE and x > line_chart.LEFT:
            x, row = float(line_chart.LEFT), row + 1
        y = line_chart.TALL + GAP + ROW * row
        parts.append(
            f'<rect x="{x:.0f}" y="{y}" width="9" height="9" rx="2.5" '
            f'style="fill: {group.colour}"/>'
            f'<text x="{x + 14:.0f}" y="{y + 8.5}">{escape_text(group.name)}</text>'
        )
        x += wide
    return "".join(parts), row + 1
