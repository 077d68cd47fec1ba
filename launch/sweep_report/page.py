"""`melllm sweep report`: writes all of a sweep to one page of HTML, without a script.

The sweep may be in any state: what is not there yet is left out, and where a figure cannot be had,
the page says why.
"""

from collections import Counter
from collections.abc import Sequence
import os
import shlex
import time

from etils import epath
from markupsafe import Markup

from launch.charts import line_chart
from launch.charts.html import Card, command, paragraph, render, warning_list
from launch.sweep.ledger import Cell, Ledger, Sweep
from launch.sweep.status import eta, remaining_seconds, state
from launch.sweep_report.cell_figures import cost, final_figure, hours, total
from launch.sweep_report.cells_table import cell_table, failures
from launch.sweep_report.chart_sections import cost_cards, curve_cards, error_cards, rate_cards
from launch.sweep_report.law_section import law_cards
from launch.sweep_report.loss_curves import read_curves
from launch.terminal.number_format import format_hours, format_number
from melllm_jax import files

PAGE = "report.html"
STATES = ("done", "running", "lost", "pending", "preempted", "failed")


def write_report(folder: str) -> epath.Path:
    """Writes the page into a sweep's folder and returns its path.

    Raises Mistake where `folder` holds no sweep, Fault where a file of it is damaged.
    """
    ledger = Ledger(folder)
    path = ledger.folder / PAGE
    files.write_text(path, page(ledger).decode())
    return path


def page(ledger: Ledger) -> bytes:
    """The page in UTF-8."""
    sweep, cells = ledger.sweep, ledger.cells()
    folder = os.fspath(ledger.folder)
    law, after = law_cards(folder, cells)
    sections = {
        "Loss": curve_cards(cells, read_curves(ledger.folder, cells)),
        "Scaling law": law,
        "What to run next": [*_resume_cards(folder, cells), *after],
        "Word errors": error_cards(cells),
        "Token rate": rate_cards(cells),
        "Time and cost": cost_cards(cells),
        "Cells": [*_failed_cards(cells), Card("All", cell_table(cells), wide=True)],
    }
    return render(
        "sweep_report/page.html",
        name=sweep.name,
        about=_about(sweep, cells),
        now=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        figures=_overview(sweep, cells),
        sections={title: cards for title, cards in sections.items() if cards},
        chart_style=Markup(line_chart.STYLE),
    ).encode()


def _about(sweep: Sweep, cells: Sequence[Cell]) -> list[str]:
    parts = [f"{len(cells)} cell{'s' * (len(cells) > 1)}", f"spec {sweep.digest}", sweep.backend]
    return parts + ([f"planned for {sweep.topology}"] if sweep.topology else [])


def _overview(sweep: Sweep, cells: Sequence[Cell]) -> list[tuple[str, str]]:
    count = Counter(map(state, cells))
    figures = [(f"{count['done']} of {len(cells)}", "done")]
    figures += [(str(count[name]), name) for name in STATES[1:] if count[name]]
    spent, paid = total([*map(hours, cells)]), total([*map(cost, cells)])
    ahead = eta(cells, remaining_seconds(cells))
    figures += [(format_hours(spent), "of training so far")] if spent else []
    figures += [(format_hours(ahead / 3600), "to go, as many at once as now")] if ahead else []
    figures += (
        [(format_number(paid), f"cost so far, at {sweep.price:g} a chip hour")] if paid else []
    )
    best = [
        (loss, cell.number) for cell in cells if (loss := final_figure(cell, "loss")) is not None
    ]
    errors = [
        (wer, cell.number) for cell in cells if (wer := final_figure(cell, "wer")) is not None
    ]
    if best:
        figures.append((f"{min(best)[0]:.3f}", f"best loss, nats a token: cell {min(best)[1]}"))
    if errors:
        figures.append((f"{min(errors)[0]:.1%}", f"best WER: cell {min(errors)[1]}"))
    return figures


def _resume_cards(folder: str, cells: Sequence[Cell]) -> list[Card]:
    """The command that goes on with the cells that are not done; no card where all are."""
    missing = sum(cell.state != "done" for cell in cells)
    if not missing:
        return []
    content = paragraph(f"Not done: {missing} of {len(cells)} cells.")
    content += command(f"melllm sweep resume {shlex.quote(folder)}")
    return [Card("Finish this sweep", content, wide=True)]


def _failed_cards(cells: Sequence[Cell]) -> list[Card]:
    lines = failures(cells)
    return [Card("Failed", warning_list(lines), wide=True)] if lines else []
