"""`melllm sweep report`: all of a sweep on one page of HTML, opened from disk, without a script.

Whatever state the sweep is in: what is not there yet is left out, and what cannot be said says why.
"""

from collections import Counter
from collections.abc import Sequence
import os
import shlex
import time

from etils import epath

from launch.charts import line_chart
from launch.charts.html import card, document, escape_text, text_html, tiles
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
STYLE = """
nav { margin-bottom: 14px; }
td:first-child:not(:empty) { overflow-wrap: normal; }
pre { margin: 8px 0; white-space: pre-wrap; overflow-wrap: anywhere; font-size: 13px; }
"""
STATES = ("done", "running", "lost", "pending", "preempted", "failed")


def write_report(folder: str) -> epath.Path:
    """The path of the page, written into a sweep's folder.

    Raises Mistake where `folder` holds no sweep, Fault where a file of it is damaged.
    """
    ledger = Ledger(folder)
    path = ledger.folder / PAGE
    files.write_text(path, page(ledger).decode())
    return path


def page(ledger: Ledger) -> bytes:
    """The page."""
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
        "Cells": [*_failed_cards(cells), card("All", cell_table(cells), kind="wide")],
    }
    present = {title: cards for title, cards in sections.items() if cards}
    links = [f'<a href="#part{i}">{escape_text(title)}</a>' for i, title in enumerate(present)]
    return document(
        f"{sweep.name}: a sweep",
        [
            f"<h1>{text_html(sweep.name)}</h1>",
            f'<p class="faint">{_about(sweep, cells)}</p>',
            f"<nav>{''.join(links)}</nav>",
            _overview(sweep, cells),
            *(
                f'<h2 id="part{i}">{escape_text(title)}</h2>'
                f'<div class="cards">{"".join(cards)}</div>'
                for i, (title, cards) in enumerate(present.items())
            ),
        ],
        line_chart.STYLE + STYLE,
    )


def _about(sweep: Sweep, cells: Sequence[Cell]) -> str:
    now = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
    parts = [f"{len(cells)} cell{'s' * (len(cells) > 1)}", f"spec {sweep.digest}", sweep.backend]
    parts += [f"planned for {sweep.topology}"] if sweep.topology else []
    return f"{' · '.join(map(text_html, parts))} · {now} · by melllm sweep report"


def _overview(sweep: Sweep, cells: Sequence[Cell]) -> str:
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
    return tiles(figures)


def _resume_cards(folder: str, cells: Sequence[Cell]) -> list[str]:
    """How to go on with what is not done."""
    missing = sum(cell.state != "done" for cell in cells)
    if not missing:
        return []
    said = f"<p>Not done: {missing} of {len(cells)} cells.</p>"
    command = f"<pre>{text_html(f'melllm sweep resume {shlex.quote(folder)}')}</pre>"
    return [card("Finish this sweep", said + command, kind="wide")]


def _failed_cards(cells: Sequence[Cell]) -> list[str]:
    lines = "".join(f"<li>{text_html(line)}</li>" for line in failures(cells))
    return [card("Failed", f'<ul class="odd">{lines}</ul>', kind="wide")] if lines else []
