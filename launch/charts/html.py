"""Small pieces of a page: text that cannot act, figures, tables, cards; and how it all looks.

No text of a corpus reaches a page but through `text_html`.
"""

from collections.abc import Iterable, Sequence
import html
import re

from launch.terminal.number_format import NumberText, format_number

# Controls, halves of pairs, and what hides or turns text: zero width, directions, byte order.
_HIDDEN = re.compile(
    r"[\x00-\x1f\x7f-\x9f\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff]"
)
LONGEST = 300  # characters of a text in a table


TableCell = str | int | float | None | tuple[str, ...]

# Nothing is fetched and no script runs, whatever a transcript spells.
POLICY = "default-src 'none'; img-src data:; media-src data:; style-src 'unsafe-inline'"
STYLE = """
:root { color-scheme: light dark; --paper: #fbfbf9; --card: #fff; --ink: #1c2733;
  --faint: #5d6b78; --rule: #dfe4e8; --bar: #0072b2; --odd: #b3401f; --tint: #eef3f7; }
@media (prefers-color-scheme: dark) { :root { --paper: #12171c; --card: #1a2128; --ink: #e4e9ed;
  --faint: #97a5b1; --rule: #2e3943; --bar: #56a9e0; --odd: #ff9a6b; --tint: #212b34; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1120px; padding: 28px 20px 60px; background: var(--paper);
  color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 25px; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 20px; margin: 44px 0 12px; padding-bottom: 6px;
  border-bottom: 2px solid var(--rule); }
h3 { font-size: 14px; margin: 0 0 8px; }
p { margin: 6px 0; }
nav a { margin-right: 14px; color: var(--bar); }
.faint, figcaption, .note { color: var(--faint); font-size: 13px; }
.tiles { display: flex; flex-wrap: wrap; gap: 8px 30px; margin: 4px 0 16px; }
.tiles b { display: block; font-size: 21px; font-weight: 600;
  font-variant-numeric: tabular-nums; }
.tiles span { color: var(--faint); font-size: 13px; }
.cards { display: grid; gap: 14px;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 430px), 1fr)); }
.card { background: var(--card); border: 1px solid var(--rule); border-radius: 8px;
  padding: 14px 16px; min-width: 0; }
.wide { grid-column: 1 / -1; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: 13.5px; }
th, td { padding: 4px 14px 4px 0; text-align: left; vertical-align: top; }
th { color: var(--faint); font-weight: 500; border-bottom: 1px solid var(--rule);
  white-space: nowrap; }
td { overflow-wrap: normal; }
td:first-child:not(:empty) { overflow-wrap: anywhere; min-width: 4em; }
td:last-child:not(.num, :first-child) { overflow-wrap: anywhere; min-width: 15em; }
td { border-bottom: 1px solid var(--tint); }
tr:last-child td { border-bottom: 0; }
th:last-child, td:last-child { padding-right: 0; }
.num { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
p, div { overflow-wrap: anywhere; }
svg { display: block; width: 100%; height: auto; color: var(--ink); }
svg text { fill: var(--faint); font: 11px system-ui, sans-serif; }
.bar { fill: var(--bar); } .beyond { fill: var(--odd); } .bar:hover, .beyond:hover { opacity: .7; }
.level { stroke: var(--rule); } .line { fill: none; stroke: var(--bar); stroke-width: 2; }
.around { fill: var(--bar); opacity: .2; }
.letters { display: grid; grid-template-columns: repeat(auto-fill, minmax(118px, 1fr));
  gap: 2px 14px; font-size: 13px; }
.letters div { display: flex; gap: 8px; align-items: baseline;
  border-bottom: 1px solid var(--tint); }
.letters b { min-width: 1.4em; text-align: center; font-size: 16px; font-weight: 500; }
.letters code { color: var(--faint); font-size: 11px; }
.letters span { margin-left: auto; font-variant-numeric: tabular-nums; }
.odd, .odd b, .odd code { color: var(--odd); }
ul.odd { margin: 0 0 16px; padding-left: 18px; font-size: 14px; overflow-wrap: anywhere; }
.example { display: grid; grid-template-columns: 1fr; gap: 8px; align-content: start; }
.example p { font-size: 16px; margin: 0; }
.example img { width: 100%; height: 132px; border-radius: 4px; image-rendering: auto;
  background: #0b0724; object-fit: fill; display: block; }
.example audio { width: 100%; height: 34px; }
"""


def escape_text(text: str) -> str:
    """Text for an attribute, a title or a drawing: inert, hidden characters spelt out."""
    return html.escape(_HIDDEN.sub(_code_point_escape, text))


def text_html(text: str, longest: int = 0) -> str:
    """Text of a corpus as HTML: inert, hidden characters spelt out, its direction kept inside.

    Where `longest` is given, what is longer ends in an ellipsis.
    """
    if not text:
        return '<span class="faint">(empty)</span>'
    cut = f"{text[: longest - 1]}…" if 0 < longest < len(text) else text
    marked = _HIDDEN.sub(
        lambda match: f'<code class="odd">{_code_point_escape(match)}</code>', html.escape(cut)
    )
    return f"<bdi>{marked}</bdi>"


def table(heads: Sequence[str], rows: Iterable[Sequence[TableCell]]) -> str:
    """Rows under their heads: numbers to the right, texts as `text_html`, None as a dash.

    A cell of several texts has them on lines of their own.
    """
    kept, numeric = [tuple(row) for row in rows], [False] * len(heads)
    for row in kept:
        for place, value in enumerate(row):
            numeric[place] |= isinstance(value, int | float | NumberText)
    body = [f"<tr>{''.join(map(_cell, row, numeric))}</tr>" for row in kept]
    titles = "".join(
        f'<th class="num">{html.escape(head)}</th>' if right else f"<th>{html.escape(head)}</th>"
        for head, right in zip(heads, numeric, strict=True)
    )
    return f'<div class="scroll"><table><tr>{titles}</tr>{"".join(body)}</table></div>'


def _cell(value: TableCell, numeric: bool) -> str:
    if value is None:
        return '<td class="num">–</td>' if numeric else "<td>–</td>"
    if isinstance(value, NumberText):
        return f'<td class="num">{html.escape(value)}</td>'
    if isinstance(value, int | float):
        return f'<td class="num">{format_number(value)}</td>'
    texts = value if isinstance(value, tuple) else (value,)
    return f"<td>{'<br>'.join(text_html(text, LONGEST) for text in texts)}</td>"


def tiles(figures: Iterable[tuple[str, str]]) -> str:
    """Large figures, each over what it counts."""
    parts = (f"<div><b>{html.escape(x)}</b><span>{html.escape(y)}</span></div>" for x, y in figures)
    return f'<div class="tiles">{"".join(parts)}</div>'


def card(title: str, content: str, note: str = "", *, kind: str = "") -> str:
    """A framed part of the page, with a note under it that says what it is of."""
    under = f'<p class="note">{html.escape(note)}</p>' if note else ""
    heading = f"<h3>{html.escape(title)}</h3>"
    return f'<section class="card {kind}">{heading}{content}{under}</section>'


def document(title: str, parts: Iterable[str], style: str = "") -> bytes:
    """The whole page, in UTF-8; `style` is CSS of its own."""
    page = f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape_text(title)}</title><style>{STYLE}{style}</style></head>
<body>
{"".join(parts)}
</body></html>
"""
    return page.encode()


def _code_point_escape(match: re.Match[str]) -> str:
    return f"\\u{ord(match[0]):04x}"
