"""Models that read speech, a speech language model or a Whisper, and the loop over batches."""

import abc
from collections.abc import Iterable, Iterator, Sequence
import dataclasses
import itertools
import time
from typing import Any, overload

import jax
import numpy as np

from data_pipelines.corpora.corpus import Corpus
from data_pipelines.corpora.utterance import ASR
from data_pipelines.examples.asr_example import EvalExample
from data_pipelines.examples.whisper_example import filled_windows
from data_pipelines.loader import pipeline
from data_pipelines.reject import Reject
from data_pipelines.text.prompt import asr_prompt
from data_pipelines.text.tokenizer import Tokenizer
from launch.runs.sounds import SoundSource, list_sounds
from melllm_jax.config.run import Run
from melllm_jax.errors import Mistake
from melllm_jax.evaluation.wer import Normalizer, Score, score_transcripts
from melllm_jax.inference.generate import Decoder, prompt_batch
from melllm_jax.inference.sampling import GREEDY, DecodingOptions
from melllm_jax.inference.whisper_generate import WhisperGenerator
from melllm_jax.models.speech_lm import SpeechLM
from melllm_jax.models.whisper import WhisperModel

ANSWER_TOKENS = 128  # of an answer, which may be as long as this to the shortest question


@dataclasses.dataclass(frozen=True)
class Transcript:
    """What was heard in one utterance."""

    id: str
    text: str
    seconds: float  # of audio
    looped: bool  # the repetition guard stopped it
    cut: bool  # the token limit stopped it

    @property
    def line(self) -> str:
        """The text in one line: a blank for each line break, of whatever kind."""
        return " ".join(self.text.splitlines())


class TranscribesSounds(abc.ABC):
    """What is asked from Python for the text of sound."""

    @overload
    def transcribe(
        self,
        sound: SoundSource,
        *,
        rate: int | None = None,
        batch: int = 1,
        decoding: DecodingOptions = GREEDY,
    ) -> str: ...

    @overload
    def transcribe(
        self,
        sound: list[Any] | tuple[Any, ...],
        *,
        rate: int | None = None,
        batch: int = 1,
        decoding: DecodingOptions = GREEDY,
    ) -> list[str]: ...

    def transcribe(
        self,
        sound: SoundSource | list[Any] | tuple[Any, ...],
        *,
        rate: int | None = None,
        batch: int = 1,
        decoding: DecodingOptions = GREEDY,
    ) -> str | list[str]:
        """The text of a sound as a str, or of a list of them as a list of str, in their order.

        A sound is the path of a wav, flac, mp3 or ogg file, or samples: floats [w] in [-1, 1],
        taken `rate` times a second (8,000 to 48,000 Hz). `batch` of them are read at once. The text
        is that of `melllm transcribe`; `transcripts` also says where a text was cut off. Raises
        Mistake for sound that cannot be used, and for a model that reads text alone.
        """
        sounds = list_sounds(sound)
        texts = [
            t.text for t in self.transcripts(sounds, rate=rate, batch=batch, decoding=decoding)
        ]
        return texts if isinstance(sound, list | tuple) else texts[0]

    @abc.abstractmethod
    def transcripts(
        self,
        sounds: Sequence[SoundSource],
        *,
        rate: int | None = None,
        batch: int = 1,
        decoding: DecodingOptions = GREEDY,
    ) -> list[Transcript]:
        """What is heard in each sound: its text, its seconds, and whether the text was cut off.

        Arguments and errors are those of `transcribe`.
        """


class BatchTranscriber(abc.ABC):
    """Reads trials in batches with a model; counts seconds of work and of compiling apart."""

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self.seconds = 0.0  # of work: features, prefill, generation; without compiling

    @property
    @abc.abstractmethod
    def compile_seconds(self) -> float:
        """Seconds spent compiling so far."""

    @abc.abstractmethod
    def _read(self, part: Sequence[EvalExample], rows: int) -> list[Transcript]:
        """The transcripts of at most `rows` trials, in their order."""

    def __call__(self, trials: Iterable[EvalExample], rows: int) -> Iterator[Transcript]:
        """Transcripts in the order of `trials`, decoded `rows` at a time."""
        parts = _parts(trials, rows)
        while True:
            began, compiling = time.perf_counter(), self.compile_seconds
            part = next(parts, None)
            found = [] if part is None else self._read(part, rows)
            self.seconds += time.perf_counter() - began - (self.compile_seconds - compiling)
            if part is None:
                return
            yield from found

    def score(
        self, trials: Sequence[EvalExample], rows: int, normalizer: Normalizer = "none"
    ) -> tuple[list[Transcript], Score]:
        """Transcripts of all `trials`, decoded `rows` at a time, and their word error rate."""
        heard = list(self(trials, rows))
        references = [trial.reference for trial in trials]
        return heard, score_transcripts(references, [t.text for t in heard], normalizer)


class Transcriber(BatchTranscriber):
    """Reads trials with a speech language model."""

    def __init__(self, model: SpeechLM, tokenizer: Tokenizer, run: Run, how: DecodingOptions):
        super().__init__(tokenizer)
        self.decoder = Decoder(model, asr_prompt(tokenizer, run.text).end, how)

    @property
    def compile_seconds(self) -> float:
        """Seconds spent compiling so far."""
        return self.decoder.compile_seconds

    def _limit(self, trial: EvalExample) -> int:
        """Most tokens of an answer: by the seconds of sound, which says little of an answer's."""
        by_sound = self.decoder.options.limit(trial.duration)
        return by_sound if trial.task == ASR else max(by_sound, ANSWER_TOKENS)

    def _read(self, part: Sequence[EvalExample], rows: int) -> list[Transcript]:
        limits = np.zeros(rows, np.int32)
        limits[: len(part)] = [self._limit(trial) for trial in part]
        batch = prompt_batch([trial.columns for trial in part], rows)
        out = jax.device_get(self.decoder(batch, limits))
        return [
            Transcript(
                trial.id,
                self._tokenizer.decode(out.tokens[i, : out.lengths[i]].tolist()),
                trial.duration,
                bool(out.looped[i]),
                not (out.ended[i] or out.looped[i]),
            )
            for i, trial in enumerate(part)
        ]


class WhisperTranscriber(BatchTranscriber):
    """Reads trials with a Whisper: their windows, `rows` at a time."""

    def __init__(self, model: WhisperModel, tokenizer: Tokenizer, how: DecodingOptions):
        super().__init__(tokenizer)
        self.generator = WhisperGenerator(model, how)

    @property
    def compile_seconds(self) -> float:
        """Seconds spent compiling so far."""
        return self.generator.compile_seconds

    def _read(self, part: Sequence[EvalExample], rows: int) -> list[Transcript]:
        window = self.generator.model.spec.window
        mels = np.concatenate([filled_windows(trial, window) for trial in part])
        frames = np.concatenate([trial.columns["frames"] for trial in part])
        read = [
            piece
            for start in range(0, len(mels), rows)
            for piece in self._pieces(
                mels[start : start + rows], frames[start : start + rows], rows
            )
        ]
        left, found = iter(read), list[Transcript]()
        for trial in part:
            own = list(itertools.islice(left, len(trial.columns["frames"])))
            text = " ".join(piece.text for piece in own if piece.text)
            looped, cut = any(piece.looped for piece in own), any(piece.cut for piece in own)
            found.append(Transcript(trial.id, text, trial.duration, looped, cut))
        return found

    def _pieces(self, mels: np.ndarray, frames: np.ndarray, rows: int) -> list[Transcript]:
        """What is heard in each of at most `rows` windows."""
        limit, hop = self.generator.options.limit, self.generator.model.spec.mel.hop_seconds
        count = len(frames)
        limits = np.zeros(rows, np.int32)
        limits[:count] = [limit(n * hop) for n in frames.tolist()]
        mels = np.pad(mels, ((0, rows - count), (0, 0), (0, 0)))
        out = jax.device_get(self.generator(mels, limits))
        return [
            Transcript(
                "",
                self._tokenizer.decode(out.tokens[i, : out.lengths[i]].tolist()).strip(),
                float(frames[i] * hop),
                bool(out.looped[i]),
                not (out.ended[i] or out.looped[i]),
            )
            for i in range(count)
        ]


def read_trials(
    corpus: Corpus, run: Run, tokenizer: Tokenizer, order: Sequence[int]
) -> tuple[list[EvalExample], list[Reject[int]]]:
    """The utterances at `order` to transcribe, and those that cannot be used."""
    return split_rejects(pipeline.eval_examples(corpus, run, tokenizer, order=order))


def split_rejects(
    examples: Iterable[EvalExample | Reject[int]],
) -> tuple[list[EvalExample], list[Reject[int]]]:
    """The examples that can be used, and those that cannot, each in their order."""
    trials: list[EvalExample] = []
    rejects: list[Reject[int]] = []
    for found in examples:
        if isinstance(found, EvalExample):
            trials.append(found)
        else:
            rejects.append(found)
    return trials, rejects


def _parts(trials: Iterable[EvalExample], rows: int) -> Iterator[list[EvalExample]]:
    trials = iter(trials)
    while part := list(itertools.islice(trials, rows)):
        yield part


def round_up_rows(rows: int, devices: int | None = None) -> int:
    """`rows`, or the next number that `devices` share evenly, by default all that are here.

    Raises Mistake below 1.
    """
    if rows < 1:
        raise Mistake(f"batch={rows}: must be positive")
    return rows + -rows % (devices or jax.device_count())
