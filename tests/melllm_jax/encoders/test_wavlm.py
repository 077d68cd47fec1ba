"""WavLM in rows, on meshes and in pieces; tests/parity holds its numbers against transformers'."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from melllm_jax import sharding
from melllm_jax.config.encoders import WavLM
from melllm_jax.encoders import wavlm_stream
from melllm_jax.encoders.wavlm import WavLMEncoder, positions_heard
from melllm_jax.encoders.wavlm_convolutions import PositionConvolution, centred
from melllm_jax.errors import Mistake
from tests.support import models

BASE = WavLM(
    d=32,
    n=4,
    f=48,
    l=2,
    channels=(12, 8),
    kernels=(6, 3),
    strides=(4, 2),
    taps=7,
    groups=4,
    buckets=16,
    distance=20,
)
LARGE = dataclasses.replace(BASE, norm="layer", stable=True, bias=True, taps=6)
CAUSAL = dataclasses.replace(LARGE, causal=True, window=8, look_ahead=2)
hidden = models.jitted(lambda model, waves, lengths: model.hidden(waves, lengths))


def noise(b, w):
    return np.random.default_rng(0).normal(size=(b, w)).astype(np.float32)


def made(cfg):
    return models.drawn(lambda rngs: WavLMEncoder(rngs, cfg))


def one(cfg):
    """The network on one device, whose mesh is in force."""
    skeleton, weights = made(cfg)
    return skeleton.model(weights)


def assert_near(found, expected, most=1e-5):
    np.testing.assert_allclose(found, expected, rtol=0, atol=most * np.abs(expected).max())


def on_rows(x):
    layout = sharding.a("b w" if x.ndim == 2 else "b")
    return jax.device_put(x, jax.NamedSharding(jax.sharding.get_mesh(), layout))


@pytest.mark.parametrize("cfg", [LARGE, CAUSAL], ids=["whole", "causal"])
def test_a_padded_row_equals_its_sound_alone(cfg):
    """Whatever lies in the padding: what is of a row's length is what it has alone."""
    waves, lengths = noise(2, 171), np.array([171, 90], np.int32)
    with models.one_device():
        model = one(cfg)
        padded = np.asarray(hidden(model, waves, lengths))
        alone = np.asarray(hidden(model, waves[1:, :90], np.array([90], np.int32)))
    assert alone.shape[2] == positions_heard(cfg, 90) < padded.shape[2]
    assert_near(padded[:, 1:, : alone.shape[2]], alone)


def test_later_samples_change_nothing_before_their_chunk():
    """Position 6 reads samples up to 48, and chunks are of three: 6, 7 and 8 are one."""
    waves = noise(1, 104)
    with models.one_device():
        model = one(CAUSAL)
        run = models.jitted(lambda model, waves: model.hidden(waves))
        states = np.asarray(run(model, waves))
        for sample, first in ((48, 6), (49, 7), (41, 6)):
            changed = waves.copy()
            changed[:, sample:] += 1
            differ = np.any(np.asarray(run(model, changed)) != states, axis=(1, 3))
            assert np.flatnonzero(differ[0])[0] == first
            assert np.flatnonzero(differ[-1])[0] == 6


@pytest.mark.parametrize(
    "lengths",
    [pytest.param([24] * 7 + [5], marks=pytest.mark.slow), [37, 11, 0, 71, 1, 24, 29]],
    ids=["chunks", "odd"],
)
def test_pieces_of_any_length_are_the_whole(lengths):
    """Longer than the window, and its last chunk is not full."""
    waves = noise(2, 173)
    with models.one_device():
        model = one(CAUSAL)
        state = wavlm_stream.init_state(model, 2)
        whole = np.asarray(hidden(model, waves, np.array([173, 173], np.int32)))
        found = []
        for piece in np.split(waves, np.cumsum(lengths)[:-1], axis=1):
            states, state = wavlm_stream.step(model, state, jnp.asarray(piece))
            found.append(np.asarray(states))
        found.append(np.asarray(wavlm_stream.finish(model, state)))
    counts = [part.shape[2] for part in found]
    heard = np.cumsum(lengths) // 24 * 3
    assert counts == [*np.diff(heard, prepend=0), whole.shape[2] - heard[-1]]
    assert whole.shape[2] == 22 > CAUSAL.window + CAUSAL.chunk
    assert_near(np.concatenate(found, axis=2), whole)


def split_and_not(run, split):
    """What `run` gives on one device, and what on eight."""
    with models.one_device():
        alone = run()
    with models.split_as(split):
        return alone, run()


def test_states_on_eight_devices_equal_one():
    waves, lengths = noise(8, 170), np.array([170, 90, 170, 60, 100, 170, 30, 120], np.int32)

    def run():
        return np.asarray(hidden(one(BASE), on_rows(waves), on_rows(lengths)))

    alone, split = split_and_not(run, "fsdp2-seq2-tp2")
    assert alone.shape == (BASE.l + 1, 8, 20, BASE.d)
    assert_near(split, alone)


def test_gradients_of_the_position_convolution_on_eight_devices_equal_one():
    """Its kernel's are counted once, whatever axes split nothing of it."""
    x = noise(8, 10 * BASE.d).reshape(8, 10, BASE.d)

    def run():
        skeleton, weights = models.drawn(lambda rngs: PositionConvolution(rngs, BASE))
        loss = lambda weights, x: jnp.sum(jnp.sin(3 * skeleton.model(weights)(x, centred)))
        x_btd = jax.device_put(x, jax.NamedSharding(jax.sharding.get_mesh(), sharding.a("b t d")))
        return jax.device_get(models.jitted(jax.grad(loss))(weights, x_btd))

    alone, split = split_and_not(run, "fsdp2-seq2-tp2")
    for name, grad in alone.items():
        assert_near(split[name], grad)


@pytest.mark.slow  # by default the whole is split, and chunks on one device are the whole
def test_chunks_on_eight_devices_equal_one():
    """Two steps by one program: the state that comes out is laid out as the one that went in."""
    waves = noise(8, 48)

    def found():
        model, states = one(CAUSAL), []
        state = wavlm_stream.init_state(model, 8)
        for piece in np.split(waves, 2, axis=1):
            before = state
            x, state = wavlm_stream.step(model, state, on_rows(piece))
            states.append(np.asarray(x))
            assert jax.tree.map(lambda x: x.sharding, state) == jax.tree.map(
                lambda x: x.sharding, before
            )
        return np.concatenate(states, axis=2)

    alone, split = split_and_not(found, "fsdp4-tp2")
    assert_near(split, alone)


def test_a_wavlm_that_sees_later_positions_hears_no_chunks():
    with models.one_device(), pytest.raises(Mistake, match="wavlm.causal=False: this WavLM sees"):
        wavlm_stream.init_state(one(LARGE), 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n": 5}, "wavlm.n=5: cannot share d=32 evenly"),
        ({"groups": 3}, "wavlm.groups=3: cannot share d=32 evenly"),
        ({"taps": 0}, "wavlm.taps=0: must be positive"),
        ({"kernels": (6,)}, r"wavlm.kernels=\(6,\): must be positive numbers, 2 as wavlm.channels"),
        ({"strides": (4, 0)}, r"wavlm.strides=\(4, 0\): must be positive numbers, 2"),
        ({"buckets": 18}, "wavlm.buckets=18: must be a multiple of 4"),
        ({"distance": 4}, "wavlm.distance=4: must be more than a quarter of wavlm.buckets=16"),
        ({"last_norm": False}, "wavlm.last_norm=False: may be false of wavlm.stable alone"),
        ({"causal": True}, "wavlm.norm=group: takes statistics of the whole sound"),
        (
            {"causal": True, "norm": "layer", "window": 3},
            "wavlm.look_ahead=3: must be 0 or more, and less than wavlm.window=3",
        ),
    ],
)
def test_sizes_that_cannot_be_are_named(change, message):
    with pytest.raises(Mistake, match=message):
        dataclasses.replace(BASE, **change)
