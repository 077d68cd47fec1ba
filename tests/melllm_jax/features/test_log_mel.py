"""The device's frames equal NumPy's, whatever lies in the padding."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_pipelines.audio.log_mel import normalize_mel, normalized_log_mel
from melllm_jax.config.features import Mel
from melllm_jax.errors import Mistake
from melllm_jax.features.log_mel import batch_log_mel
from melllm_jax.features.mel_filters import (
    above_floor,
    check_heard_rate,
    make_filters,
    mel_rate,
)
from melllm_jax.sharding import a
from tests.support.models import one_device

VOCODED = [Mel("speecht5"), Mel("vocos", m=100)]
KINDS = [Mel(), Mel("whisper"), Mel("whisper", m=128), Mel("plain"), Mel("plain", m=23), *VOCODED]
LENGTHS = [513, 767, 20_001, 23_999, 24_000]
RAGGED = pytest.mark.parametrize("cfg", KINDS, ids=str)
jitted = jax.jit(batch_log_mel, static_argnames="cfg")


def sounds():
    """Noise that grows, so that each band varies and the peak lies at the end."""
    rng = np.random.default_rng(0)
    for count in LENGTHS:
        wave = rng.standard_normal(count) * np.geomspace(1e-3, 0.2, count)
        yield wave.astype(np.float32)


def batch(filling):
    wave = np.full((len(LENGTHS), max(LENGTHS)), filling, np.float32)
    for row, sound in zip(wave, sounds(), strict=True):
        row[: sound.size] = sound
    return jnp.asarray(wave), jnp.asarray(LENGTHS, jnp.int32)


def assert_equals_numpy(cfg, atol):
    mels, counts = jitted(*batch(filling=7.0), cfg=cfg)
    for row, count, sound in zip(np.asarray(mels), counts.tolist(), sounds(), strict=True):
        expected = normalized_log_mel(sound, cfg)
        assert count == len(expected)
        np.testing.assert_allclose(row[:count], expected, rtol=0, atol=atol)
        assert not row[count:].any()


@RAGGED
def test_a_ragged_batch_equals_numpy(cfg):
    """A sum of 400 float32 products errs by 1e-6 of the frame's loudest bin: 1e-3 at -60 dB."""
    assert_equals_numpy(dataclasses.replace(cfg, normalize="none"), atol=2e-3)


@pytest.mark.parametrize("normalize", ["none", "utterance"])
def test_no_cell_is_below_the_floor_and_none_above_it_moves(normalize):
    free = Mel("speecht5", normalize="none")
    quiet = next(sounds()) * np.float32(1e-3)
    plain = normalized_log_mel(quiet, free)
    floor = float(np.median(plain))
    wanted = normalize_mel(np.maximum(plain, np.float32(floor)), Mel(normalize=normalize))
    cfg = dataclasses.replace(free, normalize=normalize, floor=floor)
    np.testing.assert_allclose(normalized_log_mel(quiet, cfg), wanted, rtol=0, atol=1e-6)
    mels, counts = jitted(quiet[None], jnp.asarray([quiet.size], jnp.int32), cfg=cfg)
    np.testing.assert_allclose(mels[0, : counts[0]], wanted, rtol=0, atol=1e-3)
    np.testing.assert_array_equal(above_floor(plain, cfg), np.maximum(plain, np.float32(floor)))


@RAGGED
def test_a_ragged_batch_normalised_by_utterance_equals_numpy(cfg):
    """As above, divided by deviations that here are 0.3 and more where there are two frames."""
    assert_equals_numpy(dataclasses.replace(cfg, normalize="utterance"), atol=6e-3)


def test_a_ragged_batch_normalised_globally_equals_numpy():
    mean, invstd = tuple(range(80)), tuple(np.linspace(0.1, 1, 80).tolist())
    cfg = Mel(normalize="global", mean=tuple(map(float, mean)), invstd=invstd)
    assert_equals_numpy(cfg, atol=2e-3)


@RAGGED
def test_what_lies_in_the_padding_changes_nothing(cfg):
    loud, _ = jitted(*batch(filling=1e4), cfg=cfg)
    silent, _ = jitted(*batch(filling=0.0), cfg=cfg)
    np.testing.assert_array_equal(loud, silent)


@RAGGED
def test_rows_too_short_for_a_frame_are_zero_beside_others(cfg):
    shortest = {"phi4": 400, "whisper": 201, "plain": 1}.get(cfg.kind, 513)
    wave, _ = batch(filling=0.0)
    lengths = jnp.asarray([shortest - 1, 0, 24_000, shortest, 24_000], jnp.int32)
    mels, counts = jitted(wave, lengths, cfg=cfg)
    assert [count > 0 for count in counts.tolist()] == [False, False, True, True, True]
    assert not np.asarray(mels[:2]).any()
    assert np.isfinite(mels).all()


@RAGGED
def test_silence_gives_finite_frames(cfg):
    wave, lengths = batch(filling=0.0)
    mels, _ = jitted(wave * 0, lengths, cfg=cfg)
    assert np.isfinite(mels).all()


def test_a_compiled_call_moves_nothing_between_host_and_device():
    wave, lengths = batch(filling=0.0)
    jitted(wave, lengths, cfg=Mel())
    with jax.transfer_guard("disallow"):
        mels, _ = jitted(wave, lengths, cfg=Mel())
    assert mels.dtype == jnp.float32


def test_mel_of_24_khz_is_heard_by_no_model():
    """Sound is brought to 16 kHz, from which its upper bands cannot be made again."""
    check_heard_rate(Mel("speecht5"))
    with pytest.raises(Mistake, match="mel.kind=vocos: is of sound at 24000 Hz, and what a model"):
        check_heard_rate(Mel("vocos", m=100))


def test_a_lone_row_on_a_mesh_equals_numpy():
    wave = np.random.default_rng(0).normal(0, 0.1, (1, 1600)).astype(np.float32)
    cfg = Mel(kind="whisper", normalize="none")
    with one_device():
        placed = [
            jax.device_put(x, jax.NamedSharding(jax.sharding.get_mesh(), a(dims)))
            for x, dims in ((wave, "b w"), (np.array([1600]), "b"))
        ]
        found = jax.jit(lambda *x: batch_log_mel(*x, cfg)[0])(*placed)
    np.testing.assert_allclose(found[0], normalized_log_mel(wave[0], cfg), atol=1e-4)


def test_rows_too_narrow_for_a_frame_are_a_mistake():
    with pytest.raises(Mistake, match="rows of 399 samples: the phi4 extractor needs 400"):
        batch_log_mel(jnp.zeros((2, 399)), jnp.array([399, 399]), Mel())


def test_global_normalisation_without_values_is_a_mistake():
    with pytest.raises(Mistake, match="needs values in mel.mean and mel.invstd"):
        batch_log_mel(jnp.zeros((1, 400)), jnp.array([400]), Mel(normalize="global"))


@pytest.mark.parametrize("cfg", KINDS, ids=str)
def test_hop_in_seconds_is_that_of_the_frames(cfg):
    table = make_filters(cfg.kind, cfg.m)
    assert cfg.hop_seconds == table.hop / mel_rate(cfg, 48_000)
    assert table.frames(24_001 + cfg.hop) == table.frames(24_001) + 1


@pytest.mark.parametrize("cfg", VOCODED, ids=str)
def test_the_gradient_by_silent_sound_is_finite(cfg):
    """A magnitude has none at 0: what trains a vocoder starts from near silence."""
    loss = lambda wave: batch_log_mel(wave, jnp.array([2000]), cfg)[0].sum()
    wave = jnp.zeros((1, 2000)).at[0, 1000].set(0.1)
    slope = jax.jit(jax.grad(loss))(wave)
    assert np.isfinite(slope).all()
    assert np.abs(slope).max() > 0
