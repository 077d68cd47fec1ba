"""`melllm scaling WHAT`: fits a law to runs, and predicts the best run of a budget."""

from collections.abc import Sequence
import dataclasses
import json
import math
from typing import Annotated

from tyro.conf import Positional, arg

from launch.scaling import law_charts, law_fit, law_json, points, prediction
from launch.scaling.held_out_refits import Widening
from launch.scaling.intervals import Quantity
from launch.terminal.flags import parse
from melllm_jax import files
from melllm_jax.errors import Fault, Mistake

LAW_FILE = "law.json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScalingFitArguments:
    """Fit L = E + A/N^alpha + B/D^beta to runs, and find the best N and D of a budget three ways.

    Approaches 1 to 3 of Hoffmann et al. 2022, each with intervals by resampling, a check that
    predicts the largest runs from the smaller, and what makes a figure doubtful. Writes law.json
    and charts. Refuses runs whose tokens follow from their parameters, as with one ratio of both:
    they do not determine the best split. RUNS is a sweep's folder or a CSV with the columns loss
    (nats a token) and two of params, tokens and flops; flops = 6 · params · tokens gives the third.
    """

    runs: Annotated[str, Positional, arg(metavar="RUNS")]  # CSV, or folder of a sweep
    out: str  # folder for law.json and the charts
    held_out: float = 0.2  # share of the runs, those of most FLOPs, to predict from the others
    bootstrap: int = 200  # resamples that the intervals are percentiles of
    seed: int = 0  # of the resamples
    json: bool = False  # print law.json on standard output and nothing else

    def __post_init__(self) -> None:
        if not 0 <= self.held_out < 1:
            raise Mistake(f"held_out={self.held_out}: must be 0 or more and below 1")
        if self.bootstrap < 20:
            raise Mistake(f"bootstrap={self.bootstrap}: must be 20 or more")
        if self.seed < 0:
            raise Mistake(f"seed={self.seed}: must be 0 or more")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScalingPredictArguments:
    """The best run of a budget by a law: parameters, tokens, loss, and the preset to launch.

    Intervals hold the law's doubt; that of the loss holds a run's own noise as well, and is as wide
    at least as what refits were off by on runs held out.
    """

    law: Annotated[str, Positional, arg(metavar="LAW.json")]  # that `melllm scaling fit` wrote
    flops: float  # of all training
    json: bool = False  # print one JSON object on standard output and nothing else


def fit(argv: Sequence[str]) -> int:
    """`melllm scaling fit RUNS --out DIR`: fit a law and write it.

    Raises Mistake for runs that it cannot be fitted to.
    """
    arguments = parse(ScalingFitArguments, argv, prog="melllm scaling fit")
    runs = points.load_points(arguments.runs)
    try:
        found = law_fit.fit_law(runs, arguments.held_out, arguments.bootstrap, arguments.seed)
    except Mistake as mistake:
        raise Mistake(f"{arguments.runs}: {mistake}") from mistake
    written = law_json.to_json(found, arguments.runs)
    folder = files.place(arguments.out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        files.replace_file(folder / LAW_FILE, written.encode())
        for name, drawn in law_charts.files(found).items():
            files.replace_file(folder / name, drawn.encode())
    except OSError as error:
        raise Fault(f"out={arguments.out}: cannot be written: {error.strerror}") from error
    print(written if arguments.json else format_fit(found, arguments.out), end="")
    return 0


def predict(argv: Sequence[str]) -> int:
    """`melllm scaling predict LAW.json --flops X`: print the best run of a budget."""
    arguments = parse(ScalingPredictArguments, argv, prog="melllm scaling predict")
    best = prediction.predict(law_json.read(arguments.law), arguments.flops)
    print(json.dumps(dataclasses.asdict(best)) if arguments.json else format_prediction(best))
    return 0


def format_fit(found: law_fit.LawFit, out: str) -> str:
    """A fit in words."""
    lines = [f"{len(found.points)} runs; loss = E + A/N^alpha + B/D^beta, with 95 %:"]
    for name in (*law_fit.CONSTANTS, "a", "b"):
        lines.append(f"  {name:6} {_format_interval(found.constants[name])}")
    for number, one in (("1", found.envelope), ("2", found.isoflop)):
        text = _format_interval(one.optimal["a"]) if one.optimal else f"none: {one.refused}"
        lines.append(f"  a by approach {number}: {text}")
    lines.append(_format_widening(found.widening))
    held = found.held_out
    if held.rows:
        lines.append(
            f"held out: {len(held.rows)} largest runs from {held.fitted_on} smaller, loss off by "
            f"{100 * (held.worst or 0):.2f} % at most, {held.inside} inside their 95 %"
        )
    else:
        lines.append(f"held out: none: {held.refused}")
    lines += [f"warning: {word}" for word in found.warnings]
    return "\n".join([*lines, f"written: {out}/{LAW_FILE} and charts", ""])


def format_prediction(best: prediction.Prediction) -> str:
    """A prediction in words."""
    sound = "" if best.hours is None else f", {best.hours:,.4g} h of sound"
    lines = [
        f"{best.flops:.3g} FLOPs, with 95 %:",
        f"  parameters {_format_interval(best.n)}",
        f"  tokens     {_format_interval(best.d)}{sound}",
        f"  loss       {_format_interval(best.loss)}",
        f"nearest preset: {best.preset}, {best.preset_params:,} parameters, "
        f"{best.preset_tokens:.3g} tokens, loss {_format_interval(best.preset_loss)}",
        f"  {best.command}",
        *(f"warning: {word}" for word in best.warnings),
        *(f"warning of the fit: {word}" for word in best.law_warnings),
    ]
    return "\n".join(lines)


def _format_widening(known: Widening | None) -> str:
    """How wide the 95 % of a predicted loss are at least, at the runs and beyond them."""
    if known is None:
        return (
            "95 % of a predicted loss: the law's doubt alone: too few runs for refits without some"
        )
    n, d, _ = known.largest
    at, beyond = (100 * math.expm1(known.half_widths(n * x, d * x)[1]) for x in (1, math.sqrt(10)))
    return (
        f"95 % of a predicted loss: at least ±{at:.2g} % at the runs, ±{beyond:.2g} % at 10 times "
        f"the compute of the largest: {known.method} ({known.refits} refits)"
    )


def _format_interval(one: Quantity) -> str:
    return f"{one.value:.4g} ({one.p95[0]:.4g} to {one.p95[1]:.4g})"
