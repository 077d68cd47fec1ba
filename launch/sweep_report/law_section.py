"""The scaling law on a sweep's page: its figures, how it was checked, and what to run by it."""

from collections.abc import Callable, Mapping, Sequence

from markupsafe import Markup

from launch.charts.html import Card, command, faint, paragraph, table, tiles, warning_list
from launch.scaling import law_charts, law_fit, points, prediction
from launch.scaling.intervals import Quantity
from launch.sweep.ledger import Cell
from launch.sweep_report.cell_figures import final_figure
from launch.terminal.number_format import (
    NumberText,
    format_constant,
    format_count,
    format_hours,
    format_number,
    format_power,
)
from melllm_jax.errors import Mistake

RESAMPLES = 100  # of the runs, for intervals
ROWS = 16  # of the runs held out that are listed: the largest
PROPOSED = (2, 10)  # times the compute of the largest run
SPLIT = "Best parameters grow as FLOPs^a, positions as FLOPs^b"
FORM = "loss = E + A / parameters^alpha + B / positions^beta"


def law_cards(folder: str, cells: Sequence[Cell]) -> tuple[list[Card], list[Card]]:
    """Cards of the law, and of the runs that it proposes; without a law, a card with the reason."""
    try:
        found = points.load_points(folder)
        fit = law_fit.fit_law(found, bootstrap=RESAMPLES)
    except Mistake as error:
        return [Card("What the runs say together", faint(f"No law yet: {error}"))], []
    done = sum(cell.state == "done" for cell in cells)
    note = f"{FORM}; {len(found)} runs"
    if len(found) < done:
        note += f" of {done}: those of the commonest token rate"
    drawn = (
        ("Loss by compute", law_charts.losses(fit)),
        ("Runs of equal compute", law_charts.isoflop(fit)),
        ("Best size and data of a budget", law_charts.optimum(fit)),
        ("How far off the law each run is", law_charts.residuals(fit)),
    )
    cards = [
        Card("The law", _constants(fit), note),
        Card("The best split of a budget", _approaches(fit), SPLIT),
        *(Card(title, svg) for title, svg in drawn if svg),
        Card("Check on the largest runs", *_held_out(fit.held_out, cells), wide=True),
    ]
    most = max(point.flops for point in found)
    return cards, [_next(fit, times, most, cells) for times in PROPOSED]


def _constants(fit: law_fit.LawFit) -> Markup:
    rows = []
    for name in law_fit.CONSTANTS:
        found = fit.constants[name]
        between = [
            NumberText(" to ".join(map(format_constant, span))) for span in (found.p80, found.p95)
        ]
        rows.append((name, NumberText(format_constant(found.value)), *between))
    return table(("", "value", "80 %", "95 %"), rows)


def _approaches(fit: law_fit.LawFit) -> Markup:
    """Exponents of the best size and data by each approach, and why one gives none."""
    named: tuple[tuple[str, str, Mapping[str, Quantity]], ...] = (
        ("1, envelope", fit.envelope.refused, fit.envelope.optimal),
        ("2, parabolas", fit.isoflop.refused, fit.isoflop.optimal),
        ("3, the law", "", fit.constants),
    )
    rows, reasons = [], []
    for name, refused, found in named:
        if refused:
            reasons.append(f"Approach {name}: {refused}")
        else:
            between = [
                NumberText(_interval_text(found[letter], format_constant)) for letter in "ab"
            ]
            values = [NumberText(format_constant(found[letter].value)) for letter in "ab"]
            rows.append((name, values[0], between[0], values[1], between[1]))
    heads = ("approach", "a", "95 %", "b", "95 %")
    return table(heads, rows) + warning_list([*reasons, *fit.warnings])


def _held_out(found: law_fit.HeldOutCheck, cells: Sequence[Cell]) -> tuple[Markup, str]:
    """The largest runs beside their prediction by the law of the smaller ones, and a note."""
    if found.refused:
        return faint(found.refused), ""
    numbers = {cell.id: cell.number for cell in cells}
    rows = [
        (
            numbers.get(row.name),
            format_count(row.params),
            format_count(row.tokens),
            format_power(row.flops),
            NumberText(f"{row.loss:.4f}"),
            NumberText(f"{row.predicted:.4f}"),
            NumberText(f"{row.p95[0]:.4f} to {row.p95[1]:.4f}"),
            NumberText(f"{row.error:+.2%}".replace("-", "−")),
        )
        for row in found.rows[-ROWS:]
    ]
    heads = ("cell", "size", "positions", "FLOPs", "loss", "predicted", "95 %", "off by")
    note = (
        f"Predicted by a law of the {found.fitted_on} smaller runs alone: off by at most "
        f"{found.worst:.2%}; {found.inside} of {len(found.rows)} lie in their 95 %"
    )
    if len(found.rows) > ROWS:
        note += f"; the largest {ROWS} are listed"
    return table(heads, rows), note


def _next(fit: law_fit.LawFit, times: int, most: float, cells: Sequence[Cell]) -> Card:
    """The best run of so many times the compute of the largest."""
    found = prediction.predict(fit, flops=times * most)
    figures = [
        (
            format_count(found.n.value),
            f"parameters (95 %: {_interval_text(found.n, format_count)})",
        ),
        (format_count(found.d.value), f"positions (95 %: {_interval_text(found.d, format_count)})"),
        (f"{found.loss.value:.3f}", f"loss (95 %: {_interval_text(found.loss, '{:.3f}'.format)})"),
    ]
    if found.hours is not None:
        figures.append((format_hours(found.hours), "of sound"))
    if (pace := _pace(cells)) is not None:
        figures.append((format_hours(found.flops * pace), "of training, at the largest run's pace"))
    near = (
        f"Nearest preset: {found.preset}, {format_count(found.preset_params)} parameters, "
        f"{format_count(found.preset_tokens)} positions, loss {found.preset_loss.value:.3f}"
    )
    content = (
        tiles(figures) + paragraph(near) + command(found.command) + warning_list(found.warnings)
    )
    title = f"{format_number(times)} times the compute: {format_power(found.flops)} FLOPs"
    return Card(title, content)


def _pace(cells: Sequence[Cell]) -> float | None:
    """Hours a FLOP of the largest run."""
    known = [
        (work, seconds / 3600 / work)
        for cell in cells
        if (work := final_figure(cell, "flops"))
        and (seconds := final_figure(cell, "train_seconds"))
    ]
    return max(known)[1] if known else None


def _interval_text(fitted: Quantity, format_value: Callable[[float], str]) -> str:
    return " to ".join(map(format_value, fitted.p95))
