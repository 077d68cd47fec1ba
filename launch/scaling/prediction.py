"""Predicts the best run of a budget by a law: its size, tokens, loss and command."""

import dataclasses
import math

from jaxtyping import Float
import numpy as np

from launch.scaling.held_out_refits import Widening
from launch.scaling.intervals import Quantity, quantity
from launch.scaling.law import Law
from melllm_jax.config.run import Run
from melllm_jax.errors import Mistake
from melllm_jax.flops import matmul_parameters, stack_parameters
from melllm_jax.presets import catalog, ladder

BEYOND = 10.0  # times the largest budget fitted: further out a law of few points is a guess
NEAR = 2.0  # ratio of sizes beyond which the nearest preset is not near


@dataclasses.dataclass(frozen=True)
class ResampledLaw:
    """A law with its resamples and residuals: what a prediction takes of a fit."""

    law: Law
    per: float  # FLOPs of training a parameter and token
    samples: tuple[Law, ...]  # of resampled points
    noise: tuple[float, ...]  # residuals of log loss, as wide as those of new runs would be
    widening: Widening | None  # of losses; None of few runs, and in files of before it was measured
    budgets: tuple[float, float]  # least and most FLOPs of the points
    sizes: tuple[float, float]  # least and most parameters
    hours: float | None  # of sound a token, where that is known
    warnings: tuple[str, ...]  # of the fit: what makes its figures doubtful


@dataclasses.dataclass(frozen=True)
class Prediction:
    """The best run of a budget, and the ladder's run that is nearest to it."""

    flops: float
    n: Quantity  # parameters, counted as those of the points
    d: Quantity  # tokens
    loss: Quantity  # of one run of that size and length: `predict_loss`
    hours: float | None  # of sound in as many tokens
    preset: str
    preset_params: int
    preset_tokens: float  # that the budget pays for at that size
    preset_loss: Quantity
    steps: int
    command: str
    warnings: tuple[str, ...]  # of the prediction itself
    law_warnings: tuple[str, ...]  # of the fit


def predict(known: ResampledLaw, flops: float) -> Prediction:
    """The best run of `flops` FLOPs. Raises Mistake where the law has none."""
    if not math.isfinite(flops) or flops <= 0:
        raise Mistake(f"flops={flops:g}: must be finite and above 0")
    n, d = known.law.best(flops, known.per)
    if min(n, d) < 1:
        raise Mistake(
            f"flops={flops:g}: the law's best run has {n:.2g} parameters and {d:.2g} tokens: its "
            "alpha and beta say nothing of such a budget"
        )
    ns, ds = np.array([law.best(flops, known.per) for law in known.samples]).T
    name, params, run = _nearest_rung(n)
    tokens = flops / (known.per * params)
    size = run.data.b * run.data.t
    steps = max(1, math.ceil(tokens / size))
    # The preset's own rate and warm-up are those of its own length.
    lr = ladder.learning_rate(float(stack_parameters(run.model)), float(steps * size), float(size))
    return Prediction(
        flops=flops,
        n=quantity(n, ns),
        d=quantity(d, ds),
        loss=predict_loss(known, n, d),
        hours=None if known.hours is None else known.hours * d,
        preset=name,
        preset_params=params,
        preset_tokens=tokens,
        preset_loss=predict_loss(known, params, tokens),
        steps=steps,
        command=f"melllm train {name} --steps {steps} --optim.lr {lr:g} "
        f"--optim.warmup {ladder.warmup_updates(steps)} --data DIR --workdir RUN",
        warnings=tuple(_warnings(known, flops, n, name, params)),
        law_warnings=known.warnings,
    )


def predict_loss(known: ResampledLaw, n: float, d: float) -> Quantity:
    """Loss of a run, with intervals over the uncertainty of the law and the noise of one run.

    They are as wide, at least, as the errors of refits on runs held out (`held_out_refits`).
    """
    laws = np.log([law.loss(n, d) for law in known.samples])
    loss = quantity(known.law.loss(n, d), np.exp(np.add.outer(laws, known.noise)).ravel())
    return known.widening.widen(loss, n, d) if known.widening else loss


def inflate_residuals(residuals: Float[np.ndarray, " points"], constants: int) -> tuple[float, ...]:
    """Residuals widened to those of points not fitted to: by √(n / (n - constants)) of n points."""
    freedom = len(residuals) / max(len(residuals) - constants, 1)
    return tuple(float(x) for x in residuals * math.sqrt(freedom))


def _nearest_rung(n: float) -> tuple[str, int, Run]:
    """Name, multiplying parameters and run of the rung nearest in size, by ratio."""
    runs = {name: catalog.preset(name) for name in ladder.RUNGS}
    sizes = {name: matmul_parameters(run) for name, run in runs.items()}
    name = min(sizes, key=lambda one: abs(math.log(sizes[one] / n)))
    return name, sizes[name], runs[name]


def _warnings(known: ResampledLaw, flops: float, n: float, name: str, params: int) -> list[str]:
    warnings = []
    low, high = known.budgets
    if flops > BEYOND * high:
        warnings.append(f"{flops:.3g} FLOPs are {flops / high:,.0f} times the most fitted")
    if flops < low / BEYOND:
        warnings.append(f"{flops:.3g} FLOPs are 1/{low / flops:,.0f} of the least fitted")
    if max(n / params, params / n) > NEAR:
        warnings.append(f"the nearest preset, {name}, has {params:.3g} parameters, not {n:.3g}")
    return warnings
