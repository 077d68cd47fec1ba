"""Mel cepstral distortion: how far the spectrum of a sound is from that of a recording.

Variant: both sounds are brought to a root mean square of 0.1; ln|H| = c_0 + Σ c_k cos(kθ) in 80 mel
bands, each at its θ from 0 to π, of frames of 25 ms every 10 ms (the "plain" log-mel of 16 kHz
sound, floor 1e-6 of power); their frames are aligned by dynamic time warping with steps of one, all
of equal weight; a pair is apart 10 / ln 10 · √(2 Σ (c_k − c'_k)²) dB over k = 1 to 13, and the
distortion is the mean over the pairs on the path. That of a pair is the root of the mean square, in
dB, of the difference of two smoothed log spectra less their levels (c_0). Source: Kubichek,
"Mel-cepstral distance measure for objective speech quality assessment" (PACRIM 1993). Figures of
other variants (SPTK's mcep, other cepstra) do not compare; what lasts too long costs nothing here.
"""

from jaxtyping import Float, Float32, Int
import numpy as np
import scipy.fft
from scipy.spatial.distance import cdist

from data_pipelines.audio.log_mel import extract_log_mel
from melllm_jax.config.features import Mel

MEL = Mel(kind="plain", m=80, r=1, normalize="none")
CEPSTRA = 13  # c_1 to c_13
LEVEL = 0.1  # -20 dBFS, above which lies little speech: the floor is the same for both
LONGEST = 60.0  # seconds: two of them take 0.6 GB to align
VARIANT = f"MCD {CEPSTRA} of {MEL.m} mel bands, DTW, 1"  # the last a version: of any change
_DECIBELS = 10 / np.log(10) * np.sqrt(2)


def mel_cepstral_distortion(
    wave: Float32[np.ndarray, " w"], recording: Float32[np.ndarray, " r"]
) -> float:
    """The distortion in dB of 16 kHz sound; 0 of equal sounds, whatever their levels."""
    log_mels = (extract_log_mel(_set_level(sound), MEL) for sound in (wave, recording))
    distances = _DECIBELS * cdist(*map(mel_cepstra, log_mels))
    rows, columns = align(distances)
    return float(distances[rows, columns].mean())


def _set_level(wave: np.ndarray) -> np.ndarray:
    """The sound at a root mean square of `LEVEL`; silence stays."""
    level = np.sqrt(np.square(wave, dtype=np.float64).mean())
    return wave * np.float32(LEVEL / level) if level else wave


def mel_cepstra(log_mel: Float[np.ndarray, "frames m"]) -> Float[np.ndarray, "frames k"]:
    """c_1 to c_13 of frames of log mel power."""
    log_amplitude = log_mel.astype(np.float64) / 2
    return np.asarray(scipy.fft.dct(log_amplitude, type=2) / MEL.m)[:, 1 : CEPSTRA + 1]


def align(
    costs: Float[np.ndarray, "t s"],
) -> tuple[Int[np.ndarray, " path"], Int[np.ndarray, " path"]]:
    """Rows and columns of the path from the first pair to the last whose sum of costs is least.

    Each step goes one on in a row, in a column or in both (Sakoe and Chiba 1978, without a window).
    """
    t, s = costs.shape
    sums = np.full((t + 1, s + 1), np.inf)
    sums[0, 0] = 0.0
    for diagonal in range(2, t + s + 1):  # all pairs of one are known from the two before
        i = np.arange(max(1, diagonal - s), min(t, diagonal - 1) + 1)
        j = diagonal - i
        before = np.minimum(np.minimum(sums[i - 1, j], sums[i, j - 1]), sums[i - 1, j - 1])
        sums[i, j] = costs[i - 1, j - 1] + before
    path = [(t, s)]
    while path[-1] != (1, 1):
        i, j = path[-1]
        path.append(min(((i - 1, j - 1), (i - 1, j), (i, j - 1)), key=lambda pair: sums[pair]))
    rows, columns = np.array(path[::-1]).T - 1
    return rows, columns
