import math

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from melllm_jax import sharding
from melllm_jax.config.model import Lora, Rope
from melllm_jax.nn import layers
from tests.support import models

SIZE = {"d": 256, "n": 4, "k": 2, "h": 16, "f": 64, "r": 4}
PLAIN = Rope(theta=100.0)
LONG = Rope(theta=100.0, short=(1.0, 1.5, 2.0), long=(3.0, 4.0, 8.0), original=16, longest=64)


@pytest.fixture(autouse=True)
def mesh():
    """Eight devices, so that a layout shows."""
    with models.split_as("fsdp4-tp2"):
        yield


def test_a_weight_has_the_spread_of_its_named_fan_in():
    """The default initialisers would count n · h, the last two axes: 1/8 for this kernel."""
    made = jax.jit(lambda rngs: layers.weight(rngs, SIZE, "d n h", fan_in="d", scale=2.0)[...])
    w = made(nnx.Rngs(0))
    assert np.std(w) == pytest.approx(2 / math.sqrt(256), rel=0.02)  # 16,384 draws: 0.6 %
    assert w.sharding.spec == jax.P("fsdp", "tp", None)


def test_a_constant_is_whole_on_every_device():
    x = layers.constant(SIZE, "d", 3.0)[...]
    assert x.sharding.is_fully_replicated
    np.testing.assert_array_equal(x, np.full(256, 3.0))


def test_biases_of_heads_are_split_as_the_heads_are():
    x = jax.jit(lambda: layers.head_bias({**SIZE, "k": 4}, "k h")[...])()
    assert x.sharding.spec == jax.P("tp", None)
    np.testing.assert_array_equal(x, np.zeros(x.shape))


def test_rms_norm_of_bfloat16_is_computed_in_float32():
    """Rounding a result errs either way and 256 of them by 2^-13 on average; rounding a row's
    rms to bfloat16 would err by up to 2^-9 the same way in all."""
    norm = layers.RMSNorm(SIZE, eps=1e-5)
    noise = np.random.default_rng(0).standard_normal((1, 64, 256))
    x = jnp.asarray(1.4 * noise, jnp.bfloat16)  # an rms near 1 would round all values back alike
    y = np.asarray(models.jitted(lambda x: norm(x))(x), np.float64)
    x = np.asarray(x, np.float64)
    exact = x / np.sqrt(np.square(x).mean(axis=-1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(y, exact, rtol=2**-8)
    assert np.abs((y / exact).mean(axis=-1) - 1).max() < 2**-11


def low_rank(size, cfg, outs):
    return models.jitted(lambda rngs: layers.LowRank(rngs, size, cfg, "d", outs))(nnx.Rngs(0))


def test_low_rank_additions_share_a_and_are_scaled_by_alpha_over_r():
    low = low_rank(SIZE, Lora(r=4, alpha=6.0), ["n h", "k h"])
    rng = np.random.default_rng(0)
    for b in low.b:
        assert not np.any(b[...])  # a fresh addition adds nothing
        b.set_value(jax.device_put(rng.standard_normal(b.shape, np.float32), b[...].sharding))
    x = rng.standard_normal((4, 3, 256), np.float32)
    outs = models.jitted(lambda low, x: low(x, None))(low, x)
    for out, b in zip(outs, low.b, strict=True):
        expected = 1.5 * np.einsum("btd,dr,rnh->btnh", x, low.a[...], b[...])
        np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-4)


def test_low_rank_dropout_drops_its_share_of_the_input_and_scales_the_rest():
    cfg = Lora(r=4, alpha=4.0, dropout=0.25)
    low = low_rank({**SIZE, "d": 4}, cfg, ["d"])
    for w in (low.a, *low.b):
        w.set_value(jax.device_put(np.eye(4, dtype=np.float32), w[...].sharding))
    x = np.ones((8, 256, 4), np.float32)
    dropped = models.jitted(lambda low, x, key: (*low(x, key), *low(x, None)))
    y, plain = dropped(low, x, jax.random.key(1))
    values, counts = np.unique(np.asarray(y), return_counts=True)
    np.testing.assert_allclose(values, [0, 4 / 3], rtol=1e-6)
    assert counts[0] / counts.sum() == pytest.approx(0.25, abs=0.02)  # 8,192 draws: 0.5 %
    np.testing.assert_array_equal(plain, x)


def numpy_rotated(x_tnh, positions_t, rates):
    """Each pair (i, i + half) of a head as a complex number, turned by position · rate."""
    half = len(rates)
    pairs = x_tnh[..., :half] + 1j * x_tnh[..., half : 2 * half]
    turned = pairs * np.exp(1j * np.outer(positions_t, rates))[:, None]
    return np.concatenate([turned.real, turned.imag, x_tnh[..., 2 * half :]], axis=-1)


def ours(cfg, rotated, x_tnh, positions_t, length):
    at = np.asarray(positions_t, np.int32)[None]

    @models.jitted
    def turned(x, at, lengths):
        return layers.rotate(x, layers.rotary(cfg, rotated, at, lengths))

    return np.asarray(turned(x_tnh[None], at, np.full_like(at, length)))[0]


def test_a_partial_rotary_turns_the_leading_dimensions_and_passes_the_rest():
    """Partial 0.75 of 8: pairs (0, 3), (1, 4), (2, 5) turn, 6 and 7 do not. float32 angles."""
    x = np.random.default_rng(0).standard_normal((3, 2, 8)).astype(np.float32)
    rates = 100.0 ** -(np.arange(3) * 2 / 6)
    y = ours(PLAIN, 6, x, [0, 257, 4095], 4096)
    np.testing.assert_allclose(y, numpy_rotated(x, [0, 257, 4095], rates), rtol=0, atol=2e-3)
    np.testing.assert_array_equal(y[0], x[0])
    np.testing.assert_array_equal(y[..., 6:], x[..., 6:])


@pytest.mark.parametrize(("length", "factors"), [(16, LONG.short), (17, LONG.long)])
def test_long_rope_takes_its_long_factors_beyond_the_original_length(length, factors):
    """Both sides are scaled by √(1 + ln(64/16) / ln 16) = √1.5."""
    x = np.random.default_rng(0).standard_normal((3, 2, 6)).astype(np.float32)
    rates = 100.0 ** -(np.arange(3) * 2 / 6) / np.array(factors)
    expected = math.sqrt(1.5) * numpy_rotated(x, [0, 5, 15], rates)
    np.testing.assert_allclose(ours(LONG, 6, x, [0, 5, 15], length), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("scaling", "divided"),
    [
        ({"factor": 4.0}, [4, 4, 4, 4]),  # linear
        # 16 positions are 2.5, 0.8, 0.25 and 0.08 waves: kept from 2 on, divided up to 0.25.
        ({"factor": 4.0, "low": 0.3, "high": 2.0, "original": 16}, [1, None, 4, 4]),
    ],
)
def test_scaled_rotary_divides_the_rates_of_long_waves(scaling, divided):
    """Between the two the kept share is (waves - low) / (high - low), here (0.805 - 0.3) / 1.7."""
    plain = 100.0 ** -(np.arange(4) * 2 / 8)
    kept = (16 * plain[1] / (2 * math.pi) - 0.3) / 1.7
    between = kept * plain[1] + (1 - kept) * plain[1] / 4
    rates = [between if by is None else rate / by for rate, by in zip(plain, divided, strict=True)]
    x = np.random.default_rng(0).standard_normal((3, 2, 8)).astype(np.float32)
    y = ours(Rope(theta=100.0, **scaling), 8, x, [0, 5, 100], 128)
    np.testing.assert_allclose(y, numpy_rotated(x, [0, 5, 100], np.array(rates)), rtol=0, atol=1e-4)


def test_numbers_drawn_are_even_and_the_same_on_every_mesh():
    """A million of them: shares of 16 bins, of pairs along each axis, within five deviations."""
    key, shape = jax.random.key(7), (8, 32, 4096)
    found = {}
    for split in ("fsdp8", "fsdp2-seq2-tp2"):
        with models.split_as(split):
            here = jax.NamedSharding(jax.sharding.get_mesh(), sharding.a("b t f"))
            x = jax.device_put(np.zeros(shape, np.float32), here)
            found[split] = np.asarray(jax.jit(layers.uniform_like)(key, x))
    np.testing.assert_array_equal(*found.values())
    numbers = found["fsdp8"]
    assert numbers.min() >= 0
    assert numbers.max() < 1
    count = numbers.size
    bins = np.bincount((numbers * 16).astype(int).ravel(), minlength=16)
    assert np.abs(bins - count / 16).max() < 5 * np.sqrt(count / 16)
    for axis in range(3):
        low = numbers < 0.5
        same = (low == np.roll(low, 1, axis)).sum()
        assert abs(same - count / 2) < 5 * np.sqrt(count / 4), axis
    with models.one_device():
        other = jax.jit(layers.uniform_like)(jax.random.key(8), jnp.zeros(shape))
    assert (np.asarray(other) == numbers).mean() < 1e-3
