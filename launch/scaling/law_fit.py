"""Fits a law to runs by three approaches, with intervals and a check on runs held out."""

from collections.abc import Sequence
import dataclasses

from jaxtyping import Float
import numpy as np

from launch.scaling import parametric_fit
from launch.scaling.envelope import Envelope, fit_envelope
from launch.scaling.held_out_refits import measure_widening
from launch.scaling.identifiability import design_line
from launch.scaling.intervals import (
    LEAST,
    Interval,
    Quantity,
    bootstrap_indices,
    count_clusters,
    quantity,
)
from launch.scaling.isoflop import Isoflop, fit_isoflop
from launch.scaling.law import Law
from launch.scaling.parametric_fit import refit
from launch.scaling.points import Point
from launch.scaling.prediction import ResampledLaw, inflate_residuals, predict_loss
from melllm_jax.errors import Mistake

CONSTANTS = ("E", "A", "B", "alpha", "beta")
POINTS = len(CONSTANTS) + 1  # least number: as many as constants cannot show how well a law fits
SPREAD = 1.1  # ratio of FLOPs a parameter and token of the points, above which a warning says so
CLEAR = 0.01  # of the least loss: an E whose 95 % reach below it was not determined

Array = Float[np.ndarray, " points"]


@dataclasses.dataclass(frozen=True)
class HeldOutRun:
    """A run held out, and its loss as the law of the smaller runs predicts it."""

    name: str
    params: float
    tokens: float
    flops: float
    loss: float
    predicted: float
    p80: Interval
    p95: Interval
    error: float  # predicted over measured, less 1


@dataclasses.dataclass(frozen=True)
class HeldOutCheck:
    """How well the law of smaller runs predicts the largest; `refused` says why it was not."""

    refused: str
    fitted_on: int  # runs
    rows: tuple[HeldOutRun, ...]
    worst: float | None  # largest error, without its sign
    inside: int  # rows whose loss lies in their 95 %


@dataclasses.dataclass(frozen=True)
class LawFit(ResampledLaw):
    """The law of all runs, and all else that a fit finds."""

    points: tuple[Point, ...]
    constants: dict[str, Quantity]  # the five, a, b, n_coefficient and d_coefficient
    envelope: Envelope
    isoflop: Isoflop
    held_out: HeldOutCheck

    @property
    def residuals(self) -> Array:
        """Log of the ratio of measured loss to the law's, for each point."""
        n, d, _, loss = _arrays(self.points)
        return np.log(loss / self.law.loss(n, d))


def fit_law(
    points: Sequence[Point], held_out: float = 0.2, bootstrap: int = 200, seed: int = 0
) -> LawFit:
    """The law of `points`, with intervals from `bootstrap` resamples of them.

    The share `held_out` of the runs, those of most FLOPs, is predicted from the others; the law
    itself is of all. Raises Mistake where the points cannot determine five constants, as where
    their tokens follow from their parameters (`identifiability`).
    """
    _check(points)
    n, d, flops, loss = _arrays(points)
    per = float(np.median(flops / (n * d)))
    law = parametric_fit.fit_parametric(n, d, loss)
    residuals = np.log(loss / law.loss(n, d))
    if reason := design_line(n, d, loss, residuals, len(CONSTANTS)).reason:
        raise Mistake(reason)
    rng = np.random.default_rng(seed)
    resamples = list(bootstrap_indices(n, d, bootstrap, rng))
    samples = refit(law, n, d, loss, resamples)
    noise = inflate_residuals(residuals, len(CONSTANTS))
    noise_draws = [rng.choice(noise, len(n)) for _ in range(bootstrap)]
    groups = fit_isoflop(n, d, flops, loss, law, per, noise_draws)
    widening = measure_widening(law, n, d, loss, seed)
    hours = [point.hours / point.tokens for point in points if point.hours]
    return LawFit(
        law=law,
        per=per,
        samples=samples,
        noise=noise,
        widening=widening,
        budgets=(float(flops.min()), float(flops.max())),
        sizes=(float(n.min()), float(n.max())),
        hours=float(np.median(hours)) if hours else None,
        points=tuple(points),
        constants=_constants(law, samples, per),
        envelope=fit_envelope(n, flops, loss, per, noise_draws),
        isoflop=groups,
        held_out=_held_out(points, held_out, bootstrap, seed),
        warnings=(*_warnings(law, samples, n, d, flops, loss), *groups.warnings),
    )


def _check(points: Sequence[Point]) -> None:
    """Raises Mistake where the points cannot determine five constants."""
    if len(points) < POINTS:
        raise Mistake(f"{len(points)} runs: a law of {len(CONSTANTS)} constants takes {POINTS}")
    n, d, _, loss = _arrays(points)
    if loss.min() == loss.max():
        raise Mistake(f"loss={loss[0]:g}: is the same in all {len(points)} runs")
    for values, name, constants in ((n, "params", "A and alpha"), (d, "tokens", "B and beta")):
        count = count_clusters(values)
        if count < LEAST:
            raise Mistake(
                f"{name}: {count} different in {len(points)} runs: "
                f"{LEAST} are needed to tell E, {constants} apart"
            )


def _arrays(points: Sequence[Point]) -> tuple[Array, Array, Array, Array]:
    rows = [(point.params, point.tokens, point.flops, point.loss) for point in points]
    n, d, flops, loss = np.array(rows, np.float64).T
    return n, d, flops, loss


def _constants(law: Law, samples: Sequence[Law], per: float) -> dict[str, Quantity]:
    constants = {
        name: quantity(getattr(law, name), np.array([getattr(one, name) for one in samples]))
        for name in (*CONSTANTS, "a", "b")
    }
    # Coefficients of C^a and C^b: the best N and D of one FLOP.
    best = np.array([one.best(1.0, per) for one in samples])
    for column, name in enumerate(("n_coefficient", "d_coefficient")):
        constants[name] = quantity(law.best(1.0, per)[column], best[:, column])
    return constants


def _held_out(points: Sequence[Point], share: float, bootstrap: int, seed: int) -> HeldOutCheck:
    if not share:
        return HeldOutCheck("not asked for", 0, (), None, 0)
    ordered = sorted(points, key=lambda point: point.flops)
    apart = max(1, round(share * len(points)))
    rest, largest = ordered[:-apart], ordered[-apart:]
    try:
        smaller = fit_law(rest, 0.0, bootstrap, seed)
    except Mistake as mistake:
        return HeldOutCheck(
            f"without the largest {apart} there is no law: {mistake}", 0, (), None, 0
        )
    rows = []
    for point in largest:
        loss = predict_loss(smaller, point.params, point.tokens)
        rows.append(
            HeldOutRun(
                name=point.name,
                params=point.params,
                tokens=point.tokens,
                flops=point.flops,
                loss=point.loss,
                predicted=loss.value,
                p80=loss.p80,
                p95=loss.p95,
                error=loss.value / point.loss - 1,
            )
        )
    inside = sum(row.p95[0] <= row.loss <= row.p95[1] for row in rows)
    return HeldOutCheck("", len(rest), tuple(rows), max(abs(row.error) for row in rows), inside)


def _warnings(
    law: Law, samples: Sequence[Law], n: Array, d: Array, flops: Array, loss: Array
) -> list[str]:
    warnings = []
    per = flops / (n * d)
    if per.max() > SPREAD * per.min():
        warnings.append(
            f"FLOPs a parameter and token lie between {per.min():.3g} and {per.max():.3g}: budgets "
            f"are taken at their median, {np.median(per):.3g}"
        )
    if np.percentile([one.E for one in samples], 2.5) < CLEAR * loss.min():
        warnings.append("E may be 0: the runs do not reach where the loss levels off")
    for name in ("alpha", "beta"):
        value = getattr(law, name)
        if not parametric_fit.FLATTEST < value < parametric_fit.STEEPEST:
            warnings.append(f"{name}={value:g} is at the bound of its search: not determined")
    return warnings
