"""Speech as it comes: sound is made of the first patches while the model writes the next."""

from collections.abc import Callable, Iterator
import contextlib
import time
from typing import BinaryIO

import jax
import numpy as np

from data_pipelines.audio.file_io import to_int16
from data_pipelines.audio.wav_header import endless_header
from launch.runs.model_loader import single_device_mesh
from launch.speech.run_speaker import SpeakerChoice, load_speaking_model
from launch.speech.speaking_model import Question, Reply, SpeakingModel, SpokenMel
from launch.speech.spoken_files import SpokenSound
from melllm_jax.config.features import Mel
from melllm_jax.errors import Mistake
from melllm_jax.features.mel_filters import above_floor
from melllm_jax.vocoders.stored_vocoder import Vocoder, check_same_mel, load_network
from melllm_jax.vocoders.streaming import stream_sound


class StreamedSpeech:
    """A text's sound in parts, float32 [w]; once all are taken, `spoken` is the whole mel."""

    def __init__(
        self,
        model: SpeakingModel,
        vocoder: tuple[Mel, Vocoder],
        text: str | Reply,
        seconds: float,
        seed: int,
    ) -> None:
        self.rate = model.mel.rate
        self.spoken: SpokenMel | None = None
        self._read, self._vocoder = vocoder
        self._written = model.stream(text, seconds=seconds, seed=seed)

    def __iter__(self) -> Iterator[np.ndarray]:
        for wave in stream_sound(self._vocoder, self._new_frames()):
            if wave.shape[1]:
                yield wave[0]

    def _new_frames(self) -> Iterator[np.ndarray]:
        for spoken, new in self._written:
            self.spoken = spoken
            if len(new):
                yield above_floor(new[None], self._read)


@contextlib.contextmanager
def open_streaming_speaker(
    choice: SpeakerChoice,
) -> Iterator[Callable[[str | Question, float], StreamedSpeech]]:
    """A function from a text and seconds a part to its speech, on one device within `with`.

    Of a question it is the speech of the model's answer. Raises Mistake as `open_speaker` does,
    without a vocoder, and for one that reads later frames.
    """
    with jax.set_mesh(single_device_mesh()):
        model = load_speaking_model(choice)[1]
        vocoder = _load_causal(choice.vocoder, model)

        def speak_text(text: str | Question, seconds: float) -> StreamedSpeech:
            said = model.reply(text) if isinstance(text, Question) else text
            return StreamedSpeech(model, vocoder, said, seconds, choice.seed)

        yield speak_text


def take_parts(speech: StreamedSpeech, output: BinaryIO | None = None) -> SpokenSound:
    """All parts of a speech as one; each is written to `output`, a WAV without end, as it comes."""
    began, first, parts = time.perf_counter(), 0.0, [np.zeros(0, np.float32)]
    for part in speech:
        if len(parts) == 1:
            first = time.perf_counter() - began
            if output is not None:
                output.write(endless_header(speech.rate))
        parts.append(part)
        if output is not None:
            output.write(to_int16(part).tobytes())
            output.flush()
    assert speech.spoken is not None
    seconds = time.perf_counter() - began
    return SpokenSound(speech.spoken, np.concatenate(parts), speech.rate, seconds, first)


def _load_causal(path: str, model: SpeakingModel) -> tuple[Mel, Vocoder]:
    """The mel that a causal vocoder reads, and the vocoder."""
    if not path:
        raise Mistake("stream: Griffin-Lim hears the whole before it makes a sound: give --vocoder")
    spec, network = load_network(path)
    check_same_mel(spec, model.mel, f"vocoder={path}")
    if not network.cfg.causal:
        raise Mistake(f"vocoder={path}: causal=False: it reads later frames: no sound by parts")
    return spec.mel, network
