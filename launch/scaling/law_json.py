"""Writes a fit as `law.json`, and reads back what a prediction takes."""

from collections.abc import Mapping, Sequence
import dataclasses
import json
from typing import Any

import numpy as np

from launch.scaling.held_out_refits import Widening
from launch.scaling.identifiability import design_line
from launch.scaling.law import Law
from launch.scaling.law_fit import CONSTANTS, LawFit
from launch.scaling.prediction import ResampledLaw
from melllm_jax import files
from melllm_jax.errors import Mistake
from melllm_jax.json_text import parse_json

VERSION = 1


def to_json(fit: LawFit, source: str) -> str:
    """The text of `law.json`: all of the fit, and under "known" what a prediction reads."""
    known = {
        "law": dataclasses.asdict(fit.law),
        "per": fit.per,
        "samples": [[_short(getattr(law, name)) for name in CONSTANTS] for law in fit.samples],
        "noise": [_short(x) for x in fit.noise],
        "widening": fit.widening and dataclasses.asdict(fit.widening),
        "budgets": fit.budgets,
        "sizes": fit.sizes,
        "hours": fit.hours,
    }
    tree: dict[str, Any] = {
        "version": VERSION,
        "source": source,
        "form": "loss = E + A / params^alpha + B / tokens^beta",
        "units": {
            "params": "weights that multiply at every position, as the runs count them",
            "tokens": "positions trained on, as the runs count them",
            "loss": "nats a token",
            "flops": "of all training; per · params · tokens",
            "optimal": "params = n_coefficient · flops^a, tokens = d_coefficient · flops^b",
            "intervals": "p80 and p95: percentiles over resamples of the runs; of losses, at least "
            "value · exp(±q80 or ±q95 · (inside + beyond · distance)) of known.widening, distance: "
            "the logs of params, tokens and their product over the largest, where above 0, summed",
        },
        "constants": _plain(fit.constants),
        "per": fit.per,
        "envelope": _plain(fit.envelope),
        "isoflop": _plain(fit.isoflop),
        "held_out": _plain(fit.held_out),
        "warnings": fit.warnings,
        "points": [
            dataclasses.asdict(point) | {"residual": float(residual)}
            for point, residual in zip(fit.points, fit.residuals, strict=True)
        ],
        "known": known,
    }
    return json.dumps(tree, indent=1, allow_nan=False) + "\n"


def read(path: str) -> ResampledLaw:
    """The resampled law of a `law.json`.

    Raises Mistake where the file is none, or its runs do not determine a law: `melllm scaling fit`
    once wrote those too.
    """
    try:
        tree = parse_json(files.place(path).read_bytes(), parse_constant=_refuse_constant)
        if tree["version"] != VERSION:
            raise Mistake(f"{path}: version={tree['version']}: must be {VERSION}")
        known = _law_from_json(tree["known"], tree["warnings"])
        if not min(known.per, *known.budgets, *known.sizes) > 0:
            raise ValueError("per, budgets and sizes must be above 0")
        names = ("params", "tokens", "loss", "residual")
        rows = [[float(point[name]) for name in names] for point in tree["points"]]
        n, d, loss, off = np.array(rows, np.float64).T
        if not min(n.min(), d.min(), loss.min()) > 0:
            raise ValueError("points hold a number that is not above 0")
        if reason := design_line(n, d, loss, off, len(CONSTANTS)).reason:
            raise Mistake(f"{path}: {reason}")
        return known
    except (FileNotFoundError, IsADirectoryError) as error:
        raise Mistake(f"{path}: is no file: `melllm scaling fit` writes law.json") from error
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        if isinstance(error, Mistake):
            raise
        raise Mistake(f"{path}: is no law that `melllm scaling fit` wrote: {error!r}") from error


def _law_from_json(tree: Mapping[str, Any], warnings: Sequence[str]) -> ResampledLaw:
    widening = tree.get("widening")  # none in files of before it was measured
    return ResampledLaw(
        law=Law(**{name: float(value) for name, value in tree["law"].items()}),
        per=float(tree["per"]),
        samples=tuple(Law(*map(float, constants)) for constants in tree["samples"]),
        noise=tuple(map(float, tree["noise"])),
        widening=None if widening is None else _widening_from_json(widening),
        budgets=(float(tree["budgets"][0]), float(tree["budgets"][1])),
        sizes=(float(tree["sizes"][0]), float(tree["sizes"][1])),
        hours=None if tree["hours"] is None else float(tree["hours"]),
        warnings=tuple(map(str, warnings)),
    )


def _widening_from_json(tree: Mapping[str, Any]) -> Widening:
    params, tokens, product = map(float, tree["largest"])
    if not min(params, tokens, product) > 0:
        raise ValueError("largest must be above 0")
    return Widening(
        method=str(tree["method"]),
        refits=int(tree["refits"]),
        inside=float(tree["inside"]),
        beyond=float(tree["beyond"]),
        q80=float(tree["q80"]),
        q95=float(tree["q95"]),
        largest=(params, tokens, product),
    )


def _refuse_constant(word: str) -> float:
    raise ValueError(f"{word} is no number")


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(one) for name, one in value.items()}
    return dataclasses.asdict(value)


def _short(value: float) -> float:
    return float(f"{value:.8g}")
