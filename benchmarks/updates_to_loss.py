"""How many updates a teacher spares: of runs in pairs, when each reaches a loss of the next token.

melllm sweep run aura_seeds --workdir SWEEP
python benchmarks/updates_to_loss.py SWEEP --out benchmarks/results/aura_seeds.json

Cells are paired by seed. The loss is a mean over 25 updates; an update is found between two such
means by a straight line. The ratio is the updates of the run with a teacher over those of the one
without: below 1 the teacher spares some. It says nothing of time: an update with a teacher takes
longer.
"""

import argparse
import datetime
import json
import pathlib
import statistics

import numpy as np

WINDOW = 25  # updates of a mean
LEVELS = (1.0, 0.6, 0.4, 0.3, 0.2, 0.15, 0.1)  # nats a token


def losses(folder):
    """The loss of each update of a run, in order."""
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    found = {line["step"]: line["loss"] for line in lines if "loss" in line}
    return np.array([found[step] for step in sorted(found)])


def reached(values, level):
    """The update at which the mean of the last WINDOW is first so low; None where it never is."""
    means = np.convolve(values, np.ones(WINDOW) / WINDOW, "valid")
    below = np.flatnonzero(means <= level)
    if not len(below) or below[0] == 0:
        return None
    i = int(below[0])
    share = (means[i - 1] - level) / (means[i - 1] - means[i])
    return WINDOW - 1 + i + float(share)


def scores(folder):
    """Loss and WER on the held-out split, as the sweep's last evaluation has them."""
    cell = json.loads((folder.parents[1] / "cells" / f"{folder.name}.json").read_text())
    return {name: cell["result"][name] for name in ("loss", "wer")}


def spread(values):
    """Median and both ends."""
    return {"median": statistics.median(values), "lowest": min(values), "highest": max(values)}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sweep", type=pathlib.Path)
    parser.add_argument("--out", default="")
    arguments = parser.parse_args()
    pairs = {}
    for path in sorted(arguments.sweep.glob("runs/*/run.json")):
        run = json.loads(path.read_text())
        taught = run.get("distill", {}).get("teacher", "none") != "none"
        pairs.setdefault(run["seed"], {})[taught] = path.parent
    levels = {}
    for level in LEVELS:
        both = {
            seed: [reached(losses(pair[taught]), level) for taught in (False, True)]
            for seed, pair in pairs.items()
        }
        if all(None not in updates for updates in both.values()):
            ratios = [taught / alone for alone, taught in both.values()]
            levels[str(level)] = {"updates": both, "ratio": spread(ratios)}
    result = {
        "what": "updates to a loss with a teacher over those without, by seed",
        "command": f"python benchmarks/updates_to_loss.py {arguments.sweep.name}",
        "date": datetime.date.today().isoformat(),
        "window": WINDOW,
        "levels": levels,
        "held_out": {
            seed: {"alone": scores(pair[False]), "taught": scores(pair[True])}
            for seed, pair in pairs.items()
        },
    }
    text = json.dumps(result, indent=1)
    print(text)
    if arguments.out:
        pathlib.Path(arguments.out).write_text(text + "\n")


if __name__ == "__main__":
    main()
