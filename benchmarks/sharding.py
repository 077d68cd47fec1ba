"""What splitting costs: an update over eight CPU devices against the same update on one of them.

    python benchmarks/sharding.py --out benchmarks/results/sharding.json

All devices share one machine's cores, so that the same work split in eight would take the same
time if splitting cost nothing: the ratio is its overhead, copies between devices included. The
splits and the one device take turns.
"""

import argparse
import statistics
from typing import Any

import jax
from support.report import report

from launch.bench import random_batch, timing
from launch.runtime import malloc
from melllm_jax import sharding
from melllm_jax.config.data import Data
from melllm_jax.config.features import Mel
from melllm_jax.config.model import Model
from melllm_jax.config.run import Mesh, Optim, Run
from melllm_jax.objectives.next_token import NextToken
from melllm_jax.training.train_step import Update

SPLITS = {
    "one device": Mesh(fsdp=1),
    "fsdp 8": Mesh(fsdp=8),
    "fsdp 4 × tp 2": Mesh(fsdp=4, tp=2),
    "fsdp 2 × seq 2 × tp 2": Mesh(fsdp=2, seq=2, tp=2),
}
RUN = Run(
    name="sharding",
    model=Model(d=256, n=8, k=8, h=32, f=1024, l=4, v=4096, remat="none", scan=False),
    mel=Mel(kind="plain", m=8),
    data=Data(t=256, b=8, wire="float32"),
    optim=Optim(steps=1000, warmup=1, compute="float32"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", default="")
    arguments = parser.parse_args()
    jax.config.update("jax_num_cpu_devices", 8)
    malloc.keep_freed_memory()
    taken = timing.time_in_turns(
        {name: updating(mesh) for name, mesh in SPLITS.items()}, arguments.rounds
    )
    alone = taken["one device"]
    ratios = {
        name: statistics.median(x / y for x, y in zip(times, alone, strict=True))
        for name, times in taken.items()
    }
    figures = {
        "seconds": timing.medians(taken),
        "times_one_device": ratios,
        "model": "d 256, 4 layers, MLP 1024, vocabulary 4096; 8 rows of 256 positions; float32",
        "rounds": arguments.rounds,
    }
    report("an update split over 8 CPU devices against one device", figures, arguments.out)


def updating(cut: Mesh) -> Any:
    """An action that makes an update on this mesh."""
    size = max(cut.fsdp, 1) * cut.replica * cut.seq * cut.tp
    mesh = sharding.make_mesh(cut, jax.devices()[:size])
    with jax.set_mesh(mesh):
        update, batch = Update(NextToken(RUN)), sharding.shard_batch(random_batch.train_batch(RUN))
        state = update.init_state()
        step = jax.jit(update, donate_argnums=0).lower(state, batch).compile()

    def once() -> None:
        nonlocal state
        state, _ = jax.block_until_ready(step(state, batch))

    return once


if __name__ == "__main__":
    main()
