"""What is done to training mel alone: shifts against the patch grid, and SpecAugment's masks.

Park et al. 2019, "SpecAugment: A Simple Data Augmentation Method for Automatic Speech Recognition",
section 2, without its time warping, which its table 5 finds to matter least.
"""

from jaxtyping import Float32
import numpy as np

from melllm_jax.config import Data

SHARE = 0.2  # of an utterance that one time mask may cover: p of the paper's Switchboard policies


def shifted(
    mel: Float32[np.ndarray, "frames m"], cfg: Data, rng: np.random.Generator
) -> Float32[np.ndarray, "longer m"]:
    """`mel` after 0 to cfg.shift copies of its first frame, drawn evenly; itself where that is 0.

    Patches are cut every r frames from the start: without this, a model sees each recording cut
    at the same places in every epoch.
    """
    if not cfg.shift:
        return mel
    count = int(rng.integers(0, cfg.shift, endpoint=True))
    return np.concatenate([np.repeat(mel[:1], count, axis=0), mel])


def spec_augment(
    mel: Float32[np.ndarray, "frames m"], cfg: Data, rng: np.random.Generator
) -> Float32[np.ndarray, "frames m"]:
    """A copy of `mel` with cfg's masks on it; `mel` itself where cfg has none.

    A width is drawn evenly from 0 to cfg's widest (a time mask's also to SHARE of the frames, so
    that a short word is not lost whole), then a start from those where it fits. Masked cells take
    their band's mean over the utterance: about 0 after normalisation. The same state of `rng`
    gives the same masks.
    """
    if not (cfg.time_masks or cfg.band_masks):
        return mel
    frames, m = mel.shape
    mean = mel.mean(axis=0)
    masked = mel.copy()
    for _ in range(cfg.time_masks):
        bar = _bar(frames, min(cfg.time_width, int(SHARE * frames)), rng)
        masked[bar] = mean
    for _ in range(cfg.band_masks):
        bar = _bar(m, min(cfg.band_width, m), rng)
        masked[:, bar] = mean[bar]
    return masked


def _bar(size: int, widest: int, rng: np.random.Generator) -> slice:
    width = int(rng.integers(0, widest, endpoint=True))
    start = int(rng.integers(0, size - width, endpoint=True))
    return slice(start, start + width)
