"""One utterance to the columns of one example, or to the reason why it is unusable.

Pure functions of their arguments: the same utterance and random state give the same example, on
any thread. Nothing here raises for a bad utterance; whoever counts decides how many are too many.
"""

import dataclasses
import math

from jaxtyping import Float32
import ml_dtypes
import numpy as np

from data_pipelines.audio import BadAudio
from data_pipelines.augment import shifted, spec_augment
from data_pipelines.interleave import asr_example, asr_prompt_example
from data_pipelines.mel import frame_count, log_mel
from data_pipelines.prompt import asr_prompt
from data_pipelines.sources import sound
from data_pipelines.text import BadText, Tokenizer
from data_pipelines.utterance import Utterance
from melllm_jax.config import Data, Mel, Run
from melllm_jax.errors import Mistake
from melllm_jax.mel_tables import RATE

WIRE = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(ml_dtypes.bfloat16)}


class Unfit(Mistake):
    """An utterance that is sound and text but no example; `reason` is what is counted."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclasses.dataclass(frozen=True)
class Reject:
    """What stands in the stream for an unusable utterance."""

    source: int  # number of its corpus in Data.sources
    id: str
    reason: str  # few fixed words, to count by
    detail: str  # one line for a reader


@dataclasses.dataclass(frozen=True)
class Trial:
    """One utterance to transcribe: what decoding starts from, and what should come of it."""

    id: str
    reference: str
    duration: float  # seconds
    columns: dict[str, np.ndarray]  # of `interleave`, up to where the transcript starts


def reasons(cfg: Data) -> tuple[str, ...]:
    """Every reason that `Examples` gives under `cfg`."""
    audio = (
        "missing",
        "undecodable",
        "rate",
        "empty",
        "not finite",
        "too short",
        _too_long(cfg.longest),
    )
    return (*audio, "empty transcript", "unknown characters", _too_wide(cfg))


class Examples:
    """Makes the examples of one run."""

    def __init__(self, run: Run, tokenizer: Tokenizer) -> None:
        self._run, self._tokenizer = run, tokenizer
        self._prompt = asr_prompt(tokenizer, run.text)

    def train(
        self, drawn: tuple[int, Utterance], rng: np.random.Generator
    ) -> dict[str, np.ndarray] | Reject:
        """Columns [t ...] of an utterance and the number of its corpus, augmented with `rng`.

        Beside those of `interleave`, `sources`; patches are of the wire's dtype.
        """
        source, utterance = drawn
        data = self._run.data
        try:
            mel = heard(utterance, self._run.mel, longest=data.longest)
            ids = self._tokenizer.encode(utterance.text)
            mel = shifted(spec_augment(mel, data, rng), data, rng)
            columns = asr_example(mel, ids, self._prompt, r=self._run.mel.r)
            t = len(columns["tokens"])
            if t > data.t:
                raise Unfit(_too_wide(data), f"{utterance.id}: takes t={t} positions")
        except (BadAudio, BadText, Unfit) as error:
            return Reject(source, utterance.id, error.reason, str(error))
        columns["patches"] = columns["patches"].astype(WIRE[data.wire])
        columns["sources"] = np.full(t, source, np.int32)
        return columns

    def trial(self, utterance: Utterance) -> Trial | Reject:
        """The prompt of an utterance of any length, its reference as it is written."""
        try:
            mel = heard(utterance, self._run.mel, longest=math.inf)
        except (BadAudio, Unfit) as error:
            return Reject(0, utterance.id, error.reason, str(error))
        columns = asr_prompt_example(mel, self._prompt, r=self._run.mel.r)
        return Trial(utterance.id, utterance.text, utterance.duration, columns)


def heard(utterance: Utterance, cfg: Mel, *, longest: float) -> Float32[np.ndarray, "frames m"]:
    """The mel of an utterance, ready in it or made now. Raises BadAudio, and Unfit for its length.

    Audio that lasts more than `longest` seconds by its manifest is not opened.
    """
    _check_longest(utterance.id, utterance.duration, longest)
    if utterance.mel is not None:
        return utterance.mel
    wave = sound(utterance)
    _check_longest(utterance.id, wave.size / RATE, longest)
    return framed(wave, cfg, utterance.id)


def framed(wave: Float32[np.ndarray, "w"], cfg: Mel, name: str) -> Float32[np.ndarray, "frames m"]:
    """`log_mel`, but Unfit where there is too little sound for a frame."""
    try:
        frame_count(wave.size, cfg)
    except Mistake as error:
        raise Unfit("too short", f"{name}: {error}") from error
    return log_mel(wave, cfg)


def _check_longest(name: str, seconds: float, longest: float) -> None:
    if seconds > longest:
        raise Unfit(_too_long(longest), f"{name}: lasts {seconds:.2f} s")


def _too_long(longest: float) -> str:
    return f"longer than {longest:g} s"


def _too_wide(cfg: Data) -> str:
    return f"longer than the row of t={cfg.t}"
