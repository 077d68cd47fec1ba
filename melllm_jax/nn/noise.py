"""Random numbers for dropout and latents: one stream for a batch, or one for each row of it."""

from collections.abc import Callable
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from melllm_jax.nn.layers import mix_bits, uniform_like

# Given the number of a draw and an array [b t …], a number in [0, 1) for each of it, laid out as it
# is; the same number of a draw gives the same numbers.
Draw = Callable[[int, Float[Array, "b t x"]], Float[Array, "b t x"]]


def batch_draw(key: Array) -> Draw:
    """Numbers by place in the batch: for training."""
    return lambda number, x: uniform_like(jax.random.fold_in(key, number), x)


def row_draw(seeds_b: Int[Array, "b"], positions_bt: Int[Array, "b t"]) -> Draw:
    """Numbers by each row's seed and the position in its segment alone: for generation.

    A row draws the same in any batch, however it is padded, and whether its positions are read at
    once or one after another. Mixed as `uniform_like` mixes its indices.
    """

    def draw(number: int, x: Float[Array, "b t x"]) -> Float[Array, "b t x"]:
        bits = mix_bits(seeds_b.astype(jnp.uint32) + jnp.uint32(number) * jnp.uint32(0x9E3779B9))
        for index in (positions_bt[..., None], jnp.arange(x.shape[-1])[None, None]):
            bits = bits[:, None, None] if bits.ndim == 1 else bits
            bits = mix_bits(bits + (index.astype(jnp.uint32) + 1) * jnp.uint32(0x9E3779B9))
        return (bits >> 8).astype(jnp.float32) * 2.0**-24

    return draw


def drop(x: Float[Array, "b t x"], share: float, number: int, draw: Draw | None) -> Array:
    """`x` with a share of it dropped and the rest scaled up (Srivastava et al. 2014); None: all."""
    if draw is None or not share:
        return x
    return jnp.where(draw(number, x) < 1 - share, x / (1 - share), 0)


def normal(uniform: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """Standard normal numbers of uniform ones on a grid of 2⁻²⁴, by the inverse distribution."""
    return math.sqrt(2) * jax.lax.erf_inv(2 * uniform - (1 - 2.0**-24))
