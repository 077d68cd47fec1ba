"""What the backward pass makes again: temporary memory and time of an update by policy.

    python benchmarks/remat.py --out benchmarks/results/remat.json

Memory is the compiler's count of one update's temporary bytes. The policies take turns. A policy
that this backend cannot do is listed with the reason.
"""

import argparse
import dataclasses
import typing
from typing import Any

import jax
from support.report import report

from launch.bench import random_batch, timing
from launch.bench.train_step import compiled_bytes
from launch.runtime import malloc
from melllm_jax import sharding
from melllm_jax.config.data import Data
from melllm_jax.config.features import Mel
from melllm_jax.config.model import Model
from melllm_jax.config.run import Mesh, Optim, Run
from melllm_jax.objectives.next_token import NextToken
from melllm_jax.training.train_step import Update

POLICIES = typing.get_args(typing.get_type_hints(Model)["remat"])
RUN = Run(
    name="remat",
    model=Model(d=512, n=8, k=8, h=64, f=2048, l=8, v=2048),
    mel=Mel(kind="plain", m=8),
    data=Data(t=512, b=4, wire="float32"),
    optim=Optim(steps=1000, warmup=1, compute="float32"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", default="")
    arguments = parser.parse_args()
    malloc.keep_freed_memory()
    sizes: dict[str, dict[str, int]] = {}
    refused: dict[str, str] = {}
    actions: dict[str, Any] = {}
    for policy in POLICIES:
        try:
            actions[policy], sizes[policy] = updating(policy)
            actions[policy]()
        except (RuntimeError, ValueError, NotImplementedError) as error:
            refused[policy] = f"{type(error).__name__}: {str(error).splitlines()[0][:300]}"
            actions.pop(policy, None)
    seconds = timing.medians(timing.time_in_turns(actions, arguments.rounds))
    figures = {
        "policies": {
            policy: {
                "seconds": seconds[policy],
                "times_none": seconds[policy] / seconds["none"],
                "temporary_bytes": sizes[policy]["temporary"],
                "share_of_none": sizes[policy]["temporary"] / sizes["none"]["temporary"],
            }
            for policy in actions
        },
        "refused": refused,
        "model": "d 512, 8 layers, MLP 2048, vocabulary 2048; 4 rows of 512 positions; float32",
        "rounds": arguments.rounds,
    }
    report("an update by what its backward pass makes again", figures, arguments.out)


def updating(policy: str) -> tuple[Any, dict[str, int]]:
    """An action that makes an update under this policy, and the bytes that it takes."""
    model = dataclasses.replace(RUN.model, remat=policy)
    run = dataclasses.replace(RUN, model=model)
    with jax.set_mesh(sharding.make_mesh(Mesh(), jax.devices()[:1])):
        update, batch = Update(NextToken(run)), sharding.shard_batch(random_batch.train_batch(run))
        state = update.init_state()
        step = jax.jit(update, donate_argnums=0).lower(state, batch).compile()

    def once() -> None:
        nonlocal state
        state, _ = jax.block_until_ready(step(state, batch))

    return once, compiled_bytes(step)


if __name__ == "__main__":
    main()
