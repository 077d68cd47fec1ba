"""Sound as users hand it over: the path of a file, or samples and their rate."""

import os
from typing import Any

from etils import epath
from jaxtyping import Float32
import numpy as np

from data_pipelines.audio import file_io
from data_pipelines.audio.sound import MAX_AMPLITUDE, MAX_RATE, MIN_RATE, Sound
from data_pipelines.corpora.utterance import Utterance
from data_pipelines.examples.asr_example import sound_to_mel
from melllm_jax.config.features import Mel
from melllm_jax.errors import Mistake

SoundSource = str | os.PathLike[str] | np.ndarray  # samples are floats [w] in [-1, 1]


def list_sounds(given: Any) -> list[SoundSource]:
    """One sound, or several, as a list; other arrays than NumPy's become NumPy's."""
    single = isinstance(given, str | os.PathLike) or hasattr(given, "__array__")
    every = [given] if single else list(given)
    return [x if isinstance(x, str | os.PathLike) else np.asarray(x) for x in every]


def sound_name(sound: SoundSource) -> str:
    """What messages call it."""
    return os.fspath(sound) if isinstance(sound, str | os.PathLike) else "samples"


def load_sound(sound: SoundSource, rate: int | None = None) -> Sound:
    """The sound of a file, or of samples that were taken `rate` times a second.

    Raises Mistake for a file as `file_io.decode_sound` does, and for what is no samples.
    """
    if isinstance(sound, str | os.PathLike):
        return file_io.decode_sound(sound)
    if sound.ndim != 1 or sound.dtype.kind != "f":
        shape = list(sound.shape)
        rule = "must be floats [w] in [-1, 1], of one channel"
        raise Mistake(f"samples: are {sound.dtype} {shape}: {rule}")
    if rate is None:
        raise Mistake("rate: samples need theirs, in Hz")
    if not MIN_RATE <= rate <= MAX_RATE:
        rule = f"must be from {MIN_RATE} to {MAX_RATE} Hz"
        raise Mistake(f"rate={rate}: {rule}")
    peak = np.abs(sound).max(initial=0.0)
    if not peak <= MAX_AMPLITUDE:  # also where it is NaN
        raise Mistake(f"samples: reach {peak:g}: full scale is 1")
    return Sound.of(sound.astype(np.float32), rate)


def load_mel(sound: SoundSource, rate: int | None, cfg: Mel) -> Float32[np.ndarray, "frames m"]:
    """What a front end reads of a sound. Raises Mistake as `load_sound`, or for its length."""
    return sound_to_mel(load_sound(sound, rate), cfg, sound_name(sound))


def file_utterance(file: str | os.PathLike[str]) -> Utterance:
    """A file as an utterance without text. Raises Mistake where its header cannot be read."""
    name = os.fspath(file)
    return Utterance(name, "", file_io.read_duration(name), "", epath.Path(name))


def sound_utterance(sound: SoundSource, rate: int | None, mel: Mel) -> Utterance:
    """A file, or samples with their mel made, as an utterance without text. Raises Mistake."""
    if isinstance(sound, str | os.PathLike):
        return file_utterance(sound)
    held = load_sound(sound, rate)
    return Utterance("samples", "", held.seconds, "", mel=sound_to_mel(held, mel, "samples"))
