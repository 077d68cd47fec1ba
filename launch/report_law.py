"""The scaling law on a sweep's page: its figures, how it was checked, and what to run by it."""

from collections.abc import Callable, Mapping, Sequence

from launch import fitted, law_charts, points, predicted
from launch.inspect_html import Figure, card, counted, lasting, number, power, shown, table, tiles
from launch.ledger import Cell
from launch.quantity import Quantity
from launch.report_facts import scored
from melllm_jax.errors import Mistake

RESAMPLES = 100  # of the runs, for intervals
ROWS = 16  # of the runs held out that are listed: the largest
AHEAD = (2, 10)  # times the compute of the largest run
SPLIT = "Best parameters grow as FLOPs^a, positions as FLOPs^b"
FORM = "loss = E + A / parameters^alpha + B / positions^beta"


def law_cards(folder: str, cells: Sequence[Cell]) -> tuple[list[str], list[str]]:
    """The law's cards, and those of the runs that it proposes; without a law, the reason."""
    try:
        found = points.points(folder)
        fit = fitted.fitted(found, bootstrap=RESAMPLES)
    except Mistake as error:
        reason = f'<p class="faint">No law yet: {shown(str(error))}</p>'
        return [card("What the runs say together", reason)], []
    done = sum(cell.state == "done" for cell in cells)
    note = f"{FORM}; {len(found)} runs"
    if len(found) < done:
        note += f" of {done}: those of the commonest token rate"
    drawn = (
        ("Loss by compute", law_charts.losses(fit)),
        ("Runs of equal compute", law_charts.isoflop(fit)),
        ("Best size and data of a budget", law_charts.optimal(fit)),
        ("How far off the law each run is", law_charts.residuals(fit)),
    )
    cards = [
        card("The law", _constants(fit), note),
        card("The best split of a budget", _approaches(fit), SPLIT),
        *(card(title, svg) for title, svg in drawn if svg),
        card("Check on the largest runs", *_held_out(fit.held_out, cells), kind="wide"),
    ]
    most = max(point.flops for point in found)
    return cards, [_next(fit, times, most, cells) for times in AHEAD]


def precise(value: float) -> str:
    """A constant to four digits, or as a power of 10."""
    tame = value == 0 or 1e-3 <= abs(value) < 1e5
    return f"{value:#.4g}".rstrip(".").replace("-", "−") if tame else power(value)


def _constants(fit: fitted.Fit) -> str:
    rows = []
    for name in fitted.CONSTANTS:
        found = fit.constants[name]
        between = [Figure(" to ".join(map(precise, span))) for span in (found.p80, found.p95)]
        rows.append((name, Figure(precise(found.value)), *between))
    return table(("", "value", "80 %", "95 %"), rows)


def _approaches(fit: fitted.Fit) -> str:
    """Exponents of the best size and data by each approach; why one says nothing."""
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
            between = [Figure(_span(found[letter], precise)) for letter in "ab"]
            values = [Figure(precise(found[letter].value)) for letter in "ab"]
            rows.append((name, values[0], between[0], values[1], between[1]))
    listed = _listed([*reasons, *fit.warnings])
    return table(("approach", "a", "95 %", "b", "95 %"), rows) + listed


def _held_out(found: fitted.HeldOut, cells: Sequence[Cell]) -> tuple[str, str]:
    """What the law of the smaller runs says of the largest, and a note."""
    if found.refused:
        return f'<p class="faint">{shown(found.refused)}</p>', ""
    numbers = {cell.id: cell.number for cell in cells}
    rows = [
        (
            numbers.get(row.name),
            counted(row.params),
            counted(row.tokens),
            power(row.flops),
            Figure(f"{row.loss:.4f}"),
            Figure(f"{row.predicted:.4f}"),
            Figure(f"{row.p95[0]:.4f} to {row.p95[1]:.4f}"),
            Figure(f"{row.error:+.2%}".replace("-", "−")),
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


def _next(fit: fitted.Fit, times: int, most: float, cells: Sequence[Cell]) -> str:
    """The best run of so many times the compute of the largest."""
    found = predicted.predicted(fit, flops=times * most)
    figures = [
        (counted(found.n.value), f"parameters (95 %: {_span(found.n, counted)})"),
        (counted(found.d.value), f"positions (95 %: {_span(found.d, counted)})"),
        (f"{found.loss.value:.3f}", f"loss (95 %: {_span(found.loss, '{:.3f}'.format)})"),
    ]
    if found.hours is not None:
        figures.append((lasting(found.hours), "of sound"))
    if (pace := _pace(cells)) is not None:
        figures.append((lasting(found.flops * pace), "of training, at the largest run's pace"))
    near = (
        f"Nearest preset: {found.preset}, {counted(found.preset_params)} parameters, "
        f"{counted(found.preset_tokens)} positions, loss {found.preset_loss.value:.3f}"
    )
    content = (
        f"{tiles(figures)}<p>{shown(near)}</p><pre>{shown(found.command)}</pre>"
        f"{_listed(found.warnings)}"
    )
    title = f"{number(times)} times the compute: {power(found.flops)} FLOPs"
    return card(title, content)


def _pace(cells: Sequence[Cell]) -> float | None:
    """Hours a FLOP of the largest run."""
    known = [
        (work, seconds / 3600 / work)
        for cell in cells
        if (work := scored(cell, "flops")) and (seconds := scored(cell, "train_seconds"))
    ]
    return max(known)[1] if known else None


def _span(found: Quantity, written: Callable[[float], str]) -> str:
    return " to ".join(map(written, found.p95))


def _listed(lines: Sequence[str]) -> str:
    items = "".join(f"<li>{shown(line)}</li>" for line in lines)
    return f'<ul class="odd">{items}</ul>' if lines else ""
