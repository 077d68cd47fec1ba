"""The largest budget of a sweep predicted from the smaller ones, by all three approaches.

    python benchmarks/law_largest.py sweeps/text --out benchmarks/results/law_largest.json

Runs are a sweep's folder or a CSV. The runs within a ratio of 1.35 of the most FLOPs are held out.
Of the others each approach gives the best size at that budget, and the law of approach 3 the loss
there and of each run held out. Measured are these losses, and size and loss at the minimum of the
parabola through them.
"""

import argparse
from typing import Any

from support.report import report

from launch.scaling.isoflop import WINDOW
from launch.scaling.law_fit import fit_law
from launch.scaling.points import load_points
from launch.scaling.prediction import predict_loss

LIBRARIES = ("numpy", "scipy")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("runs", help="folder of a sweep, or a CSV")
    parser.add_argument("--out", default="", help="JSON file to write the figures to")
    arguments = parser.parse_args()
    runs = load_points(arguments.runs)
    most = max(run.flops for run in runs)
    largest = [run for run in runs if run.flops >= most / WINDOW]
    smaller = fit_law([run for run in runs if run.flops < most / WINDOW], 0.0)
    group = fit_law(runs, 0.0).isoflop.groups[-1]
    figures: dict[str, Any] = {
        "fitted_on": len(smaller.points),
        "flops": group.flops,
        "measured": {"params": group.best, "loss": group.loss},
        "warnings": smaller.warnings,
    }
    named = (("1", smaller.envelope.optimal, smaller.envelope.refused),)
    named += (("2", smaller.isoflop.optimal, smaller.isoflop.refused),)
    for approach, found, refused in (*named, ("3", smaller.constants, "")):
        if refused:
            figures[f"approach {approach}"] = {"none": refused}
            continue
        n = found["n_coefficient"].value * group.flops ** found["a"].value
        loss = predict_loss(smaller, n, group.flops / (smaller.per * n))
        figures[f"approach {approach}"] = {
            "a": found["a"].value,
            "params": n,
            "params_off": group.best and n / group.best - 1,
            "loss": loss.value,
            "p95": loss.p95,
            "loss_off": group.loss and loss.value / group.loss - 1,
        }
    figures["runs"] = [
        {"params": run.params, "loss": run.loss, "predicted": loss.value, "p95": loss.p95}
        | {"off": loss.value / run.loss - 1}
        for run in largest
        for loss in [predict_loss(smaller, run.params, run.tokens)]
    ]
    report("the largest budget from the smaller", figures, arguments.out, LIBRARIES)


if __name__ == "__main__":
    main()
