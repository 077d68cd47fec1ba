"""Parts of a sweep's page that are drawn: curves, word errors, token rates, time and cost."""

from collections.abc import Mapping, Sequence

from launch.axes import Axis
from launch.inspect_html import Cell as Entry
from launch.inspect_html import Figure, card, lasting, number, table
from launch.ledger import Cell
from launch.report_charts import ERRORS, LOSS, PARAMS, Wanted, curves, scatter
from launch.report_curves import Curve
from launch.report_facts import (
    by_amount,
    by_rate,
    cost,
    figure,
    hours,
    kinds,
    scored,
    total,
    usual,
)

PLAIN = "{:,g}".format


def curve_cards(cells: Sequence[Cell], found: Mapping[str, Curve]) -> list[str]:
    """Training loss over positions and over FLOPs."""
    groups = kinds(cells)
    begun = f"{len(found)} of {len(cells)} cells have begun"
    note = f"{begun}; colours by {groups.title}; each point is the mean of the updates around it"
    return [
        card(title, drawn, note)
        for title, name in (
            ("Training loss over data", "tokens"),
            ("Training loss over compute", "flops"),
        )
        if (drawn := curves(cells, found, groups, name))
    ]


def error_cards(cells: Sequence[Cell]) -> list[str]:
    """Word error rate over size and over hours of sound."""
    cells, all_done = usual(cells), sum(cell.state == "done" for cell in cells)
    heard = by_amount(cells, "audio_hours", "hours of sound", lasting)
    budgets = {scored(cell, "hours") for cell in cells if cell.state == "done"}
    wer, size = _scored("wer"), _scored("params")
    sound, axis = "audio_hours", Axis("hours of sound trained on", PLAIN)
    if len(budgets) > 1 and None not in budgets:
        sound, axis = "hours", Axis("hours of different sound", PLAIN)
    drawn = (
        ("Word errors by size", scatter(cells, heard, size, wer, PARAMS, ERRORS), heard.title),
        (
            "Word errors by sound",
            scatter(cells, kinds(cells), _scored(sound), wer, axis, ERRORS),
            kinds(cells).title,
        ),
    )
    done = sum(cell.state == "done" for cell in cells)
    of = f"{done} cells that are done"
    if done < all_done:
        of += f", of {all_done}: those of the commonest token rate"
    return [card(title, svg, f"{of}; colours by {by}") for title, svg, by in drawn if svg]


def rate_cards(cells: Sequence[Cell]) -> list[str]:
    """Loss and word errors over the mel frames of a position, at equal size and equal sound."""
    groups = by_rate(cells)
    found = sorted({r for cell in cells if cell.id in groups.of and (r := scored(cell, "r"))})
    axis = Axis("r, mel frames a position (100/r positions a second)", PLAIN, at=(*found,))
    note = "Cells of the same width, depth and hours of sound"
    return [
        card(title, drawn, note)
        for title, name, y in (
            ("Loss by token rate", "loss", LOSS),
            ("Word errors by token rate", "wer", ERRORS),
        )
        if (drawn := scatter(cells, groups, _scored("r"), _scored(name), axis, y))
    ]


def _scored(name: str) -> Wanted:
    return lambda cell: scored(cell, name)


def cost_cards(cells: Sequence[Cell]) -> list[str]:
    """What cells of each size were planned to take and took, and loss against it."""
    groups = kinds(cells)
    rows = [_costs(name, groups.cells(cells, place)) for place, name in enumerate(groups.names)] + [
        _costs(Figure("all"), cells)
    ]
    heads = (groups.title, "done", "planned", "so far", "cost planned", "so far")
    kept = [i for i in range(len(heads)) if any(row[i] is not None for row in rows)]
    content = table([heads[i] for i in kept], [[row[i] for i in kept] for row in rows])
    note = "Time of training: measured where a cell is done, by plan and updates where it is not"
    title, spent, x = _spent(cells)
    drawn = scatter(usual(cells), groups, spent, _scored("loss"), x, LOSS)
    return [card("Time and cost", content, note)] + ([card(title, drawn)] if drawn else [])


def _spent(cells: Sequence[Cell]) -> tuple[str, Wanted, Axis]:
    """What a run took: its cost where there is a price, else its time in a unit that suits all."""
    if any(cost(cell) for cell in cells):
        return "Loss by cost", cost, Axis("cost of training", number)
    if max((hours(cell) or 0.0 for cell in cells), default=0.0) > 2:
        return "Loss by time", hours, Axis("hours of training", PLAIN)
    minutes = lambda cell: None if (found := hours(cell)) is None else 60 * found
    return "Loss by time", minutes, Axis("minutes of training", PLAIN)


def _costs(name: str, cells: Sequence[Cell]) -> tuple[Entry, ...]:
    planned, spent = (
        total([figure(one.plan, "hours") for one in cells]),
        total([*map(hours, cells)]),
    )
    return (
        name,
        Figure(f"{sum(one.state == 'done' for one in cells)} of {len(cells)}"),
        None if planned is None else lasting(planned),
        lasting(spent) if spent else None,
        total([figure(one.plan, "cost") for one in cells]),
        total([*map(cost, cells)]) or None,
    )
