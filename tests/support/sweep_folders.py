"""A sweep's folder as its parts write it, with numbers from a law that is known."""

import dataclasses
import hashlib
import itertools
import json
import time

from etils import epath
import numpy as np

from launch.scaling.law import Law
from launch.sweep import ledger

LAW = Law(E=0.45, A=60.0, B=400.0, alpha=0.36, beta=0.42)
SIZES = (0.12e6, 0.25e6, 0.5e6, 1e6, 2e6)
TOKENS = (0.3e6, 0.6e6, 1.2e6, 2.4e6, 4.8e6)
RATES = (1, 2, 4, 8, 16)
BEGAN = 1_790_000_000.0  # seconds since 1970


def cell(number, size, tokens, r=8, noise=0.004, **overrides):
    """A done cell of so many parameters and tokens; its loss is the law's, with noise in it."""
    rng = np.random.default_rng(number)
    overrides = {"preset": "ladder_1m", "model.d": 16 * number, "mel.r": r, **overrides}
    loss = LAW.loss(size, tokens) * (1 + 0.05 * abs(np.log2(r / 4))) * np.exp(rng.normal(0, noise))
    flops, steps = 6 * size * tokens, int(tokens / 1000)
    seconds, hours = flops / 2e10, flops / 3e10 / 3600
    result = {
        "loss": loss,
        "wer": float(np.clip(0.6 * loss - 0.55, 0.02, 1.2)),
        "params": size,
        "params_total": size * 1.1,
        "embed": size * 0.1,
        "head": size * 0.1,
        "tokens": tokens,
        "speech_positions": tokens * 0.6,
        "text_positions": tokens * 0.4,
        "audio_hours": tokens * 0.6 * 8 / 100 / 3600,
        "flops": flops,
        "train_loss": loss * 0.97,
        "train_seconds": seconds,
        "utterances": 400,
        "step": steps,
        "seed": 0,
        "preset": overrides["preset"],
        "r": r,
        "d": round(size**0.4),
        "l": 2,
        "hours": None,
    }
    return ledger.Cell(
        id=hashlib.sha256(json.dumps(overrides).encode()).hexdigest()[:10],
        number=number,
        overrides=overrides,
        steps=steps,
        plan={
            "params": size,
            "params_total": size * 1.1,
            "flops": flops,
            "tokens": tokens,
            "hours": hours,
            "cost": hours * 2.5,
        },
        created=BEGAN,
        state="done",
        attempt=1,
        owner={"host": "elsewhere", "pid": 1, "born": "", "job": ""},
        step=steps,
        started=BEGAN + 60 * number,
        beat=BEGAN + 60 * number + seconds,
        ended=BEGAN + 60 * number + seconds,
        result=result,
    )


def grid(sizes=SIZES, tokens=TOKENS, rates=RATES, **more):
    """Cells of every size with every number of tokens, then one of each rate at equal sound."""
    cells = [
        cell(number, size, budget, **more)
        for number, (size, budget) in enumerate(itertools.product(sizes, tokens))
    ]
    return cells + [
        cell(len(cells) + place, sizes[2], tokens[2], r) for place, r in enumerate(rates)
    ]


def state(one, said, share=0.5, error=""):
    """A cell that is not done: `share` of its updates are made."""
    step = 0 if said == "pending" else int(one.steps * share)
    ended = one.ended if said in ("failed", "preempted") else None
    attempt = int(said != "pending")
    return dataclasses.replace(
        one,
        state=said,
        step=step,
        beat=time.time() if said == "running" else one.beat,
        ended=ended,
        attempt=attempt,
        error=error,
        result=None,
    )


def write(folder, cells, name="synthetic", price=2.5, lines=200):
    """The folder of a sweep of these cells, with the curves that they have so far."""
    folder = epath.Path(folder)
    digest = hashlib.sha256("".join(one.id for one in cells).encode()).hexdigest()[:10]
    sweep = ledger.Sweep(
        name=name,
        digest=digest,
        cells=tuple(one.id for one in cells),
        common={"data.b": 8},
        backend="local",
        options={},
        eval={"split": "dev"},
        price=price,
    )
    (folder / "cells").mkdir(parents=True)
    (folder / ledger.SWEEP).write_text(json.dumps(dataclasses.asdict(sweep)))
    for one in cells:  # as ledger.create has them, which waits for the disk at each
        (folder / "cells" / f"{one.id}.json").write_text(json.dumps(dataclasses.asdict(one)))
        if one.step:
            run = folder / "runs" / one.id
            run.mkdir(parents=True, exist_ok=True)
            (run / "metrics.jsonl").write_text("".join(curve(one, lines)))
    return folder


def curve(one, lines):
    """A line of metrics for each of `lines` updates, over all that are made."""
    rng = np.random.default_rng(one.number)
    for step in np.unique(np.linspace(1, one.step, lines).astype(int)).tolist():
        tokens = one.plan["tokens"] * step / one.steps
        later = LAW.loss(one.plan["params"], tokens + 2e4) + 3 * np.exp(-tokens / 3e4)
        loss = min(later, 4.8) * np.exp(rng.normal(0, 0.03))
        yield json.dumps({"step": step, "loss": loss}) + "\n"


def half_done(**more):
    """The grid with every state in it."""
    cells = grid(**more)
    cells[24] = state(cells[24], "failed", 0.3, "update 900: the loss is nan")
    cells[23] = state(cells[23], "running", 0.6)
    cells[22] = state(cells[22], "preempted", 0.8)
    cells[19] = state(cells[19], "pending")
    return cells
