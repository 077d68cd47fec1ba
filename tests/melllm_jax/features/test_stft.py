"""Frames, spectra and their inverse: as torch has them, and sound back as it was."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from melllm_jax.features.stft import istft, overlap_add, split_frames, stft

PADDINGS = pytest.mark.parametrize("padding", ["center", "same"])


def noise(*shape):
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def test_frames_and_their_sum_are_those_written_out():
    wave = np.arange(9, dtype=np.float32)[None]
    frames = split_frames(jnp.asarray(wave), 5, 2)
    np.testing.assert_array_equal(frames[0], [[0, 1, 2, 3, 4], [2, 3, 4, 5, 6], [4, 5, 6, 7, 8]])
    total = overlap_add(frames, 2)
    np.testing.assert_array_equal(total[0], [0, 1, 4, 6, 12, 10, 12, 7, 8])


def test_spectra_and_sound_equal_torchs():
    """Sums of 48 float32 products: 1e-5."""
    torch = pytest.importorskip("torch", reason="needs the extra `parity`")
    wave = noise(2, 160)
    window, sizes = torch.hann_window(48), {"n_fft": 48, "hop_length": 12}
    expected = torch.stft(torch.tensor(wave), window=window, return_complex=True, **sizes)
    found = stft(jnp.asarray(wave), 48, 12)
    np.testing.assert_allclose(found, expected.numpy().transpose(0, 2, 1), atol=1e-5)
    back = torch.istft(expected, window=window, **sizes).numpy()
    np.testing.assert_allclose(istft(found, 12), back, atol=1e-5)


@PADDINGS
def test_sound_comes_back(padding):
    """All of it: also where windows overlap less, at the edges."""
    wave = jnp.asarray(noise(2, 160))
    back = istft(stft(wave, 32, 8, padding), 8, padding)
    assert back.shape == wave.shape
    np.testing.assert_allclose(back, wave, atol=1e-5)


@PADDINGS
def test_a_row_shorter_than_the_batch_is_the_row_alone(padding):
    bins = jax.lax.complex(jnp.asarray(noise(2, 9, 17)), jnp.asarray(noise(2, 9, 17)))
    found = istft(bins, 8, padding, jnp.array([9, 4]))
    alone = istft(bins[1:, :4], 8, padding)
    np.testing.assert_allclose(found[0], istft(bins[:1], 8, padding)[0], atol=1e-5)
    np.testing.assert_allclose(found[1, : alone.shape[1]], alone[0], atol=1e-5)
    assert not np.asarray(found)[1, alone.shape[1] :].any()
