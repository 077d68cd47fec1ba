"""Codes, their ids and gradient, entropies against all codes one by one, and counts of use."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from melllm_jax.codec import quantizer
from tests.support import models

SHARPNESS = 5.0
entropies = models.jitted(functools.partial(quantizer.entropy_terms, sharpness=SHARPNESS))


def latents(b=2, t=7, c=5):
    return jnp.asarray(np.random.default_rng(0).normal(size=(b, t, c)), jnp.float32)


def all_codes(c):
    return np.array(list(itertools.product((-1, 1), repeat=c))) / np.sqrt(c)


def test_ids_are_bits_the_first_the_highest_and_zero_is_a_negative():
    x = jnp.array([[[0.3, -2, 0, 1e-9], [-1, 1, 1, -1]]])
    assert quantizer.code_ids(x).tolist() == [[0b1001, 0b0110]]
    codes = quantizer.nearest_codes(x)
    np.testing.assert_allclose(codes[0, 0], [0.5, -0.5, -0.5, 0.5])
    np.testing.assert_array_equal(quantizer.code_ids(codes), quantizer.code_ids(x))


@pytest.mark.parametrize("c", [1, 16])
def test_codes_of_all_ids_are_the_corners_in_their_order(c):
    ids = jnp.arange(2**c)[None]
    codes = quantizer.codes_of_ids(ids, c)
    np.testing.assert_allclose(codes[0], all_codes(c), rtol=1e-6)
    np.testing.assert_array_equal(quantizer.code_ids(codes), ids)


def test_straight_through_is_the_code_with_the_gradient_of_the_unit_vector():
    x = latents()
    weights = np.random.default_rng(1).normal(size=x.shape).astype(np.float32)
    codes = quantizer.straight_through(x)
    np.testing.assert_allclose(codes, quantizer.nearest_codes(x), atol=1e-6)
    found = jax.grad(lambda x: jnp.sum(weights * quantizer.straight_through(x)))(x)
    length = np.linalg.norm(x, axis=-1, keepdims=True)
    unit = x / length
    expected = (weights - unit * np.sum(weights * unit, axis=-1, keepdims=True)) / length
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_latents_of_length_zero_have_a_code_and_a_finite_gradient():
    found = jax.grad(lambda x: jnp.sum(quantizer.straight_through(x)))(jnp.zeros((1, 1, 3)))
    assert np.isfinite(found).all()


def entropy(shares):
    return -np.sum(shares * np.log(np.maximum(shares, 1e-300)), axis=-1)


def test_entropies_of_few_bits_are_those_over_all_codes():
    x, real = latents(), jnp.arange(7)[None] < jnp.array([[7], [4]])
    found = entropies(x, real_bt=real)
    unit = np.asarray(quantizer.unit_vectors(x)[real], np.float64)
    scores = np.exp(SHARPNESS * unit @ all_codes(5).T)
    shares = scores / scores.sum(axis=-1, keepdims=True)
    np.testing.assert_allclose(found.per_sample, entropy(shares).mean(), rtol=1e-5)
    np.testing.assert_allclose(found.codebook, entropy(shares.mean(axis=0)), rtol=1e-5)


def test_entropy_of_many_bits_is_the_sum_over_groups_and_at_least_that_of_all_codes():
    """Eleven bits are eight and three."""
    x, real = latents(c=11), jnp.ones((2, 7), bool)
    found = entropies(x, real_bt=real)
    unit = np.asarray(quantizer.unit_vectors(x)[real], np.float64)
    scores = np.exp(SHARPNESS * unit @ all_codes(11).T)
    mean = (scores / scores.sum(axis=-1, keepdims=True)).mean(axis=0).reshape(256, 8)
    expected = entropy(mean.sum(axis=1)) + entropy(mean.sum(axis=0))
    np.testing.assert_allclose(found.codebook, expected, rtol=1e-5)
    assert found.codebook > entropy(mean.reshape(-1)) + 0.02


def test_code_use_of_counts_written_out():
    """Padding is not counted: of eight codes 1 is used twice and 6 once."""
    with models.one_device():
        ids, real = jnp.array([[1, 6], [1, 5]]), jnp.array([[True, True], [True, False]])
        counts = models.jitted(lambda *args: quantizer.code_counts(*args, 8))(ids, real)
    assert counts.tolist() == [0, 2, 0, 0, 0, 0, 1, 0]
    use = quantizer.code_use(counts)
    np.testing.assert_allclose((use.used, use.most), (2 / 8, 2 / 3), rtol=1e-6)
    np.testing.assert_allclose(use.perplexity, np.exp(entropy(np.array([2 / 3, 1 / 3]))), rtol=1e-6)
    even = quantizer.code_use(jnp.ones(8, jnp.int32))
    np.testing.assert_allclose((even.used, even.perplexity), (1, 8), rtol=1e-6)
