"""The loss made chunk by chunk of the vocabulary against one that holds all logits at once.

    python benchmarks/cross_entropy.py --out benchmarks/results/cross_entropy.json

Loss and gradients of hidden states [1 t d] and of the tied head [v d], v 200,064 as in Phi-4-mini.
Memory is the compiler's count of temporary bytes at each t, which needs no such memory to be
there; the two take turns at the shortest t.
"""

import argparse
import statistics
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from support.report import report

from launch.bench import timing
from launch.bench.train_step import compiled_bytes
from launch.runtime import malloc
from melllm_jax import sharding
from melllm_jax.batch import Batch
from melllm_jax.config.run import Mesh
from melllm_jax.nn import vocab_parallel
from melllm_jax.nn.layers import einsum
from melllm_jax.objectives import next_token

V = 200_064


class Head(NamedTuple):
    """What `objective.next_token` asks of a model: hidden states, and a table to score them."""

    x_btd: jax.Array
    embed: jax.Array  # [v d]

    def __call__(self, batch: Batch, key: jax.Array | None) -> jax.Array:
        return self.x_btd

    @property
    def table(self) -> tuple[jax.Array, str]:
        return self.embed, "v d"


def chunked(head: Head, batch: Batch) -> jax.Array:
    sums = next_token.next_token_loss(head, batch)  # type: ignore[arg-type]
    return sums.loss / sums.weight


def whole(head: Head, batch: Batch) -> jax.Array:
    """The textbook's, from the log-softmax of all logits."""
    targets, weights = next_token.next_token_targets(batch)
    logits = einsum("btd,vd->btv", head.x_btd, head.embed, jnp.float32)
    scores = jax.nn.log_softmax(logits)
    own = jnp.arange(V, dtype=jnp.int32) == targets[..., None]
    picked = jnp.sum(jnp.where(own, scores, 0.0), axis=-1)
    return -jnp.sum(picked * weights) / jnp.sum(weights)


LOSSES = {"chunked": chunked, "whole": whole}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--d", type=int, default=64, help="model width (64)")
    parser.add_argument("--times", type=int, nargs="+", default=[2048, 4096, 8192])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", default="")
    arguments = parser.parse_args()
    malloc.keep_freed_memory()
    bytes_by_time: dict[str, Any] = {}
    with jax.set_mesh(sharding.make_mesh(Mesh(), jax.devices()[:1])):
        for t in arguments.times:
            sizes = {
                name: compiled_bytes(compiled(loss, t, arguments.d))["temporary"]
                for name, loss in LOSSES.items()
            }
            bytes_by_time[str(t)] = sizes | {"share": sizes["chunked"] / sizes["whole"]}
        t = min(arguments.times)
        head, batch = random(t, arguments.d)
        steps = {name: compiled(loss, t, arguments.d) for name, loss in LOSSES.items()}
        losses = {name: float(step(head, batch)[0]) for name, step in steps.items()}
        actions = {
            name: lambda step=step: jax.block_until_ready(step(head, batch))
            for name, step in steps.items()
        }
        taken = timing.time_in_turns(actions, arguments.rounds)
    pairs = zip(taken["chunked"], taken["whole"], strict=True)
    figures = {
        "v": V,
        "d": arguments.d,
        "chunk": vocab_parallel.CHUNK,
        "temporary_bytes": bytes_by_time,
        "timed_at": t,
        "seconds": timing.medians(taken),
        "times_whole": statistics.median(x / y for x, y in pairs),
        "loss": losses,
        "rounds": arguments.rounds,
    }
    report("cross-entropy in chunks of the vocabulary against whole logits", figures, arguments.out)


def compiled(loss: Any, t: int, d: int) -> Any:
    """Loss and gradients, compiled for shapes alone."""
    head, batch = jax.eval_shape(lambda: random(t, d))
    return jax.jit(jax.value_and_grad(loss)).lower(head, batch).compile()


def random(t: int, d: int) -> tuple[Head, Batch]:
    """Hidden states, a head, and a row of random targets."""
    keys = jax.random.split(jax.random.key(0), 3)
    normal = lambda key, shape, spec: jax.random.normal(key, shape, out_sharding=spec)
    x = normal(keys[0], (1, t, d), sharding.a("b t d"))
    embed = normal(keys[1], (V, d), sharding.w("v d")) * np.float32(d**-0.5)
    tokens = jax.random.randint(keys[2], (1, t), 0, V, jnp.int32)
    of = lambda value, kind=jnp.int32: jnp.full((1, t), value, kind)
    positions = jnp.arange(t, dtype=jnp.int32)[None]
    patches = jnp.zeros((1, t, 1))  # never read
    batch = Batch(tokens, patches, of(0), of(0), of(1), positions, of(1, jnp.float32), of(0))
    return Head(x, embed), batch


if __name__ == "__main__":
    main()
