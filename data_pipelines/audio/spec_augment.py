"""Augments the mel of training examples: SpecAugment, and shifts against the patch grid.

SpecAugment is of Park et al. 2019, "SpecAugment: A Simple Data Augmentation Method for Automatic
Speech Recognition", section 2. Every step draws from a generator of its own, so that switching one
on or off does not change the draws of the others.
"""

import functools

from jaxtyping import Float, Float32
import numpy as np

from melllm_jax.config.data import Augment


class RandomStreams:
    """Random generators by name, for one example: all are seeded by one draw from `rng`."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng

    @functools.cached_property
    def _words(self) -> list[int]:
        # Not rng.spawn: Grain sets only the state of its generators, and children follow the seed.
        words: list[int] = self._rng.integers(2**32, size=4, dtype=np.uint32).tolist()
        return words

    def __getitem__(self, name: str) -> np.random.Generator:
        return np.random.default_rng([*self._words, *name.encode()])

    def with_probability(self, name: str, share: float) -> np.random.Generator | None:
        """The generator of that name with probability `share`, else None."""
        if not share:
            return None
        rng = self[name]
        return rng if rng.random() < share else None


def augment_mel(
    mel: Float[np.ndarray, "frames m"], cfg: Augment, draws: RandomStreams
) -> Float[np.ndarray, "longer m"]:
    """`mel` warped, masked and shifted as `cfg` says; `mel` itself where it says nothing."""
    if not (cfg.warp or cfg.mask or cfg.shift):
        return mel
    mel = mel.astype(np.float32, copy=False)  # ready mel is in bfloat16
    if (rng := draws.with_probability("warp", cfg.warp)) is not None:
        mel = warp_time(mel, cfg, rng)
    if draws.with_probability("mask", cfg.mask) is not None:
        mel = apply_masks(mel, cfg, draws)
    return shift_frames(mel, cfg, draws["shift"]) if cfg.shift else mel


def warp_time(
    mel: Float32[np.ndarray, "frames m"], cfg: Augment, rng: np.random.Generator
) -> Float32[np.ndarray, "frames m"]:
    """`mel` with a frame moved by up to cfg.warp_width frames, its ends where they were.

    The frame is drawn evenly from those farther than the width from both ends, the way it goes
    from -width to width. What lies between is stretched evenly, each frame being interpolated from
    two neighbours: the paper's spline through the same points, for time alone, but straight. `mel`
    itself where it is too short to have such a frame.
    """
    width, last = cfg.warp_width, len(mel) - 1
    if last < 2 * width + 2:
        return mel
    source = int(rng.integers(width + 1, last - width - 1, endpoint=True))
    target = source + int(rng.integers(-width, width, endpoint=True))
    positions = np.interp(np.arange(last + 1), (0, target, last), (0, source, last))
    left = np.minimum(positions.astype(np.intp), last - 1)
    share = (positions - left).astype(np.float32)[:, None]
    out = mel[left + 1]
    out -= mel[left]
    out *= share
    out += mel[left]
    return out


def apply_masks(
    mel: Float32[np.ndarray, "frames m"], cfg: Augment, draws: RandomStreams
) -> Float32[np.ndarray, "frames m"]:
    """A copy of `mel` with cfg's masks on it.

    A width is drawn evenly from 0 to cfg's widest (a time mask's also to cfg.time_share of the
    frames, so that a short word is not lost whole), then a start from those where it fits. Masked
    cells take their band's mean over the utterance: about 0 after normalisation.
    """
    frames, m = mel.shape
    mean = mel.mean(axis=0)
    out = mel.copy()
    rng = draws["time masks"]
    for _ in range(cfg.time_masks):
        bar = _mask_range(frames, min(cfg.time_width, int(cfg.time_share * frames)), rng)
        out[bar] = mean
    rng = draws["band masks"]
    for _ in range(cfg.band_masks):
        bar = _mask_range(m, min(cfg.band_width, m), rng)
        out[:, bar] = mean[bar]
    return out


def shift_frames(
    mel: Float32[np.ndarray, "frames m"], cfg: Augment, rng: np.random.Generator
) -> Float32[np.ndarray, "longer m"]:
    """`mel` after 0 to cfg.shift copies of its first frame, drawn evenly.

    Patches are cut every r frames from the start: without this, a model sees each recording cut
    at the same places in every epoch.
    """
    count = int(rng.integers(0, cfg.shift, endpoint=True))
    return np.concatenate([np.repeat(mel[:1], count, axis=0), mel])


def _mask_range(size: int, widest: int, rng: np.random.Generator) -> slice:
    width = int(rng.integers(0, widest, endpoint=True))
    start = int(rng.integers(0, size - width, endpoint=True))
    return slice(start, start + width)
