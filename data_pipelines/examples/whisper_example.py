"""Turns one utterance into the windows of sound that a Whisper hears, each one frame of 30 s.

Sound that is longer is cut into several: in the middle of a pause of 0.3 s where one lies within
reach of every cut, else every 30 s. Each window is a mel of its own, padded with silence, as the
model was trained and as transformers' extractor makes it.
"""

import math

from jaxtyping import Float32
import numpy as np

from data_pipelines.audio.log_mel import normalized_log_mel
from data_pipelines.audio.pauses import split_at_pauses
from data_pipelines.audio.sound import Sound
from data_pipelines.corpora.corpus import load_utterance_sound
from data_pipelines.corpora.utterance import Utterance
from data_pipelines.examples.asr_example import TOO_SHORT, EvalExample
from data_pipelines.reject import Reject, Unusable
from melllm_jax.config.features import Mel
from melllm_jax.features.mel_filters import SAMPLE_RATE

HOP, WIDTH = 160, 400  # samples of 16 kHz from one frame to the next, and in one
NO_TRANSCRIPT = "asks for no transcript"


class WhisperExampleMaker:
    """Makes the windows of one utterance; `window` mel frames are one."""

    def __init__(self, mel: Mel, window: int) -> None:
        self._mel, self._window = mel, window

    def eval_example(self, utterance: Utterance) -> EvalExample | Reject[int]:
        """The windows of an utterance of any length, and its reference unchanged."""
        try:
            if utterance.turns:
                rule = "a Whisper transcribes and answers no questions"
                raise Unusable(NO_TRANSCRIPT, f"{utterance.id}: task={utterance.task}: {rule}")
            sound = load_utterance_sound(utterance)
            return self.sound_example(sound, utterance.id, utterance.text)
        except Unusable as error:
            return Reject(0, utterance.id, error.reason, str(error))

    def sound_example(self, sound: Sound, name: str, reference: str = "") -> EvalExample:
        """The windows of a sound: `mels` of all of them [f m], and the `frames` of each.

        The silence that fills a window up is left out but for its first frame, where there is any.
        Raises Unusable for sound that is too short for a frame.
        """
        wave = sound.at(SAMPLE_RATE).wave
        if wave.size < HOP:
            rule = f"needs {HOP} or more for a frame"
            raise Unusable(TOO_SHORT, f"{name}: audio of {wave.size} samples: the model {rule}")
        mels = [self._mel_of(wave[piece]) for piece in window_slices(wave, self._window * HOP)]
        columns = {
            "mels": np.concatenate(mels),
            "frames": np.array([len(mel) for mel in mels], np.int32),
        }
        return EvalExample(name, reference, sound.seconds, columns)

    def _mel_of(self, wave: np.ndarray) -> Float32[np.ndarray, "f m"]:
        """The frames of a window of sound up to the first that is silence alone."""
        heard = math.ceil((wave.size + WIDTH // 2) / HOP) + 1
        samples = min(heard * HOP + WIDTH, self._window * HOP)
        padded = np.pad(wave, (0, samples - wave.size))
        return normalized_log_mel(padded, self._mel)[:heard]


def window_slices(wave: Float32[np.ndarray, "w"], longest: int) -> tuple[slice, ...]:
    """Where to cut 16 kHz sound into windows of at most `longest` samples."""
    if wave.size <= longest:
        return (slice(0, wave.size),)
    at_pauses = split_at_pauses(wave, longest / SAMPLE_RATE)
    return at_pauses or tuple(
        slice(start, min(start + longest, wave.size)) for start in range(0, wave.size, longest)
    )


def filled_windows(example: EvalExample, window: int) -> Float32[np.ndarray, "b window m"]:
    """The windows of an example, each filled up with silence."""
    mels, frames = example.columns["mels"], example.columns["frames"]
    parts = np.split(mels, np.cumsum(frames)[:-1])
    fill = lambda part: np.pad(part, ((0, window - len(part)), (0, 0)), mode="edge")
    return np.stack([fill(part) for part in parts])
