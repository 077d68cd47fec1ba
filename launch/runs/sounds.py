"""Sound as users hand it over: the path of a file, or samples and their rate."""

import os

from etils import epath
from jaxtyping import Float32
import numpy as np

from data_pipelines.audio import file_io
from data_pipelines.audio.log_mel import normalized_log_mel
from data_pipelines.corpora.utterance import Utterance
from melllm_jax.config.features import Mel
from melllm_jax.errors import Mistake
from melllm_jax.features.mel_filters import SAMPLE_RATE

Sound = str | os.PathLike[str] | np.ndarray  # samples are floats [w] in [-1, 1]


def sound_name(sound: Sound) -> str:
    """What messages call it."""
    return os.fspath(sound) if isinstance(sound, str | os.PathLike) else "samples"


def load_sound(sound: Sound, rate: int | None = None) -> Float32[np.ndarray, "w"]:
    """Samples at 16 kHz of a file, or of samples that were taken `rate` times a second.

    Raises Mistake for a file as `file_io.decode_audio` does, and for what is no samples.
    """
    if isinstance(sound, str | os.PathLike):
        return file_io.decode_audio(sound)
    if sound.ndim != 1 or sound.dtype.kind != "f":
        shape = list(sound.shape)
        rule = "must be floats [w] in [-1, 1], of one channel"
        raise Mistake(f"samples: are {sound.dtype} {shape}: {rule}")
    if rate is None:
        raise Mistake("rate: samples need theirs, in Hz")
    if not file_io.MIN_RATE <= rate <= file_io.MAX_RATE:
        rule = f"must be from {file_io.MIN_RATE} to {file_io.MAX_RATE} Hz"
        raise Mistake(f"rate={rate}: {rule}")
    peak = np.abs(sound).max(initial=0.0)
    if not peak <= file_io.MAX_AMPLITUDE:  # also where it is NaN
        raise Mistake(f"samples: reach {peak:g}: full scale is 1")
    return file_io.resample(sound.astype(np.float32), rate)


def file_utterance(file: str | os.PathLike[str]) -> Utterance:
    """A file as an utterance without text. Raises Mistake where its header cannot be read."""
    name = os.fspath(file)
    return Utterance(name, "", file_io.read_duration(name), "", epath.Path(name))


def sound_utterance(sound: Sound, rate: int | None, mel: Mel) -> Utterance:
    """A file, or samples with their mel made, as an utterance without text. Raises Mistake."""
    if isinstance(sound, str | os.PathLike):
        return file_utterance(sound)
    wave = load_sound(sound, rate)
    frames = normalized_log_mel(wave, mel)
    return Utterance("samples", "", wave.size / SAMPLE_RATE, "", mel=frames)
