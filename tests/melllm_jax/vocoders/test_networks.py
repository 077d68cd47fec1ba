"""Both vocoders: a padded batch, a split mesh, chunks of a causal one; sizes that cannot be."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from melllm_jax.config.features import Mel
from melllm_jax.config.vocoder import HifiGan, VocoderSpec, Vocos
from melllm_jax.errors import Mistake
from melllm_jax.vocoders.hifi_gan import HifiGanVocoder
from melllm_jax.vocoders.streaming import stream_sound
from melllm_jax.vocoders.vocos import VocosVocoder
from tests.support import models

M = 5
HIFI_GAN = HifiGan(8, (4, 2), (8, 6), (3,), ((2,),))
CENTER = Vocos(d=16, f=24, l=2, n_fft=32, hop=8)
SAME = dataclasses.replace(CENTER, padding="same")
CONFIGS = [HIFI_GAN, CENTER, SAME]
NAMES = ["hifi_gan", "center", "same"]
ALL = pytest.mark.parametrize("cfg", CONFIGS, ids=NAMES)
CAUSAL = [dataclasses.replace(cfg, causal=True) for cfg in CONFIGS]


def noise(b, frames):
    return np.random.default_rng(0).normal(size=(b, frames, M)).astype(np.float32)


def made(cfg):
    kind = HifiGanVocoder if isinstance(cfg, HifiGan) else VocosVocoder
    return models.drawn(lambda rngs: kind(rngs, cfg, M))


def on_rows(x):
    spec = jax.P(("replica", "fsdp"), *[None] * (x.ndim - 1))
    return jax.device_put(x, jax.NamedSharding(jax.sharding.get_mesh(), spec))


@ALL
def test_a_padded_batch_on_a_split_mesh_equals_its_rows_alone(mesh, cfg):
    mels, lengths = noise(4, 13), np.array([13, 6, 1, 9], np.int32)
    skeleton, weights = made(cfg)
    run = models.jitted(lambda w, x, n: skeleton.model(w)(x, n))
    found = np.asarray(run(weights, on_rows(mels), on_rows(lengths)))
    loud = np.where(np.arange(13)[None, :, None] < lengths[:, None, None], mels, 50.0)
    again = run(weights, on_rows(loud.astype(np.float32)), on_rows(lengths))
    np.testing.assert_array_equal(found, again)
    weights = {name: jax.device_get(x) for name, x in weights.items()}
    with models.one_device():
        model = skeleton.model({name: jnp.asarray(x) for name, x in weights.items()})
        for i in (1, 2):
            n = int(lengths[i])
            alone = np.asarray(models.jitted(lambda m, x: m(x))(model, mels[i : i + 1, :n]))[0]
            assert alone.size == cfg.samples(n)
            np.testing.assert_allclose(found[i, : alone.size], alone, rtol=0, atol=2e-5)
            assert not found[i, alone.size :].any()


@pytest.mark.parametrize("cfg", CAUSAL, ids=NAMES)
def test_chunks_of_a_causal_vocoder_are_the_whole(cfg):
    """Chunks of one frame and of several; the first sample needs no frame beyond the edge's."""
    mels = noise(2, 10)
    with models.one_device():
        skeleton, weights = made(cfg)
        model = skeleton.model(weights)
        whole = models.jitted(lambda m, x: m(x))(model, mels)
        parts = list(stream_sound(model, np.split(mels, [3, 4, 7], axis=1)))
    assert len(parts) >= 3
    np.testing.assert_allclose(np.concatenate(parts, axis=1), whole, rtol=0, atol=1e-5)


@pytest.mark.parametrize("cfg", CAUSAL, ids=NAMES)
def test_a_causal_vocoder_reads_no_later_frame(cfg):
    mels = noise(1, 12)
    changed = mels.copy()
    changed[:, 8:] += 1
    with models.one_device():
        skeleton, weights = made(cfg)
        run = models.jitted(lambda w, x: skeleton.model(w)(x))
        found, other = (np.asarray(run(weights, x))[0] for x in (mels, changed))
    same = 8 * cfg.hop - (0 if isinstance(cfg, HifiGan) else cfg.edge)
    np.testing.assert_array_equal(found[:same], other[:same])
    assert np.abs(found[same:] - other[same:]).max() > 1e-3


def test_a_vocoder_that_looks_ahead_makes_no_chunks():
    with models.one_device():
        skeleton, weights = made(SAME)
        with pytest.raises(Mistake, match="causal=False: this vocoder reads later frames"):
            next(stream_sound(skeleton.model(weights), [noise(1, 2)]))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: HifiGan(rates=(4, 4), kernels=(8, 7)), "kernels=7: must be 4 or an even number"),
        (lambda: HifiGan(rates=(4, 4)), r"kernels=\(8, 8, 8, 8\): needs 2"),
        (lambda: HifiGan(channels=24), "channels=24: must be halved 4 times"),
        (lambda: HifiGan(resblock_kernels=(3, 4, 5)), "must be odd numbers"),
        (lambda: HifiGan(dilations=((1,),)), "dilations=.*: needs 3 lists, none empty"),
        (lambda: Vocos(n_fft=300), "n_fft=300: must be even, and 2 or more times vocos.hop=256"),
        (
            lambda: Vocos(hop=255, padding="same"),
            "hop=255: must differ from vocos.n_fft by an even",
        ),
        (lambda: VocoderSpec("vocos", Mel("vocos", m=100)), "normalize=utterance: must be"),
        (
            lambda: VocoderSpec("hifi_gan", Mel("plain", normalize="none")),
            "hifi_gan.hop=256: makes another number of samples than the 160 from one plain frame",
        ),
    ],
)
def test_sizes_that_cannot_be_are_named(make, message):
    with pytest.raises(Mistake, match=message):
        make()
