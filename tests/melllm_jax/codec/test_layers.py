"""The codec's convolutions against NumPy's; tests/parity holds the rest against focalcodec."""

import jax
import jax.numpy as jnp
import numpy as np

from melllm_jax import sharding
from melllm_jax.codec.layers import DepthConvolution, silence_first
from tests.support import models

X, TARGET = np.random.default_rng(0).normal(size=(2, 8, 10, 4)).astype(np.float32)


def depth_convolution():
    """Its weights and what it makes of X, and the gradients of that times TARGET, by both."""
    skeleton, weights = models.drawn(lambda rngs: DepthConvolution(rngs, 5, 4))
    layout = jax.NamedSharding(jax.sharding.get_mesh(), sharding.a("b t d"))

    def loss(weights, x, target):
        y = skeleton.model(weights)(x, silence_first)
        return jnp.sum(y * target), y

    run = models.jitted(jax.grad(loss, argnums=(0, 1), has_aux=True))
    grads, y = run(weights, jax.device_put(X, layout), jax.device_put(TARGET, layout))
    return jax.device_get((weights, y, *grads))


def test_depth_convolution_and_its_gradients_are_numpys():
    with models.one_device():
        weights, y, by_weight, by_x = depth_convolution()
    taps_x = np.zeros((5, 4))
    for b, c in np.ndindex(8, 4):
        heard, wished, kernel = X[b, :, c], TARGET[b, :, c], weights["kernel"][:, c]
        expected = np.convolve(heard, kernel[::-1])[:10] + weights["bias"][c]
        np.testing.assert_allclose(y[b, :, c], expected, atol=1e-5)
        np.testing.assert_allclose(by_x[b, :, c], np.convolve(wished, kernel)[4:], atol=1e-5)
        padded = np.pad(heard, (4, 0))
        taps_x[:, c] += [np.dot(padded[i : i + 10], wished) for i in range(5)]
    np.testing.assert_allclose(by_weight["kernel"], taps_x, atol=1e-4)


def test_depth_convolution_and_its_gradients_on_eight_devices_equal_one():
    """The kernel's are counted once, whatever axes split nothing of it."""
    with models.one_device():
        alone = depth_convolution()
    with models.split_as("fsdp2-seq2-tp2"):
        split = depth_convolution()
    for found, expected in zip(jax.tree.leaves(split), jax.tree.leaves(alone), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-5)
