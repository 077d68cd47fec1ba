"""WavLM's gated bias of relative positions, and the mask of chunks.

Chen et al. 2021 (arXiv 2110.13900), section 3.2, as transformers' `WavLMAttention` has it: all
layers share a table with a number for each head and bucket of distances; each layer multiplies it,
for each position and head, by a gate that it reads off what enters its attention.
"""

import math

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int
import numpy as np

from melllm_jax import sharding
from melllm_jax.nn.attention import heads_first, softmax_attention
from melllm_jax.nn.layers import Sizes, constant, einsum, weight

GATE = 8  # numbers that the gate's two are sums of, four each


class DistanceGate(nnx.Module):
    """The factor of the bias, for each position and head: a · (b · scale - 1) + 2.

    a and b are sigmoids of the head's own part of what enters attention; `scale` is of each head.
    """

    def __init__(self, rngs: nnx.Rngs, size: Sizes):
        size = dict(size) | {"g": GATE, "i": 1}
        self.kernel = weight(rngs, size, "h g", fan_in="h")
        self.bias = constant(size, "g", 0.0)
        self.scale = constant(size, "i n", 1.0)

    def __call__(self, x_btd: Float[Array, "b t d"]) -> Float[Array, "b t n"]:
        (h, _), n = self.kernel.shape, self.scale.shape[1]
        x_btnh = jax.lax.reshape(
            x_btd, (*x_btd.shape[:2], n, h), out_sharding=sharding.a("b t n h")
        )
        # Summed before the product, which is then of 2 columns and not of 8.
        kernel_hg = jnp.sum(self.kernel[...].reshape(h, 2, -1), axis=2)
        bias_g = jnp.sum(self.bias[...].reshape(2, -1), axis=1)
        share = einsum("btnh,hg->btng", x_btnh, kernel_hg) + bias_g[None, None, None]
        share = jax.nn.sigmoid(share.astype(jnp.float32))
        return share[..., 0] * (share[..., 1] * self.scale[...][None] - 1) + 2


def distance_buckets(count: int, most: int) -> Int[np.ndarray, "z"]:
    """The bucket of each distance from -most to most, of a table of `count`.

    The upper half is of keys after their query. Of a half the first half are distances one by one,
    the rest grow by a constant factor up to `most`, and the last holds all beyond.
    """
    half, exact = count // 2, count // 4
    away = np.arange(most + 1)
    share = np.log(np.maximum(away, exact).astype(np.float32) / exact) / math.log(most / exact)
    grown = exact + (share * (half - exact)).astype(np.int32)
    bucket = np.minimum(np.where(away < exact, away, grown), half - 1)
    return np.concatenate([bucket[:0:-1], bucket + half * (away > 0)]).astype(np.int32)


def distance_bias(
    table_zn: Float[Array, "z n"], distances_ts: Int[Array, "t s"], most: int
) -> Float[Array, "n t s"]:
    """The table's numbers for each query and key, float32; a distance is key minus query.

    Distances beyond `most` (WavLM's max_bucket_distance) count as `most`.
    """
    line_zn = table_zn.at[distance_buckets(len(table_zn), most)].get(out_sharding=sharding.w("z n"))
    place_ts = jnp.clip(distances_ts, -most, most) + most
    bias_tsn = line_zn.astype(jnp.float32).at[place_ts].get(out_sharding=sharding.a("s s n"))
    return jax.reshard(jnp.transpose(bias_tsn, (2, 0, 1)), sharding.a("n t s"))


def chunk_mask(
    q_t: Int[Array, "t"], k_s: Int[Array, "s"], chunk: int, window: int
) -> Bool[Array, "t s"]:
    """Which positions `k_s` those of `q_t` see: `window` of them up to the end of their own chunk.

    That is all of its chunk, and of earlier ones as much as the window leaves; none before 0.
    """
    end_t1 = ((q_t // chunk + 1) * chunk)[:, None]
    k_1s = k_s[None]
    return (k_1s >= jnp.maximum(end_t1 - window, 0)) & (k_1s < end_t1)


def attend_gated(
    q_btnh: Float[Array, "b t n h"],
    k_bsnh: Float[Array, "b s n h"],
    v_bsnh: Float[Array, "b s n h"],
    gate_btn: Float[Array, "b t n"],
    bias_nts: Float[Array, "n t s"],
    visible_bts: Bool[Array, "b t s"],
) -> Float[Array, "b t n h"]:
    """Attention whose scores have the gate times the bias added; softmax in float32."""
    splits = sharding.a("b k g t s"), sharding.a("b k g t h")
    gate_bn1t1 = jnp.swapaxes(gate_btn, 1, 2)[:, :, None, :, None]
    bias = gate_bn1t1 * bias_nts[None, :, None]
    return softmax_attention(
        q_btnh, heads_first(k_bsnh), heads_first(v_bsnh), visible_bts, splits, bias
    )
