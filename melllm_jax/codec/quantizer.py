"""Binary spherical quantisation: the signs of a vector of length 1 are its code.

Zhao et al. 2024 (arXiv 2406.07548). Of c channels each is a bit, the first the highest; a code is a
corner of the cube in the unit sphere, its id the number that the bits are. What is 0 counts as
negative, as in FocalCodec.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

EXACT_BITS = 8  # at most so many bits are one factor of the mean code's entropy: 256 numbers


class EntropyTerms(NamedTuple):
    """Entropies, in nats, of the codes that latents could have become."""

    per_sample: Float[Array, ""]  # the mean of each position's: small where latents are sure
    codebook: Float[Array, ""]  # of the mean over positions: large where all codes are used


class CodeUse(NamedTuple):
    """How evenly codes were used."""

    used: Float[Array, ""]  # the share of codes that were used at all
    perplexity: Float[Array, ""]  # e to their entropy: as many as there are where all are alike
    most: Float[Array, ""]  # the share that the most frequent one has


def unit_vectors(latents_btc: Float[Array, "b t c"]) -> Float[Array, "b t c"]:
    """Latents of length 1, in float32; of length 0 stays what is."""
    x32 = latents_btc.astype(jnp.float32)
    square = jnp.sum(jnp.square(x32), axis=-1, keepdims=True)
    return x32 * jnp.where(square > 0, jax.lax.rsqrt(jnp.where(square > 0, square, 1)), 0)


def nearest_codes(latents_btc: Float[Array, "b t c"]) -> Float[Array, "b t c"]:
    """The code of each position: what is nearest to it of all codes, without a gradient."""
    corner = latents_btc.shape[-1] ** -0.5
    return jnp.where(latents_btc > 0, corner, -corner).astype(latents_btc.dtype)


def straight_through(latents_btc: Float[Array, "b t c"]) -> Float[Array, "b t c"]:
    """The code of each position, with the gradient of its unit vector."""
    units_btc = unit_vectors(latents_btc)
    return units_btc + jax.lax.stop_gradient(nearest_codes(latents_btc) - units_btc)


def code_ids(latents_btc: Float[Array, "b t c"]) -> Int[Array, "b t"]:
    """The id of each position's code; of a code its own."""
    return jnp.sum(jnp.where(latents_btc > 0, _bit_values(latents_btc.shape[-1]), 0), axis=-1)


def codes_of_ids(ids_bt: Int[Array, "b t"], c: int) -> Float[Array, "b t c"]:
    """The code of c channels that each id is."""
    set_btc = (ids_bt[..., None] & _bit_values(c)) > 0
    return nearest_codes(jnp.where(set_btc, 1.0, -1.0))


def entropy_terms(
    latents_btc: Float[Array, "b t c"], sharpness: float, real_bt: Bool[Array, "b t"]
) -> EntropyTerms:
    """Entropies of the soft codes of real positions.

    A position u is a code with a probability in proportion to e^(sharpness · u · code): its bits
    are independent, so that its own entropy is a sum over them. Of the mean the bits are taken as
    independent where they are more than `EXACT_BITS`, group by group (section 3.2 there), which can
    but raise it.
    """
    c = latents_btc.shape[-1]
    logits_btc = 2 * sharpness * c**-0.5 * unit_vectors(latents_btc)
    real = real_bt[..., None].astype(jnp.float32)
    count = jnp.maximum(jnp.sum(real), 1)
    per_bit = _bit_entropy(logits_btc)
    total = jnp.zeros(())
    for first in range(0, c, EXACT_BITS):
        joint = _joint_probabilities(logits_btc[..., first : first + EXACT_BITS])
        total = total + _entropy(jnp.sum(joint * real, axis=(0, 1)) / count)
    return EntropyTerms(jnp.sum(per_bit * real) / count, total)


def code_counts(
    ids_bt: Int[Array, "b t"], real_bt: Bool[Array, "b t"], codes: int
) -> Int[Array, "codes"]:
    """How many real positions have each code; those of several batches add up."""
    whole = [jax.reshard(x, jax.P(None, None)).reshape(-1) for x in (ids_bt, real_bt)]
    return jnp.zeros(codes, jnp.int32).at[whole[0]].add(whole[1].astype(jnp.int32))


def code_use(counts: Int[Array, "codes"]) -> CodeUse:
    """How evenly codes were used that were counted so often."""
    share = counts.astype(jnp.float32) / jnp.maximum(jnp.sum(counts), 1)
    used = jnp.mean((counts > 0).astype(jnp.float32))
    return CodeUse(used, jnp.exp(_entropy(share)), jnp.max(share))


def _bit_values(c: int) -> Int[Array, "i i c"]:
    return (2 ** jnp.arange(c - 1, -1, -1, dtype=jnp.int32))[None, None]


def _bit_entropy(logits: Array) -> Array:
    """The entropy of bits whose log-odds are `logits`."""
    return jax.nn.softplus(logits) - logits * jax.nn.sigmoid(logits)


def _joint_probabilities(logits_btc: Array) -> Float[Array, "b t v"]:
    """The probability of each number that so many independent bits are, the first the highest."""
    joint = jnp.ones((*logits_btc.shape[:2], 1))
    for i in range(logits_btc.shape[-1]):
        one = jax.nn.sigmoid(logits_btc[..., i : i + 1])
        both = jnp.stack([joint * (1 - one), joint * one], axis=-1)
        joint = both.reshape(*both.shape[:2], -1)
    return joint


def _entropy(share: Array) -> Float[Array, ""]:
    return -jnp.sum(jnp.where(share > 0, share * jnp.log(jnp.where(share > 0, share, 1)), 0))
