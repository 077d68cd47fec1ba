"""The table of a sweep's cells: all of them, in every state."""

from collections.abc import Callable, Sequence
import json

from launch.inspect_html import Cell as Entry
from launch.inspect_html import Figure, counted, lasting, power, table
from launch.ledger import Cell
from launch.report_facts import amount, cost, hours, scored, share
from launch.spec import differing
from launch.status import state

FIELDS = 8  # of those that differ, as columns
LONGEST = 60  # characters of a field's value


def cell_table(cells: Sequence[Cell]) -> str:
    """A row each; columns that no cell fills are left out."""
    fields = differing([cell.overrides for cell in cells])[:FIELDS]
    heads = (
        *("cell", "state", "size", "positions", "FLOPs", "updates", "loss", "WER", "time", "cost"),
        *(*fields, "id"),
    )
    rows = [_row(cell, fields) for cell in cells]
    filled = [i for i in range(len(heads)) if any(row[i] is not None for row in rows)]
    return table([heads[i] for i in filled], [[row[i] for i in filled] for row in rows])


def failures(cells: Sequence[Cell]) -> list[str]:
    """What went wrong, in the cells' own words, each with all the cells that said so."""
    said: dict[str, list[str]] = {}
    for cell in cells:
        if cell.state == "failed":
            said.setdefault(cell.error, []).append(f"{cell.number} ({share(cell):.0%} trained)")
    return [f"cell {', '.join(who)}: {error or 'no word'}" for error, who in said.items()]


def _row(cell: Cell, fields: Sequence[str]) -> tuple[Entry, ...]:
    loss = scored(cell, "loss")
    return (
        cell.number,
        state(cell),
        _written(amount(cell, "params"), counted),
        _written(amount(cell, "tokens"), counted),
        _written(amount(cell, "flops"), power),
        Figure(f"{share(cell):.0%} of {cell.steps:,}"),
        None if loss is None else Figure(f"{loss:.4f}"),
        _written(scored(cell, "wer"), "{:.1%}".format),
        _written(hours(cell) or None, lasting),
        _written(cost(cell) or None, "{:,.2f}".format),
        *(_value(cell, field) for field in fields),
        cell.id,
    )


def _written(value: float | None, written: Callable[[float], str]) -> Figure | None:
    return None if value is None else Figure(written(value))


def _value(cell: Cell, field: str) -> Entry:
    """A field of a cell's own; a dash where it leaves that to its preset."""
    value = cell.overrides.get(field)
    if isinstance(value, bool) or not isinstance(value, int | float):
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        return None if value is None else f"{text[: LONGEST - 1]}…" if len(text) > LONGEST else text
    return Figure(f"{value:g}" if isinstance(value, float) else f"{value}")
