"""A product with a weight in blocks is the product with the weight itself."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from melllm_jax.nn.blocked_weight import has_blocks, to_blocks
from melllm_jax.nn.layers import einsum
from tests.support import models


@pytest.mark.parametrize(
    ("equation", "shape", "inner"),
    [
        ("btd,df->btf", (24, 192), 1),
        ("btd,dnh->btnh", (24, 4, 32), 1),
        ("btnh,nhd->btd", (3, 8, 64), 2),
    ],
)
def test_product_with_blocks_equals_einsum(equation, shape, inner):
    rng = np.random.default_rng(0)
    w = rng.standard_normal(shape, dtype=np.float32)
    x = rng.standard_normal((2, 5, *shape[:inner]), dtype=np.float32)
    with models.one_device():
        blocks = jax.jit(to_blocks, static_argnums=1)(w, inner)
        assert blocks.blocks.shape == (np.prod(shape[inner:]) // 64, np.prod(shape[:inner]), 64)
        found = einsum(equation, jnp.asarray(x), blocks[...])
        due = np.einsum(equation, x.astype(np.float64), w)
    assert found.shape == due.shape
    np.testing.assert_allclose(found, due, atol=1e-5 * np.abs(due).max())


def test_weight_of_other_widths_or_of_16_bits_stays_as_it_is():
    assert has_blocks(192, jnp.float32)
    assert not has_blocks(96, jnp.float32)
    assert not has_blocks(192, jnp.bfloat16)
