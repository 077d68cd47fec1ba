"""Every policy of rematerialisation gives the same gradients, and keeps what it says."""

import dataclasses
import functools

import jax
from jax.ad_checkpoint import checkpoint_name
import jax.numpy as jnp
import numpy as np
import pytest

from melllm_jax.config.overrides import override
from melllm_jax.nn import remat
from tests.support import models

POLICIES = {
    "full": {"model.remat": "full"},
    "dots": {"model.remat": "dots"},
    "named": {"model.remat": "named", "model.kept": ("qkv", "attended", "gate_up", "out")},
    "blocks": {"model.remat": "named", "model.attention": "blocks"},
}


@functools.cache
def graded(name):
    with models.one_device():
        run = override(models.run(), {"model.remat": "none"} | POLICIES.get(name, {}))
        return jax.device_get(models.graded(run, models.speech_rows(2, 32)))


@pytest.mark.parametrize("name", POLICIES)
def test_what_is_computed_again_changes_no_gradient(name):
    loss, grads = graded(name)
    expected, expected_grads = graded("none")
    assert loss == pytest.approx(expected, rel=1e-6)
    for key, grad in expected_grads.items():
        np.testing.assert_allclose(grads[key], grad, rtol=0, atol=5e-6 * np.abs(grad).max())


def layer(x, w):
    y = checkpoint_name(jnp.sin(x @ w), "qkv")
    return checkpoint_name(jnp.cos(y), "out")


def residuals(**changes):
    """Sines and cosines in the backward pass: what was not kept is computed there again."""
    cfg = dataclasses.replace(models.run().model, **changes)
    wrapped = remat.wrap_layer(layer, cfg)
    x = jnp.ones((3, 3))
    _, back = jax.vjp(wrapped, x, x)
    text = str(jax.make_jaxpr(back)(x))
    return text.count(" sin "), text.count(" cos ")


@pytest.mark.parametrize(
    ("changes", "sines", "cosines"),
    [
        ({"remat": "none"}, 0, 0),
        ({"remat": "full"}, 2, 1),  # sin again, then the derivatives of cos and of sin
        ({"remat": "named", "kept": ("qkv",)}, 1, 1),
        ({"remat": "named", "kept": ("out",)}, 2, 1),
        ({"remat": "offload", "kept": ("qkv",)}, 1, 1),
    ],
)
def test_what_is_kept_is_not_computed_again(changes, sines, cosines):
    assert residuals(**changes) == (sines, cosines)


def test_offloaded_activations_wait_in_the_hosts_memory():
    cfg = dataclasses.replace(models.run().model, remat="offload", kept=("qkv",))
    step = jax.grad(lambda x, w: jnp.sum(remat.wrap_layer(layer, cfg)(x, w)))
    assert "f32<host>[3,3]" in str(jax.make_jaxpr(step)(jnp.ones((3, 3)), jnp.ones((3, 3))))
