"""Looks tokens up and scores them, with the vocabulary split over devices.

The table [v d] is the largest weight, split over `tp` by tokens and over `fsdp` by width. Looking
up moves rows, not the table: every device looks all rows' tokens up in its own columns, and the
columns are exchanged. Scoring goes through the vocabulary in chunks, each gathered when it is
needed, so that neither [t, v] scores nor the whole table are ever in memory; a chunk's gradient is
computed once, where chunks of time would each add to the whole of it. Both run device by device,
since the compiler, left to itself, gathers and sums the table for every chunk. Scores that are few
stand at once instead: the backward pass then makes none again.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from melllm_jax import sharding

CHUNK = 8448  # tokens of a device's share that are scored at once, at most
WHOLE = 1 << 28  # bytes of a device's scores that stand at once, whatever the vocabulary
LOWEST_SCORE = -1e30  # the score of no token: finite, so that no gradient is NaN


ScoreTotals = tuple[
    Array, Array, Array
]  # of each position: log of summed exponentials, highest, target's


class Sums(NamedTuple):
    """Float32 scalars, each a sum over the weighted targets of a batch."""

    loss: Array  # nats
    hits: Array  # targets that were the likeliest token
    weight: Array  # weights


def embed_tokens(
    table_vd: Float[Array, "v d"], tokens_bt: Int[Array, "b t"]
) -> Float[Array, "b t d"]:
    """The table's rows of `tokens_bt`, [b t d]."""

    def on_device(table: Array, tokens: Array) -> Array:
        size = table.shape[0]
        rows = jax.lax.all_gather(tokens, sharding.WIDTH, axis=0, tiled=True)
        index = rows - jax.lax.axis_index(sharding.TOKENS) * size
        own = (index >= 0) & (index < size)
        found = jnp.where(own[..., None], table[jnp.where(own, index, 0)], 0)
        found = jax.lax.psum(found, sharding.TOKENS)
        return jax.lax.all_to_all(found, sharding.WIDTH, split_axis=0, concat_axis=2, tiled=True)

    split = sharding.w("v d"), sharding.a("b t")
    operands = (jax.reshard(x, spec) for x, spec in zip((table_vd, tokens_bt), split, strict=True))
    return jax.shard_map(on_device, in_specs=split, out_specs=sharding.a("b t d"))(*operands)


def cross_entropy(
    x_btd: Float[Array, "b t d"],
    table: Float[Array, "v d"] | Float[Array, "d v"],
    dims: str,
    targets_bt: Int[Array, "b t"],
    weights_bt: Float[Array, "b t"],
) -> Sums:
    """Cross-entropy of the targets, summed.

    `dims` says how the table lies: "v d" where it is the embedding, "d v" where it is not.
    """
    spread = (*sharding.ROWS, sharding.TIME)

    def on_device(x: Array, table: Array, targets: Array, weights: Array) -> Sums:
        # Said to vary before the loop, so that gradients are summed over copies once, after it:
        # the table's where it was scattered already.
        copies = tuple(axis for axis in spread if axis != sharding.WIDTH)
        table = jax.lax.pcast(table, copies, to="varying")
        x = jax.lax.pcast(x, sharding.TOKENS, to="varying")
        rows = table if dims == "v d" else table.T
        share, top, picked = _score_chunks(x.reshape(-1, x.shape[-1]), rows, targets.reshape(-1))
        # Each device of `tp` saw its own tokens.
        most = jax.lax.pmax(jax.lax.stop_gradient(share), sharding.TOKENS)
        whole = most + jnp.log(jax.lax.psum(jnp.exp(share - most), sharding.TOKENS))
        top, picked = jax.lax.pmax(top, sharding.TOKENS), jax.lax.psum(picked, sharding.TOKENS)
        hit = (jax.lax.stop_gradient(picked) >= top).astype(jnp.float32)
        flat = weights.reshape(-1)
        sums = Sums(jnp.sum((whole - picked) * flat), jnp.sum(hit * flat), jnp.sum(flat))
        return jax.tree.map(lambda part: jax.lax.psum(part, spread), sums)

    split = sharding.a("b t d"), sharding.w(dims), sharding.a("b t"), sharding.a("b t")
    function: Callable[..., Sums] = jax.shard_map(on_device, in_specs=split, out_specs=jax.P())
    inputs = (x_btd, table, targets_bt, weights_bt)
    return function(*(jax.reshard(x, spec) for x, spec in zip(inputs, split, strict=True)))


def _score_chunks(x_nd: Array, rows: Array, targets: Array) -> ScoreTotals:
    """Scores each position in chunks of this device's tokens: log-sum-exp, highest, target's.

    The target's score is 0 where another device has it.
    """
    size = rows.shape[0]
    first = jax.lax.axis_index(sharding.TOKENS) * size
    length = chunk_length(len(x_nd), size)
    count, rest = divmod(size, length) if size > length else (0, size)
    # In float32 gradients of all chunks add up without rounding each sum to bfloat16.
    wide, dtype = x_nd.astype(jnp.float32), x_nd.dtype

    def part(sums: ScoreTotals, chunk: tuple[Array, Array]) -> tuple[ScoreTotals, None]:
        rows, start = chunk
        share, top, picked = sums
        whole = jax.lax.all_gather(rows, sharding.WIDTH, axis=1, tiled=True)
        sides = (((1,), (1,)), ((), ()))
        scores = jax.lax.dot_general(
            wide.astype(dtype), whole, sides, preferred_element_type=jnp.float32
        )
        highest = jax.lax.stop_gradient(jnp.max(scores, axis=-1))
        shares = highest + jnp.log(jnp.sum(jnp.exp(scores - highest[:, None]), axis=-1))
        # A comparison with every id, not a look-up: it fuses, and its gradient is no scatter.
        ids = jnp.arange(rows.shape[0], dtype=jnp.int32) + start
        own = jnp.sum(jnp.where(ids[None] == targets[:, None], scores, 0.0), axis=-1)
        return (jnp.logaddexp(share, shares), jnp.maximum(top, highest), picked + own), None

    nothing = jnp.zeros_like(wide[:, 0])
    sums: ScoreTotals = (nothing + LOWEST_SCORE, nothing + LOWEST_SCORE, nothing)
    if not count:
        return part(sums, (rows, first))[0]
    again = jax.checkpoint(part, prevent_cse=False)  # a scan's passes are not merged
    most, last = jax.lax.split(rows, (count * length, rest)) if rest else (rows, None)
    starts = first + length * jnp.arange(count, dtype=jnp.int32)
    sums = jax.lax.scan(again, sums, (most.reshape(count, length, -1), starts))[0]
    return sums if last is None else again(sums, (last, first + count * length))[0]


def chunk_length(positions: int, size: int) -> int:
    """How many of `size` tokens of a device are scored at once, for so many positions of it.

    Where not all are, chunks leave no rest, unless they were very short: a rest is compiled anew.
    Of 200,064 tokens, 24 chunks of 8,336 leave none.
    """
    if size <= CHUNK or 4 * positions * size <= WHOLE:
        return size
    least = max(CHUNK // 4, 1)
    return next((n for n in range(CHUNK, least, -1) if size % n == 0), CHUNK)
