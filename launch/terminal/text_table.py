"""Tables for people, by rich: columns as wide as their texts, numbers to the right.

On a terminal a table is fitted to its width. Anywhere else it is plain text, a row a line of any
length, so that what is piped keeps every letter: rich alone would fold it at 80 columns.
"""

from collections.abc import Collection, Sequence
import io
import sys

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

PLAIN_WIDTH = 100_000  # columns of what goes to a file or a pipe


def table(
    heads: Sequence[str],
    rows: Sequence[Sequence[str]],
    right: Collection[int] = (),
    elastic: Collection[int] = (),
) -> Table:
    """`rows` under `heads`.

    Columns whose index is in `right` are aligned to the right; those in `elastic` are folded first
    where a terminal is narrow. Texts are shown as they are: rich would take "[red]" for a colour.
    """
    shown = Table(
        box=None,
        padding=(0, 2, 0, 0),
        pad_edge=False,
        header_style="bold",
        show_header=any(heads),
    )
    for column, head in enumerate(heads):
        shown.add_column(
            Text(head),
            justify="right" if column in right else "left",
            no_wrap=column not in elastic,
            overflow="ellipsis",
        )
    for row in rows:
        shown.add_row(*map(Text, row))
    return shown


def label_grid(rows: Sequence[tuple[str, str]]) -> Table:
    """Lines of a label and a text; a terminal folds a long text beside its label."""
    shown = Table.grid(padding=(0, 1, 0, 0))
    shown.add_column(no_wrap=True)
    shown.add_column(overflow="fold")
    for label, text in rows:
        shown.add_row(Text(label), Text(text))
    return shown


def lines(shown: RenderableType) -> list[str]:
    """`shown` as plain lines of any length, without spaces at their ends."""
    page = io.StringIO()
    Console(file=page, width=PLAIN_WIDTH, color_system=None, highlight=False).print(shown)
    return [line.rstrip() for line in page.getvalue().splitlines()]


def show(shown: RenderableType) -> None:
    """Print `shown` on standard output: fitted to a terminal, or whole and plain."""
    if sys.stdout.isatty():
        Console(highlight=False).print(shown)
    else:
        print("\n".join(lines(shown)))
