"""What saving costs a run: asynchronously, as training does, against waiting for the disk.

    python benchmarks/checkpoint.py --out benchmarks/results/checkpoint.json

`stall` is how long the loop stands while the state is saved, as `melllm bench checkpoint` measures
it. `extra` is by how much the updates that follow a save, and the save, take longer than as many
updates without one: writing shares the two cores with them. The three take turns.
"""

import argparse
import pathlib
import statistics
import tempfile
from typing import Any

import jax
from support.report import report

from launch.bench import checkpointing, random_batch, timing
from launch.runtime import malloc
from melllm_jax import sharding
from melllm_jax.checkpoints.checkpointer import Checkpoints
from melllm_jax.config.data import Data
from melllm_jax.config.features import Mel
from melllm_jax.config.model import Model
from melllm_jax.config.run import CheckpointIntervals, Optim, Run
from melllm_jax.objectives.next_token import NextToken
from melllm_jax.training.train_step import Update

RUN = Run(
    name="checkpoint",
    model=Model(d=512, n=8, k=8, h=64, f=2048, l=8, v=8192, remat="none", scan=False),
    mel=Mel(kind="plain", m=8),
    data=Data(t=256, b=2, wire="float32"),
    optim=Optim(steps=1000, warmup=1, compute="float32"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--updates", type=int, default=5, help="that follow a save (5)")
    parser.add_argument("--folder", help="on the disk to be measured")
    parser.add_argument("--out", default="")
    arguments = parser.parse_args()
    malloc.keep_freed_memory()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        saving = checkpointing.measure(RUN, arguments.rounds, pathlib.Path(name))
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        taken = beside_updates(pathlib.Path(name), arguments.updates, arguments.rounds)
    extra = {
        name: statistics.median(x - y for x, y in zip(times, taken["none"], strict=True))
        for name, times in taken.items()
        if name != "none"
    }
    figures = {
        **{key: value for key, value in saving.items() if key not in ("what", "preset", "jax")},
        "updates": arguments.updates,
        "seconds": timing.medians(taken),
        "extra_seconds": extra,
        "model": "38 M parameters, float32, AdamW; 2 rows of 256 positions",
    }
    report("saving a run's state, asynchronously and not", figures, arguments.out)


def beside_updates(folder: pathlib.Path, updates: int, rounds: int) -> dict[str, list[float]]:
    """Seconds of so many updates, after no save, one that is not waited for, and one that is."""
    with (
        jax.set_mesh(sharding.make_mesh(RUN.mesh)),
        Checkpoints(str(folder), CheckpointIntervals(last=1)) as checkpoints,
    ):
        update, batch = Update(NextToken(RUN)), sharding.shard_batch(random_batch.train_batch(RUN))
        state = update.init_state()
        step = jax.jit(update, donate_argnums=0).lower(state, batch).compile()
        saved = 0

        def run() -> None:
            nonlocal state
            for _ in range(updates):
                state, _ = jax.block_until_ready(step(state, batch))

        def save() -> None:
            nonlocal saved
            saved += 1
            rest = {"opt": state.opt, "step": state.step}
            checkpoints.save(saved, state.trained, rest, checkpointing.EmptyDataState())

        def blocking() -> None:
            save()
            checkpoints.wait()
            run()

        def asynchronous() -> None:
            save()
            run()

        def measured(action: Any) -> float:
            checkpoints.wait()  # nothing is still being written
            return timing.time_once(action)

        actions = {"none": run, "blocking": blocking, "async": asynchronous}
        for action in actions.values():
            measured(action)
        taken: dict[str, list[float]] = {name: [] for name in actions}
        for _ in range(rounds):
            for name, action in actions.items():
                taken[name].append(measured(action))
    return taken


if __name__ == "__main__":
    main()
