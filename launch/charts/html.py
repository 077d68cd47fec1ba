"""Markup of self-contained HTML pages: escaped text, tables, tiles, cards, whole templates.

Jinja2 writes it from the templates beside this module and beside each page, and escapes whatever is
no `Markup`: a plain string comes out as inert text with its hidden characters spelt out. `Markup`
is made here and by the charts of this folder alone.
"""

import base64
from collections.abc import Iterable, Sequence
import dataclasses
from importlib import resources
import re
from typing import Any

import jinja2
from markupsafe import Markup, escape

from launch.terminal.number_format import NumberText, format_number

# Controls, halves of pairs, and what hides or turns text: zero width, directions, byte order.
_HIDDEN = re.compile(
    r"[\x00-\x1f\x7f-\x9f\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff]"
)
LONGEST = 300  # characters of a text in a table

# Nothing is fetched and no script runs, whatever a transcript spells.
POLICY = "default-src 'none'; img-src data:; media-src data:; style-src 'unsafe-inline'"
STYLE = resources.files("launch").joinpath("charts/page.css").read_text("utf-8")

TableCell = str | int | float | None | tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Card:
    """A framed part of a page, with a note under it that says what it is of."""

    title: str
    content: Markup
    note: str = ""
    wide: bool = False  # over the whole width of the page


def escape_text(text: str) -> Markup:
    """Text for an attribute, a title or a drawing: inert, hidden characters spelt out."""
    return escape(_spell_hidden(text))


def text_html(text: str, longest: int = 0) -> Markup:
    """Text of a corpus as HTML: inert, hidden characters marked, its direction kept inside.

    Where `longest` is given, what is longer ends in an ellipsis.
    """
    if not text:
        return Markup('<span class="faint">(empty)</span>')
    cut = f"{text[: longest - 1]}…" if 0 < longest < len(text) else text
    marked = _HIDDEN.sub(
        lambda match: f'<code class="odd">{_code_point_escape(match)}</code>', escape(cut)
    )
    return Markup(f"<bdi>{marked}</bdi>")


def data_url(content: bytes, kind: str) -> Markup:
    """An address that is the content itself, of a media type such as image/png."""
    return Markup(f"data:{kind};base64,{base64.b64encode(content).decode()}")


def render(template: str, **values: object) -> Markup:
    """The markup of `template`, a path below `launch/`. A name that it lacks is an error."""
    return Markup(_ENVIRONMENT.get_template(template).render(values))


def table(heads: Sequence[str], rows: Iterable[Sequence[TableCell]]) -> Markup:
    """Rows under their heads: numbers to the right, texts as `text_html`, None as a dash.

    A cell of several texts has them on lines of their own.
    """
    kept = [tuple(row) for row in rows]
    numeric = [
        any(isinstance(row[column], int | float | NumberText) for row in kept)
        for column in range(len(heads))
    ]
    columns = list(zip(heads, numeric, strict=True))
    return _part("table", columns, [list(map(_cell, row, numeric)) for row in kept])


def tiles(figures: Iterable[tuple[str, str]]) -> Markup:
    """Large figures, each over what it counts."""
    return _part("tiles", list(figures))


def warning_list(lines: Sequence[str]) -> Markup:
    """Bullets in the colour of warnings; nothing where there is no line."""
    return _part("warnings", lines)


def faint(words: str) -> Markup:
    """A paragraph in faint ink, such as says why a figure is missing."""
    return _part("faint", words)


def paragraph(words: str) -> Markup:
    """A paragraph of text."""
    return _part("paragraph", words)


def command(words: str) -> Markup:
    """A line to be typed into a shell."""
    return _part("command", words)


@dataclasses.dataclass(frozen=True)
class _Cell:
    numeric: bool
    lines: tuple[str, ...]


def _cell(value: TableCell, numeric: bool) -> _Cell:
    """A cell of a column that has numbers or not."""
    if value is None:
        return _Cell(numeric, ("–",))
    if isinstance(value, NumberText):
        return _Cell(True, (value,))
    if isinstance(value, int | float):
        return _Cell(True, (format_number(value),))
    texts = value if isinstance(value, tuple) else (value,)
    return _Cell(False, tuple(text_html(text, LONGEST) for text in texts))


def _part(macro: str, *values: object) -> Markup:
    """The markup that a macro of parts.html makes."""
    markup: Markup = getattr(_ENVIRONMENT.get_template("charts/parts.html").module, macro)(*values)
    return markup


def _spell_hidden(value: Any) -> Any:
    """A plain string with its hidden characters spelt out; anything else as it is."""
    if isinstance(value, str) and not isinstance(value, Markup):
        return _HIDDEN.sub(_code_point_escape, value)
    return value


def _code_point_escape(match: re.Match[str]) -> str:
    return f"\\u{ord(match[0]):04x}"


_ENVIRONMENT = jinja2.Environment(
    loader=jinja2.PackageLoader("launch", ""),
    autoescape=True,
    finalize=_spell_hidden,  # of each value that a template writes
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_ENVIRONMENT.globals["policy"] = POLICY
_ENVIRONMENT.filters |= {"text": text_html, "data_url": data_url}
