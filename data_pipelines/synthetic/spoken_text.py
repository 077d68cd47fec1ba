"""Speaks sentences of any text, in espeak-ng's voices and a natural one.

What must hold: an utterance is a pure function of seed, split, index and sentence. dev has new
sentences in the voices of train. test has new sentences in voices of espeak-ng that no other split
hears; where all is spoken by the one natural voice, test has that voice.
"""

import dataclasses
from typing import Literal

from jaxtyping import Float32
import numpy as np

from data_pipelines.synthetic import espeak, natural_voice
from data_pipelines.synthetic.espeak import SpokenUtterance
from data_pipelines.synthetic.grammar import Split

Voices = Literal["espeak", "natural", "both"]
NATURAL_SHARE = 0.5  # of the utterances of train and dev, where both kinds speak
PACE = (0.85, 1.15)  # of the natural voice: as much as espeak-ng's rates differ


@dataclasses.dataclass(frozen=True)
class Manner:
    """How sentences are spoken."""

    voices: Voices = "espeak"
    clean: bool = False  # without the level, noise and pace that are drawn for each
    seed: int = 0


def check_voices(voices: Voices) -> None:
    """Raises Mistake where the extra that brings the voices is not installed."""
    if voices != "natural":
        espeak.find_files()
    if voices != "espeak":
        natural_voice.load()


def speak_sentence(text: str, split: Split, index: int, manner: Manner) -> SpokenUtterance:
    """Utterance number `index` of a split: its own voice, pace, level and noise.

    Raises Mistake as `check_voices`.
    """
    rng = np.random.default_rng((manner.seed, espeak.SPLITS.index(split), index))
    natural = manner.voices == "natural" or (
        manner.voices == "both" and split != "test" and rng.random() < NATURAL_SHARE
    )
    say = _speak_naturally if natural else _speak_by_espeak
    wave, speaker = say(text, split, manner.clean, rng)
    if not manner.clean:
        wave = espeak.set_level_and_noise(wave, rng)
    return SpokenUtterance(f"{split}-{index:06d}", text, speaker, wave)


def _speak_naturally(
    text: str, split: Split, clean: bool, rng: np.random.Generator
) -> tuple[Float32[np.ndarray, " w"], str]:
    pace = 1.0 if clean else float(rng.uniform(*PACE))
    return natural_voice.speak(text, pace, int(rng.integers(1 << 31))), natural_voice.SPEAKER


def _speak_by_espeak(
    text: str, split: Split, clean: bool, rng: np.random.Generator
) -> tuple[Float32[np.ndarray, " w"], str]:
    voice, rate_wpm, pitch = espeak.draw_voice(split, rng)
    return espeak.speak(text, voice, rate_wpm, pitch), voice
