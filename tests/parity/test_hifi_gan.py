"""HiFi-GAN against transformers' SpeechT5HifiGan: sound of random weights, padded rows."""

import jax.numpy as jnp
import numpy as np
import pytest

from melllm_jax.config.vocoder import HifiGan
from melllm_jax.convert.tensor_names.hifi_gan import hifi_gan_rules
from melllm_jax.models.parameters import abstract_model
from melllm_jax.vocoders.hifi_gan import HifiGanVocoder
from tests.support import models
from tests.support.references import assert_equal, converted, randomised, torch, transformers

M = 6
PUBLISHED = HifiGan(channels=32, resblock_kernels=(3, 7), dilations=((1, 3), (1, 5)))
# Taps that hold one, one and a half and three rates; blocks that differ in depth.
ODD = HifiGan(
    channels=16,
    rates=(3, 4, 2),
    kernels=(3, 6, 6),
    resblock_kernels=(3, 5),
    dilations=((1, 2), (3,)),
    slope=0.2,
    normalize=False,
)


def both(cfg):
    """Theirs, random, with statistics, and ours with its weights."""
    config = transformers.SpeechT5HifiGanConfig(
        model_in_dim=M,
        upsample_initial_channel=cfg.channels,
        upsample_rates=list(cfg.rates),
        upsample_kernel_sizes=list(cfg.kernels),
        resblock_kernel_sizes=list(cfg.resblock_kernels),
        resblock_dilation_sizes=list(map(list, cfg.dilations)),
        leaky_relu_slope=cfg.slope,
        normalize_before=cfg.normalize,
    )
    theirs = randomised(transformers.SpeechT5HifiGan(config))
    theirs.scale += 1.0
    with torch.no_grad():
        for x in theirs.parameters():  # the sound would be clipped: tanh of thousands
            x /= x[0, :, 0].numel() ** 0.5 if x.ndim == 3 else 1
    skeleton, shapes = abstract_model(lambda rngs: HifiGanVocoder(rngs, cfg, M))
    shapes = {name: x.shape for name, x in shapes.items()}
    read = converted(hifi_gan_rules(cfg), theirs, shapes)
    assert read.keys() == shapes.keys()
    return theirs, skeleton.model({name: jnp.asarray(x) for name, x in read.items()})


PUBLISHED_SLOW = pytest.param(PUBLISHED, marks=pytest.mark.slow)


@pytest.mark.parametrize("cfg", [PUBLISHED_SLOW, ODD], ids=["published rates", "odd rates"])
def test_sound_equals_theirs(cfg):
    mels = np.random.default_rng(0).normal(size=(2, 9, M)).astype(np.float32)
    with models.one_device():
        theirs, ours = both(cfg)
        found = models.jitted(lambda model, x: model(x))(ours, mels)
    with torch.no_grad():
        expected = theirs(torch.tensor(mels))
    assert found.shape == (2, 9 * cfg.hop)
    assert np.abs(found).max() > 0.05
    assert_equal(found, expected, 1e-4)
