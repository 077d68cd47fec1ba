"""Looking tokens up and scoring them, against NumPy in float64 and over meshes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from melllm_jax import sharding
from melllm_jax.nn import vocab_parallel
from tests.support import models

B, T, D = 8, 8, 16


def numbers(v):
    """A table [v d], a stream [b t d], tokens and weights [b t]; a fifth of the weights are 0."""
    rng = np.random.default_rng(7)
    table, x = rng.standard_normal((v, D)), rng.standard_normal((B, T, D))
    tokens = rng.integers(0, v, (B, T)).astype(np.int32)
    weights = rng.uniform(0.5, 1.5, (B, T)) * (rng.uniform(size=(B, T)) > 0.2)
    # Where the target is to be the likeliest, in a third of the positions, x lies along its row.
    along = rng.uniform(size=(B, T)) < 0.3
    x = np.where(along[..., None], 2 * table[tokens], x)
    return *(z.astype(np.float32) for z in (table, x)), tokens, weights.astype(np.float32)


def put(x, spec):
    return jax.device_put(x, jax.NamedSharding(jax.sharding.get_mesh(), spec))


def placed(dims, v):
    """`numbers` on the mesh in force, the table lying as `dims` says."""
    table, x, tokens, weights = numbers(v)
    table = table if dims == "v d" else table.T
    rows = sharding.a("b t")
    return (
        put(table, sharding.w(dims)),
        put(x, sharding.a("b t d")),
        put(tokens, rows),
        put(weights, rows),
    )


@pytest.mark.parametrize("split", models.SPLITS)
def test_rows_of_tokens_and_their_gradient_equal_numpy_on_every_mesh(split):
    """The gradient of a row is the sum over its tokens, whichever device has them; most repeat."""
    table, x, tokens, _ = numbers(64)
    expected = np.zeros((64, D))
    np.add.at(expected, tokens, x.astype(np.float64))

    def loss(table, x, tokens):
        found = vocab_parallel.embed_tokens(table, tokens)
        return jnp.sum(found * x), found

    with models.split_as(split):
        table_vd, x_btd, tokens_bt, _ = placed("v d", 64)
        differentiate = models.jitted(jax.value_and_grad(loss, has_aux=True))
        (_, found), grad = differentiate(table_vd, x_btd, tokens_bt)
        assert found.sharding.spec == sharding.a("b t d")
        assert grad.sharding.spec == sharding.w("v d")
    np.testing.assert_array_equal(found, table[tokens])
    assert np.bincount(tokens.ravel()).max() > 2
    np.testing.assert_allclose(grad, expected, rtol=0, atol=1e-5)


def in_numpy(v):
    """Sums, and gradients of the loss by the table [v d] and by the stream, in float64."""
    table, x, tokens, weights = (z.astype(np.float64) for z in numbers(v))
    target = np.eye(v)[tokens.astype(int)]
    scores = x @ table.T
    shares = np.exp(scores - scores.max(-1, keepdims=True))
    shares /= shares.sum(-1, keepdims=True)
    loss = -np.sum(weights * np.log(np.sum(shares * target, -1)))
    hits = np.sum(weights * (scores.argmax(-1) == tokens))
    off = (shares - target) * weights[..., None]
    return (loss, hits, weights.sum()), np.einsum("btv,btd->vd", off, x), off @ table


@pytest.mark.parametrize(
    ("split", "dims", "v", "chunk"),
    [(split, "v d", 64, None) for split in models.SPLITS]
    + [(split, "d v", 74, 12) for split in models.SPLITS]
    + [("fsdp2-seq2-tp2", "v d", 64, 8), ("fsdp2-seq2-tp2", "v d", 74, 12)],
)
def test_sums_and_gradients_equal_numpy_on_every_mesh(split, dims, v, chunk, monkeypatch):
    """Of 64 tokens, or 32 a device of `tp`: at once, and in whole chunks. Of 74 or 37: with a rest.

    float32 sums over 64 tokens and 64 positions: within 2e-5 of each gradient's largest, 1.6.
    """
    monkeypatch.setattr(vocab_parallel, "WHOLE", 0)
    monkeypatch.setattr(vocab_parallel, "CHUNK", chunk or vocab_parallel.CHUNK)
    expected, by_table, by_x = in_numpy(v)

    def loss(table, x, tokens, weights):
        sums = vocab_parallel.cross_entropy(x, table, dims, tokens, weights)
        return sums.loss, sums

    with models.split_as(split):
        differentiate = models.jitted(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))
        (_, sums), (table_grad, x_grad) = differentiate(*placed(dims, v))
        assert table_grad.sharding.spec == sharding.w(dims)
    np.testing.assert_allclose(sums, expected, rtol=1e-6)
    assert 0.2 < sums.hits / sums.weight < 0.8
    table_grad = table_grad if dims == "v d" else np.transpose(table_grad)
    for grad, found in [(by_table, table_grad), (by_x, x_grad)]:
        np.testing.assert_allclose(found, grad, rtol=0, atol=2e-5 * np.abs(grad).max())


def test_scores_beyond_what_float32_can_take_the_exponential_of_stay_finite(monkeypatch):
    """exp(89) is already too large; a chunk of very low scores adds nothing, and no NaN."""
    rows = np.linspace(-400.0, 400.0, 8, dtype=np.float32)[:, None] * np.ones((1, 2), np.float32)
    targets, ones = np.array([[7, 0]], np.int32), np.ones((1, 2, 2), np.float32)

    def loss(table, x, targets, weights):
        return vocab_parallel.cross_entropy(x, table, "v d", targets, weights).loss

    monkeypatch.setattr(vocab_parallel, "WHOLE", 0)
    for chunk in (8, 2, 3):
        monkeypatch.setattr(vocab_parallel, "CHUNK", chunk)
        with models.one_device():
            table, x = put(rows, sharding.w("v d")), put(ones, sharding.a("b t d"))
            pair = (put(z, sharding.a("b t")) for z in (targets, ones[..., 0]))
            differentiate = models.jitted(jax.value_and_grad(loss, argnums=(0, 1)))
            value, grads = differentiate(table, x, *pair)
        # The first target is the likeliest by 228; the second the least likely, by 1,600.
        assert value == pytest.approx(1600.0)
        assert all(np.isfinite(grad).all() for grad in grads)


def test_bfloat16_gives_float32_sums_whose_error_is_that_of_the_rounded_inputs():
    (expected, hits, weight), _, _ = in_numpy(64)
    with models.one_device():
        table, x, tokens, weights = placed("v d", 64)
        half = (z.astype(jnp.bfloat16) for z in (x, table))
        sums = models.jitted(
            lambda x, w: vocab_parallel.cross_entropy(x, w, "v d", tokens, weights)
        )(*half)
    assert {part.dtype for part in sums} == {jnp.dtype(jnp.float32)}
    assert float(sums.loss) == pytest.approx(expected, rel=2e-3)
    assert float(sums.weight) == pytest.approx(weight, rel=1e-6)
    assert float(sums.hits) == pytest.approx(hits, abs=2.0)
