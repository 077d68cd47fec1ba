"""How often the intervals of a law hold the losses of runs that it was not fitted to.

    python benchmarks/law_intervals.py chinchilla.csv --out benchmarks/results/law_intervals.json

The law is fitted without some of the runs: a fifth of them, drawn by chance, ten times over, and
those of most compute, of most parameters and of most tokens, a twentieth to a half. Counted is
which losses lie inside their 95 % and 80 %, and how wide the 95 % are, as the logarithm of their
ends' ratio: with what refits on runs held out add to them, and without. A CSV is what `melllm
scaling fit` takes.
"""

import argparse
from collections.abc import Iterator, Sequence
import dataclasses
import time
from typing import Any

import numpy as np
from support.report import report

from launch.scaling.law_fit import fit_law
from launch.scaling.points import Point, load_points
from launch.scaling.prediction import predict_loss

LARGEST = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5)
DRAWS, DRAWN = 10, 0.2
LIBRARIES = ("numpy", "scipy")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("runs", help="CSV of runs")
    parser.add_argument("--bootstrap", type=int, default=100, help="resamples a fit")
    parser.add_argument("--out", default="", help="JSON file to write the figures to")
    arguments = parser.parse_args()
    runs = load_points(arguments.runs)
    figures: dict[str, Any] = {"runs": len(runs), "bootstrap": arguments.bootstrap}
    for name, splits in (
        ("largest", largest(runs, "flops")),
        ("most parameters", largest(runs, "params")),
        ("most tokens", largest(runs, "tokens")),
        ("drawn", drawn(runs)),
    ):
        rows = [covered(kept, out, arguments.bootstrap) for kept, out in splits]
        figures[name] = {"splits": rows} | {
            which: pooled([row[which] for row in rows], [row["runs"] for row in rows])
            for which in ("widened", "bare")
        }
    began = time.process_time()
    widening = fit_law(runs, bootstrap=200).widening
    figures["fit_cpu_seconds_200_resamples_and_check"] = time.process_time() - began
    figures["widening"] = widening and dataclasses.asdict(widening)
    report("intervals of a scaling law", figures, arguments.out, LIBRARIES)


def largest(runs: Sequence[Point], field: str) -> Iterator[tuple[Sequence[Point], Sequence[Point]]]:
    """Runs to fit, and runs to predict of which that field is larger."""
    ordered = sorted(runs, key=lambda point: float(getattr(point, field)))
    for share in LARGEST:
        kept = len(runs) - round(share * len(runs))
        yield ordered[:kept], ordered[kept:]


def drawn(runs: Sequence[Point]) -> Iterator[tuple[Sequence[Point], Sequence[Point]]]:
    """Runs to fit and runs to predict, drawn by chance."""
    rng = np.random.default_rng(0)
    for _ in range(DRAWS):
        order = rng.permutation(len(runs))
        count = round(DRAWN * len(runs))
        yield [runs[i] for i in order[count:]], [runs[i] for i in order[:count]]


def covered(kept: Sequence[Point], out: Sequence[Point], bootstrap: int) -> dict[str, Any]:
    """Shares of the runs left out inside their intervals, and the width of these."""
    fit = fit_law(kept, 0, bootstrap)
    found: dict[str, Any] = {"runs": len(out)}
    for which, known in (("widened", fit), ("bare", dataclasses.replace(fit, widening=None))):
        losses = [predict_loss(known, point.params, point.tokens) for point in out]
        pairs = list(zip(losses, out, strict=True))
        found[which] = {
            "inside95": float(np.mean([x.p95[0] <= p.loss <= x.p95[1] for x, p in pairs])),
            "inside80": float(np.mean([x.p80[0] <= p.loss <= x.p80[1] for x, p in pairs])),
            "width95": float(np.mean([np.log(x.p95[1] / x.p95[0]) for x in losses])),
        }
    return found


def pooled(rows: Sequence[dict[str, float]], counts: Sequence[int]) -> dict[str, float]:
    """Means over all runs left out."""
    return {
        name: float(np.average([row[name] for row in rows], weights=counts)) for name in rows[0]
    }


if __name__ == "__main__":
    main()
