"""A sweep that is done, as small files: its runs, its law and charts, its page, how it was run.

    python benchmarks/sweep.py sweeps/synthetic --command "melllm sweep run …" --out DIR

Every run is a line of runs.csv, which `melllm scaling fit` reads. Where no law can be fitted, as to
one size at several token rates, the reason stands in about.json in its place. Figures are those
that the sweep recorded: nothing is trained here.
"""

import argparse
import csv
import pathlib
import shutil

from support.report import report

from launch.cli import main as melllm
from launch.sweep.ledger import Ledger
from launch.sweep.spec import differing_fields

FIELDS = (
    *("params", "tokens", "flops", "loss", "wer", "params_total", "speech_positions"),
    *("text_positions", "audio_hours", "train_loss", "train_seconds", "utterances", "r", "d", "l"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("sweep", help="folder of the sweep")
    parser.add_argument("--command", required=True, help="what it was run by")
    parser.add_argument("--out", required=True, help="folder of the small files")
    arguments = parser.parse_args()
    out = pathlib.Path(arguments.out)
    out.mkdir(parents=True, exist_ok=True)
    ledger = Ledger(arguments.sweep)
    done = [cell for cell in ledger.cells() if cell.state == "done"]
    varied = differing_fields([cell.overrides for cell in done])
    with (out / "runs.csv").open("w", newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(["name", *FIELDS, *varied])
        for cell in done:
            result = cell.result or {}
            values = [result[field] for field in FIELDS]
            rows.writerow([cell.id, *values, *(cell.overrides.get(name, "") for name in varied)])
    fitted = melllm(["scaling", "fit", arguments.sweep, "--out", str(out)]) == 0
    if melllm(["sweep", "report", arguments.sweep]):
        raise SystemExit(1)
    shutil.copy(pathlib.Path(arguments.sweep) / "report.html", out)
    report(
        f"the sweep {ledger.sweep.name}",
        {
            "sweep": arguments.command,
            "cells": len(ledger.sweep.cells),
            "done": len(done),
            "attempts": sum(cell.attempt for cell in done),
            "train_hours": sum((cell.result or {})["train_seconds"] for cell in done) / 3600,
            "eval": dict(ledger.sweep.eval),
            "law": "law.json" if fitted else None,
            "chip": sorted({(cell.result or {})["chip"] for cell in done}),
        },
        str(out / "about.json"),
    )


if __name__ == "__main__":
    main()
