"""Parity of every extractor with its reference, and what normalisation and short sounds do."""

from concurrent.futures import ThreadPoolExecutor
import dataclasses
import functools
import importlib
from unittest import mock
import warnings

import jax
import jax.numpy as jnp
import numba
import numpy as np
import pytest

from data_pipelines.audio.file_io import decode_audio
from data_pipelines.audio.log_mel import (
    band_statistics,
    extract_log_mel,
    frame_count,
    normalized_log_mel,
)
from melllm_jax.config.features import Mel
from melllm_jax.errors import Mistake
from melllm_jax.features.log_mel import batch_log_mel
from melllm_jax.features.mel_filters import make_filters
from tests.support.paths import SHARED

SPEECH = SHARED
VOCODED = [Mel("speecht5"), Mel("vocos", m=100)]
KINDS = [Mel(), Mel("whisper"), Mel("whisper", m=128), Mel("plain"), Mel("plain", m=23), *VOCODED]
COUNT = 40_123  # samples: no multiple of the hop, and two blocks of frames


def noise(samples=COUNT, seed=0):
    return (0.1 * np.random.default_rng(seed).standard_normal(samples)).astype(np.float32)


def chirp():
    seconds = np.arange(COUNT) / 16_000
    return (0.5 * np.sin(2 * np.pi * (50 + 1500 * seconds) * seconds)).astype(np.float32)


SIGNALS = {
    "noise": noise(),
    "chirp": chirp(),
    "silence": np.zeros(COUNT, np.float32),
    "onset": np.concatenate([np.zeros(20_000, np.float32), noise(20_001)]),
    "full scale": np.clip(20 * noise(), -1, 1),
}


def speech():
    files = sorted((SPEECH / "librispeech_dev_clean_84").rglob("*.flac"))[:3]
    files += sorted((SPEECH / "fsdd").rglob("*.flac"))[:5]
    if not files:
        pytest.skip("no recordings of speech beside the project")
    return [decode_audio(file) for file in files]


def assert_same(mels, reference):
    """Equal in float32: its transform errs by 1e-7 of the frame's loudest bin.

    That is 1e-3 in the log of a band 80 dB below it (the chirp's empty bands), and 1e-6 mostly.
    """
    assert mels.shape == reference.shape
    assert mels.dtype == np.float32
    np.testing.assert_allclose(mels, reference, rtol=0, atol=2e-3)
    assert np.abs(mels - reference).mean() < 2e-5


def phi4(wave):
    transformers = pytest.importorskip("transformers", reason="needs the extra parity")
    pytest.importorskip("torch", reason="needs the extra parity")
    extractor = transformers.Phi4MultimodalFeatureExtractor()
    out = extractor(wave, sampling_rate=16_000, return_tensors="np")
    return out["audio_input_features"][0]


def whisper(wave, m, **options):
    transformers = pytest.importorskip("transformers", reason="needs the extra parity")
    pytest.importorskip("torch", reason="needs the extra parity")
    extractor = transformers.WhisperFeatureExtractor(feature_size=m)
    out = extractor(wave, sampling_rate=16_000, return_tensors="np", **options)
    return out["input_features"][0].T


@functools.cache
def melspectrogram():
    """librosa's, which loads without compiling what no mel calls: 15 s where nothing is cached."""
    uncompiled = lambda *_, **__: lambda function: function
    names = ("guvectorize", "jit", "stencil", "vectorize")
    with mock.patch.multiple(numba, **dict.fromkeys(names, uncompiled)):
        return importlib.import_module("librosa.feature.spectral").melspectrogram


def plain(wave, m):
    power = melspectrogram()(y=wave, sr=16_000, n_fft=512, win_length=400, hop_length=160, n_mels=m)
    return np.log(np.maximum(power, 1e-6)).T


def speecht5(wave):
    transformers = pytest.importorskip("transformers", reason="needs the extra parity")
    out = transformers.SpeechT5FeatureExtractor()(audio_target=wave, sampling_rate=16_000)
    return out["input_values"][0]


def vocos(wave):
    """As the package's MelSpectrogramFeatures asks torchaudio for it, by librosa."""
    magnitudes = melspectrogram()(
        y=wave,
        sr=24_000,
        n_fft=1024,
        hop_length=256,
        n_mels=100,
        power=1,
        htk=True,
        norm=None,
        pad_mode="reflect",
    )
    return np.log(np.maximum(magnitudes, 1e-7)).T


@pytest.mark.parametrize("name", SIGNALS)
@pytest.mark.parametrize(("cfg", "reference"), [(VOCODED[0], speecht5), (VOCODED[1], vocos)])
def test_mel_of_a_vocoder_equals_its_reference(cfg, reference, name):
    """Down to 80 dB under the frame's loudest band: their floors lie below what float32 tells."""
    mels, expected = extract_log_mel(SIGNALS[name], cfg), reference(SIGNALS[name])
    least = expected.max(axis=1, keepdims=True) - (4.0 if cfg.kind == "speecht5" else 9.2)
    assert_same(np.maximum(mels, least), np.maximum(expected, least))


@pytest.mark.parametrize("name", SIGNALS)
def test_phi4_of_a_signal_equals_transformers(name):
    assert_same(extract_log_mel(SIGNALS[name], Mel()), phi4(SIGNALS[name]))


@pytest.mark.parametrize("samples", [400, 559, 560, 20_720, 20_719])
def test_phi4_of_a_length_at_a_border_equals_transformers(samples):
    assert_same(extract_log_mel(noise(samples), Mel()), phi4(noise(samples)))


@pytest.mark.parametrize("samples", [200, 279, 280, 12_345])
def test_phi4_of_telephone_speech_equals_microsofts_processing(samples):
    """As processing_phi4mm.py has it: bins from 4 kHz on are 0, and so are bands 62 to 79."""
    wave, cfg = noise(samples), Mel(normalize="none")
    frames = np.lib.stride_tricks.sliding_window_view(wave, 200)[::80].astype(np.float64)
    before = np.roll(frames, 1, axis=1)
    before[:, 0] = before[:, 1]
    bins = np.fft.rfft(np.hamming(200) * (frames - 0.97 * before) * 32_768, 256)[:, :128]
    bank = make_filters("phi4", 80).bank
    reference = np.log(np.maximum(np.square(np.abs(bins)) @ bank[:128], 1.0))
    mels = extract_log_mel(wave, cfg, 8000)
    assert_same(mels, reference.astype(np.float32))
    assert not mels[:, 62:].any()
    on_device = jax.jit(batch_log_mel, static_argnums=(2, 3))
    device, _ = on_device(jnp.array(wave[None]), jnp.array([samples]), cfg, 8000)
    assert_same(np.asarray(device[0]), reference.astype(np.float32))
    with pytest.raises(Mistake, match="rate=8000: whisper takes sound of 16000 Hz"):
        extract_log_mel(wave, Mel("whisper"), 8000)


@pytest.mark.parametrize("m", [80, 128])
@pytest.mark.parametrize("name", SIGNALS)
def test_whisper_of_a_signal_equals_transformers(name, m):
    reference = whisper(SIGNALS[name], m, padding="do_not_pad", truncation=False)
    assert_same(extract_log_mel(SIGNALS[name], Mel("whisper", m=m)), reference)


@pytest.mark.parametrize("m", [80, 128])
def test_whisper_of_30_padded_seconds_equals_transformers(m):
    padded = np.pad(chirp(), (0, 480_000 - COUNT))
    assert_same(extract_log_mel(padded, Mel("whisper", m=m)), whisper(chirp(), m))


@pytest.mark.parametrize("m", [8, 23, 80])
@pytest.mark.parametrize("name", SIGNALS)
def test_plain_of_a_signal_equals_librosa(name, m):
    assert_same(extract_log_mel(SIGNALS[name], Mel("plain", m=m)), plain(SIGNALS[name], m))


@pytest.mark.parametrize("samples", [200, 400, 20_480])
def test_plain_of_a_length_at_a_border_equals_librosa(samples):
    with warnings.catch_warnings():  # librosa remarks on a sound shorter than its transform
        warnings.filterwarnings("ignore", "n_fft=512 is too large")
        reference = plain(noise(samples), 80)
    assert_same(extract_log_mel(noise(samples), Mel("plain")), reference)


@pytest.mark.parametrize("m", [128, 256])
@pytest.mark.filterwarnings("ignore:Empty filters detected")
def test_plain_with_empty_triangles_equals_librosa(m):
    assert_same(extract_log_mel(noise(), Mel("plain", m=m)), plain(noise(), m))


def test_phi4_of_real_speech_equals_transformers():
    for wave in speech():
        assert_same(extract_log_mel(wave, Mel()), phi4(wave))


def test_whisper_of_real_speech_equals_transformers():
    for wave in speech():
        reference = whisper(wave, 80, padding="do_not_pad", truncation=False)
        assert_same(extract_log_mel(wave, Mel("whisper")), reference)


def test_plain_of_real_speech_equals_librosa():
    for wave in speech():
        assert_same(extract_log_mel(wave, Mel("plain")), plain(wave, 80))


@pytest.mark.parametrize("cfg", KINDS, ids=str)
def test_extract_leaves_the_samples_as_they_were(cfg):
    wave = noise()
    extract_log_mel(wave, cfg)
    np.testing.assert_array_equal(wave, noise())


@pytest.mark.parametrize("cfg", KINDS, ids=str)
def test_extract_in_many_threads_equals_one(cfg):
    waves = [noise(samples, seed=samples) for samples in range(30_000, 30_800, 100)]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda wave: extract_log_mel(wave, cfg), waves * 4))
    for mels, wave in zip(together, waves * 4, strict=True):
        np.testing.assert_array_equal(mels, extract_log_mel(wave, cfg))


@pytest.mark.parametrize(
    ("kind", "samples", "frames"),
    [
        ("phi4", 400, 1),
        ("phi4", 559, 1),
        ("phi4", 560, 2),
        ("whisper", 201, 1),
        ("whisper", 319, 1),
        ("whisper", 320, 2),
        ("plain", 1, 1),
        ("plain", 159, 1),
        ("plain", 160, 2),
        ("plain", 480_000, 3001),
        ("speecht5", 767, 3),
        ("speecht5", 768, 4),
    ],
)
def test_frame_count_at_a_border_is_what_extract_gives(kind, samples, frames):
    assert frame_count(samples, Mel(kind)) == frames
    assert extract_log_mel(noise(samples), Mel(kind)).shape == (frames, 80)


@pytest.mark.parametrize(
    ("kind", "shortest"), [("phi4", 400), ("whisper", 201), ("plain", 1), ("speecht5", 513)]
)
def test_a_sound_too_short_for_a_frame_is_a_mistake(kind, shortest):
    rule = f"{shortest - 1} samples .* the {kind} extractor needs {shortest} or more"
    with pytest.raises(Mistake, match=rule):
        extract_log_mel(noise(shortest - 1), Mel(kind))
    with pytest.raises(Mistake, match=rule):
        frame_count(shortest - 1, Mel(kind))


@pytest.mark.parametrize("cfg", KINDS, ids=str)
def test_utterance_normalisation_gives_mean_zero_and_variance_one(cfg):
    mels = normalized_log_mel(noise() * np.linspace(0.01, 1, COUNT, dtype=np.float32), cfg)
    np.testing.assert_allclose(mels.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(mels.std(axis=0), 1, rtol=1e-3)  # EPS lies under the root


def test_utterance_normalisation_of_silence_is_zero():
    mels = normalized_log_mel(np.zeros(COUNT, np.float32), Mel("plain"))
    np.testing.assert_allclose(mels, 0, atol=1e-3)


def test_no_normalisation_is_extract():
    np.testing.assert_array_equal(
        normalized_log_mel(chirp(), Mel(normalize="none")),
        extract_log_mel(chirp(), Mel(normalize="none")),
    )


def test_global_normalisation_with_the_statistics_of_a_sound_whitens_it():
    cfg = Mel(normalize="global")
    mean, invstd = band_statistics([extract_log_mel(noise(), cfg)])
    mels = normalized_log_mel(noise(), dataclasses.replace(cfg, mean=mean, invstd=invstd))
    np.testing.assert_allclose(mels.mean(axis=0), 0, atol=1e-4)
    np.testing.assert_allclose(mels.std(axis=0), 1, rtol=1e-3)


def test_global_normalisation_without_values_is_a_mistake():
    with pytest.raises(Mistake, match="needs 80 values each in mel.mean and mel.invstd"):
        normalized_log_mel(noise(), Mel(normalize="global"))


def test_statistics_of_parts_far_from_zero_equal_those_of_the_whole():
    rng = np.random.default_rng(0)
    whole = (rng.standard_normal((5000, 3)) * [1, 2, 0.5] + [0, 3e3, -2e4]).astype(np.float32)
    mean, invstd = band_statistics(iter(np.split(whole, [1, 7, 7, 4000])))
    exact = whole.astype(np.float64)
    np.testing.assert_allclose(mean, exact.mean(axis=0), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(invstd, 1 / np.sqrt(exact.var(axis=0) + 1e-5), rtol=1e-9)


def test_statistics_of_nothing_are_a_mistake():
    with pytest.raises(Mistake, match="0 frames"):
        band_statistics([np.zeros((0, 80), np.float32)])
