"""The table of a sweep's cells, in every state, and the errors of failed ones."""

from collections.abc import Callable, Sequence
import json

from markupsafe import Markup

from launch.charts.html import TableCell, table
from launch.sweep.ledger import Cell
from launch.sweep.spec import differing_fields
from launch.sweep.status import state
from launch.sweep_report.cell_figures import amount, cost, final_figure, hours, share
from launch.terminal.number_format import NumberText, format_count, format_hours, format_power

FIELDS = 8  # of those that differ, as columns
LONGEST = 60  # characters of a field's value


def cell_table(cells: Sequence[Cell]) -> Markup:
    """A row a cell; columns that no cell fills are left out."""
    fields = differing_fields([cell.overrides for cell in cells])[:FIELDS]
    heads = (
        *("cell", "state", "size", "positions", "FLOPs", "updates", "loss", "WER", "time", "cost"),
        *(*fields, "id"),
    )
    rows = [_row(cell, fields) for cell in cells]
    filled = [i for i in range(len(heads)) if any(row[i] is not None for row in rows)]
    return table([heads[i] for i in filled], [[row[i] for i in filled] for row in rows])


def failures(cells: Sequence[Cell]) -> list[str]:
    """A line an error message, with the numbers of all cells that failed with it."""
    cells_by_error: dict[str, list[str]] = {}
    for cell in cells:
        if cell.state == "failed":
            cell_text = f"{cell.number} ({share(cell):.0%} trained)"
            cells_by_error.setdefault(cell.error, []).append(cell_text)
    return [
        f"cell {', '.join(failed)}: {error or 'no word'}"
        for error, failed in cells_by_error.items()
    ]


def _row(cell: Cell, fields: Sequence[str]) -> tuple[TableCell, ...]:
    loss = final_figure(cell, "loss")
    return (
        cell.number,
        state(cell),
        _figure_text(amount(cell, "params"), format_count),
        _figure_text(amount(cell, "tokens"), format_count),
        _figure_text(amount(cell, "flops"), format_power),
        NumberText(f"{share(cell):.0%} of {cell.steps:,}"),
        None if loss is None else NumberText(f"{loss:.4f}"),
        _figure_text(final_figure(cell, "wer"), "{:.1%}".format),
        _figure_text(hours(cell) or None, format_hours),
        _figure_text(cost(cell) or None, "{:,.2f}".format),
        *(_value(cell, field) for field in fields),
        cell.id,
    )


def _figure_text(value: float | None, format_value: Callable[[float], str]) -> NumberText | None:
    return None if value is None else NumberText(format_value(value))


def _value(cell: Cell, field: str) -> TableCell:
    """The value of a field that a cell overrides; None where it leaves that to its preset."""
    value = cell.overrides.get(field)
    if isinstance(value, bool) or not isinstance(value, int | float):
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        return None if value is None else f"{text[: LONGEST - 1]}…" if len(text) > LONGEST else text
    return NumberText(f"{value:g}" if isinstance(value, float) else f"{value}")
