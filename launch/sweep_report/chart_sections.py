"""Cards of a sweep's page with charts: loss curves, word errors, token rates, time and cost."""

from collections.abc import Mapping, Sequence

from launch.charts.html import Card, TableCell, table
from launch.charts.line_chart import Axis
from launch.sweep.ledger import Cell
from launch.sweep_report.cell_charts import ERRORS, LOSS, PARAMS, CellFigure, curves_chart, scatter
from launch.sweep_report.cell_figures import (
    common_rate_cells,
    cost,
    figure,
    final_figure,
    group_by_amount,
    group_by_rate,
    group_cells,
    hours,
    total,
)
from launch.sweep_report.loss_curves import Curve
from launch.terminal.number_format import NumberText, format_hours, format_number

PLAIN = "{:,g}".format


def curve_cards(cells: Sequence[Cell], curves: Mapping[str, Curve]) -> list[Card]:
    """Training loss over positions and over FLOPs."""
    groups = group_cells(cells)
    begun = f"{len(curves)} of {len(cells)} cells have begun"
    note = f"{begun}; colours by {groups.title}; each point is the mean of the updates around it"
    return [
        Card(title, drawn, note)
        for title, name in (
            ("Training loss over data", "tokens"),
            ("Training loss over compute", "flops"),
        )
        if (drawn := curves_chart(cells, curves, groups, name))
    ]


def error_cards(cells: Sequence[Cell]) -> list[Card]:
    """Word error rate over size and over hours of sound."""
    cells, all_done = common_rate_cells(cells), sum(cell.state == "done" for cell in cells)
    heard = group_by_amount(cells, "audio_hours", "hours of sound", format_hours)
    budgets = {final_figure(cell, "hours") for cell in cells if cell.state == "done"}
    wer, size = _final_figure("wer"), _final_figure("params")
    sound, axis = "audio_hours", Axis("hours of sound trained on", PLAIN)
    if len(budgets) > 1 and None not in budgets:
        sound, axis = "hours", Axis("hours of different sound", PLAIN)
    drawn = (
        ("Word errors by size", scatter(cells, heard, size, wer, PARAMS, ERRORS), heard.title),
        (
            "Word errors by sound",
            scatter(cells, group_cells(cells), _final_figure(sound), wer, axis, ERRORS),
            group_cells(cells).title,
        ),
    )
    done = sum(cell.state == "done" for cell in cells)
    of = f"{done} cells that are done"
    if done < all_done:
        of += f", of {all_done}: those of the commonest token rate"
    return [Card(title, svg, f"{of}; colours by {by}") for title, svg, by in drawn if svg]


def rate_cards(cells: Sequence[Cell]) -> list[Card]:
    """Loss and word errors over the mel frames of a position, at equal size and equal sound."""
    groups = group_by_rate(cells)
    rates = sorted(
        {r for cell in cells if cell.id in groups.group_by_id and (r := final_figure(cell, "r"))}
    )
    axis = Axis("r, mel frames a position (100/r positions a second)", PLAIN, tick_values=(*rates,))
    note = "Cells of the same width, depth and hours of sound"
    return [
        Card(title, drawn, note)
        for title, name, y in (
            ("Loss by token rate", "loss", LOSS),
            ("Word errors by token rate", "wer", ERRORS),
        )
        if (drawn := scatter(cells, groups, _final_figure("r"), _final_figure(name), axis, y))
    ]


def _final_figure(name: str) -> CellFigure:
    return lambda cell: final_figure(cell, name)


def cost_cards(cells: Sequence[Cell]) -> list[Card]:
    """Time and cost of cells by group, planned and so far, and loss against them."""
    groups = group_cells(cells)
    rows = [_costs(name, groups.cells(cells, index)) for index, name in enumerate(groups.names)] + [
        _costs(NumberText("all"), cells)
    ]
    heads = (groups.title, "done", "planned", "so far", "cost planned", "so far")
    kept = [i for i in range(len(heads)) if any(row[i] is not None for row in rows)]
    content = table([heads[i] for i in kept], [[row[i] for i in kept] for row in rows])
    note = "Time of training: measured where a cell is done, by plan and updates where it is not"
    title, spent, x = _cost_axis(cells)
    drawn = scatter(common_rate_cells(cells), groups, spent, _final_figure("loss"), x, LOSS)
    return [Card("Time and cost", content, note)] + ([Card(title, drawn)] if drawn else [])


def _cost_axis(cells: Sequence[Cell]) -> tuple[str, CellFigure, Axis]:
    """Cost of a run where there is a price, else its time in a unit that suits all."""
    if any(cost(cell) for cell in cells):
        return "Loss by cost", cost, Axis("cost of training", format_number)
    if max((hours(cell) or 0.0 for cell in cells), default=0.0) > 2:
        return "Loss by time", hours, Axis("hours of training", PLAIN)
    minutes = lambda cell: None if (found := hours(cell)) is None else 60 * found
    return "Loss by time", minutes, Axis("minutes of training", PLAIN)


def _costs(name: str, cells: Sequence[Cell]) -> tuple[TableCell, ...]:
    planned, spent = (
        total([figure(one.plan, "hours") for one in cells]),
        total([*map(hours, cells)]),
    )
    return (
        name,
        NumberText(f"{sum(one.state == 'done' for one in cells)} of {len(cells)}"),
        None if planned is None else format_hours(planned),
        format_hours(spent) if spent else None,
        total([figure(one.plan, "cost") for one in cells]),
        total([*map(cost, cells)]) or None,
    )
