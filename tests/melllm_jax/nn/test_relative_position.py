"""The mask of chunks, written out, and the buckets of distances at their edges."""

import jax
import jax.numpy as jnp
import numpy as np

from melllm_jax.nn.relative_position import chunk_mask, distance_bias, distance_buckets
from tests.support import models


def test_a_position_sees_its_chunk_and_as_much_before_as_the_window_leaves():
    """Chunks of 3, a window of 5: the end of a chunk less 5, and nothing before the sound."""
    index = jnp.arange(8)
    found = np.asarray(chunk_mask(index, jnp.arange(-2, 8), 3, 5)).astype(int)
    first, second, third = "0011100000", "0001111100", "0000001111"
    expected = [first] * 3 + [second] * 3 + [third] * 2
    assert ["".join(map(str, row)) for row in found] == expected


def test_buckets_are_single_then_grow_up_to_the_largest_distance():
    """16 buckets up to 20: of each sign 4 single distances, then 4 that grow by 5^(1/4) each."""
    found = distance_buckets(16, 20)
    earlier = [0, 1, 2, 3, 4, 4, 5, 5, 5, 6, 6, 6, 6, 6, 7, 7, 7, 7, 7, 7, 7]
    assert found[20::-1].tolist() == earlier
    assert found[21:].tolist() == [8 + bucket for bucket in earlier[1:]]


def test_the_bias_is_the_tables_number_of_key_minus_query():
    table = jnp.arange(16.0)[:, None] + jnp.array([[0.0, 100.0]])
    with models.one_device():
        bias = jax.jit(distance_bias, static_argnums=2)(table, jnp.array([[0, 2, -2, 99]]), 20)
    np.testing.assert_array_equal(bias, [[[0, 10, 2, 15]], [[100, 110, 102, 115]]])
