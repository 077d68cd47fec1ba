import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from melllm_jax import vocoder_flops
from melllm_jax.config.overrides import override
from melllm_jax.config.vocoder_run import GENERATOR
from melllm_jax.models.parameters import abstract_model
from melllm_jax.objectives.vocoder import VocoderObjective
from melllm_jax.planning.traced_flops import count_flops
from melllm_jax.presets import catalog
from melllm_jax.vocoders.discriminators import Discriminators
from tests.support.models import drawn, jitted, one_device
from tests.support.vocoders import JUDGES, vocoder_run


@pytest.fixture(scope="module")
def judges():
    cfg = dataclasses.replace(JUDGES, resolutions=(64,))
    with one_device():
        skeleton, weights = drawn(lambda rngs: Discriminators(rngs, cfg), spread=0)
        return skeleton.model(weights)


def test_a_period_sees_each_of_its_columns_by_itself(judges):
    wave = np.random.default_rng(0).normal(0, 0.1, (1, 600)).astype(np.float32)
    other = wave.copy()
    other[0, 300] += 0.5  # the first of its row of three
    with one_device():
        before, after = (jitted(judges.periods[0])(jnp.asarray(x)) for x in (wave, other))
    for layer, changed in zip(before, after, strict=True):
        moved = np.abs(layer - changed).max(axis=(0, 1, 3)) > 0
        assert moved.tolist() == [True, False, False]


def test_a_resolution_hears_neither_loudness_nor_an_offset(judges):
    wave = np.random.default_rng(0).normal(0, 0.1, (2, 640)).astype(np.float32)
    heard = jitted(judges.resolutions[0])
    with one_device():
        quiet, loud = (heard(jnp.asarray(x))[-1] for x in (wave, 3 * wave + 0.25))
    np.testing.assert_allclose(quiet, loud, rtol=0.02, atol=0.02 * np.abs(quiet).max())
    assert not np.allclose(quiet[0], quiet[1], atol=0.1 * np.abs(quiet).max())


def test_the_gradient_of_silence_is_finite_and_small(judges):
    total = lambda x: jnp.sum(jnp.square(judges.resolutions[0](x)[-1] - 1))
    wave = np.random.default_rng(0).normal(0, 0.1, (2, 640)).astype(np.float32)
    with one_device():
        found = jitted(jax.grad(total))(jnp.asarray(wave).at[0].set(0.0))
    assert np.isfinite(found).all()
    assert np.abs(found[1]).max() > 0 and np.abs(found[0]).max() < 1e4


@pytest.mark.parametrize("name", catalog.VOCODERS)
def test_counted_weights_and_products_are_those_of_the_networks(name):
    run = catalog.any_preset(name)
    objective = VocoderObjective(override(run, {"data.b": 1}))
    with one_device():
        skeleton, shapes = abstract_model(objective.build)
        own = sum(x.size for k, x in shapes.items() if k.startswith(GENERATOR))
        rest = sum(x.size for x in shapes.values()) - own
        statistics = 2 * run.mel.m if run.vocoder.kind == "hifi_gan" else 0
        assert vocoder_flops.generator_parameters(run) == own - statistics
        assert vocoder_flops.discriminator_parameters(run) == rest
        wave = jax.ShapeDtypeStruct((1, run.data.t * run.mel.hop), np.float32)
        judge = lambda weights, x: skeleton.model(weights).discriminators(x)
        traced = count_flops(jax.make_jaxpr(judge)(shapes, wave))
    counted = sum(layer.flops for layer in vocoder_flops.discriminator_layers(run))
    # Traced are the products with what is there, counted those with the zeros around it too.
    assert 0.93 * counted < traced.dot + traced.conv <= counted


def test_an_update_costs_what_the_networks_do_several_times():
    run = vocoder_run()
    alone = override(run, {"adversarial.periods": [], "adversarial.resolutions": []})
    both, own = map(vocoder_flops.vocoder_update_flops, (run, alone))
    layers = sum(layer.flops for layer in vocoder_flops.generator_layers(run))
    assert own == 3 * run.data.b * layers < both
