"""Turns one utterance into the columns of one example, or into a reject with a reason.

Pure functions of their arguments: the same utterance, noises and random state give the same
example, on any thread. ExampleMaker does not raise for a bad utterance; the loader counts rejects
and decides how many are too many.
"""

from collections.abc import Callable, Sequence, Set
import dataclasses
import math
import typing

from jaxtyping import Float, Float32
import ml_dtypes
import numpy as np

from data_pipelines.audio.file_io import AudioReason
from data_pipelines.audio.log_mel import frame_count, normalized_log_mel
from data_pipelines.audio.sound import Sound
from data_pipelines.audio.spec_augment import RandomStreams, augment_mel
from data_pipelines.corpora.corpus import load_utterance_sound
from data_pipelines.corpora.utterance import Utterance
from data_pipelines.examples.interleave import asr_columns, asr_prompt_columns
from data_pipelines.examples.wave_augment import BAD_NOISE, BAD_ROOM, NO_EFFECTS, Effects
from data_pipelines.reject import MALFORMED, Reject, Unusable
from data_pipelines.text.prompt import asr_prompt
from data_pipelines.text.tokenizer import EMPTY_TRANSCRIPT, UNKNOWN_CHARACTERS, Tokenizer
from melllm_jax.config.data import Data
from melllm_jax.config.features import Mel
from melllm_jax.config.run import Run
from melllm_jax.errors import Mistake
from melllm_jax.features.mel_filters import mel_rate

TRANSFER_DTYPES = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(ml_dtypes.bfloat16)}
TOO_SHORT = "too short"  # for a frame


@dataclasses.dataclass(frozen=True)
class EvalExample:
    """One utterance to transcribe: the prompt that decoding starts from, and the reference."""

    id: str
    reference: str
    duration: float  # seconds
    columns: dict[str, np.ndarray]  # of `interleave`, up to where the transcript starts


def reject_reasons(cfg: Data) -> tuple[str, ...]:
    """Every reason that `ExampleMaker` gives under `cfg`."""
    audio = (
        *typing.get_args(AudioReason),
        TOO_SHORT,
        _too_long_reason(cfg.longest),
        BAD_NOISE,
        BAD_ROOM,
    )
    return (*audio, MALFORMED, EMPTY_TRANSCRIPT, UNKNOWN_CHARACTERS, too_wide_reason(cfg))


class ExampleMaker:
    """Makes the examples of one run; `effects` are those of run.data.augment, for training.

    `ready` are the indices of the corpora whose stored ids are those of `tokenizer`.
    """

    def __init__(
        self,
        run: Run,
        tokenizer: Tokenizer,
        effects: Effects = NO_EFFECTS,
        ready: Set[int] = frozenset(),
    ) -> None:
        self._run, self._tokenizer, self._effects, self._ready = run, tokenizer, effects, ready
        self._prompt = asr_prompt(tokenizer, run.text)

    def train(
        self, drawn: tuple[int, Utterance], rng: np.random.Generator
    ) -> dict[str, np.ndarray] | Reject[int]:
        """Columns [t ...] of (index of its corpus, utterance), augmented with `rng`.

        They are those of `interleave` and `sources`; patches have the transfer dtype.
        """
        source, utterance = drawn
        data, draws = self._run.data, RandomStreams(rng)
        change = lambda wave: self._effects(wave, draws)
        try:
            mel = load_mel(utterance, self._run.mel, longest=data.longest, change=change)
            ids: Sequence[int] | None = utterance.tokens if source in self._ready else None
            if ids is None:
                ids = self._tokenizer.encode(utterance.text)
            mel = augment_mel(mel, data.augment, draws)
            r, dtype = self._run.mel.r, TRANSFER_DTYPES[data.wire]
            columns = asr_columns(mel, ids, self._prompt, r=r, dtype=dtype)
            t = len(columns["tokens"])
            if t > data.t:
                raise Unusable(too_wide_reason(data), f"{utterance.id}: takes t={t} positions")
        except Unusable as error:
            return Reject(source, utterance.id, error.reason, str(error))
        columns["sources"] = np.full(t, source, np.int32)
        return columns

    def eval_example(self, utterance: Utterance) -> EvalExample | Reject[int]:
        """The prompt of an utterance of any length, and its reference unchanged."""
        try:
            mel = load_mel(utterance, self._run.mel, longest=math.inf)
        except Unusable as error:
            return Reject(0, utterance.id, error.reason, str(error))
        columns = asr_prompt_columns(mel, self._prompt, r=self._run.mel.r)
        return EvalExample(utterance.id, utterance.text, utterance.duration, columns)


Wave = Float32[np.ndarray, "_"]


def load_mel(
    utterance: Utterance, cfg: Mel, *, longest: float, change: Callable[[Wave], Wave] = lambda w: w
) -> Float[np.ndarray, "frames m"]:
    """The mel of an utterance: stored in it in bfloat16, or computed from its sound after `change`.

    `change` takes and gives samples at 16 kHz. Audio that lasts more than `longest` seconds by its
    manifest is not opened; how long it lasts after `change` does not matter here. Raises Unusable,
    also for its length.
    """
    _check_longest(utterance.id, utterance.duration, longest)
    if utterance.mel is not None:
        if not len(utterance.mel):
            raise Unusable(TOO_SHORT, f"{utterance.id}: its ready mel has 0 frames")
        return utterance.mel
    sound = load_utterance_sound(utterance)
    _check_longest(utterance.id, sound.seconds, longest)
    sound = sound.at(mel_rate(cfg, sound.rate)).changed(change)
    return sound_to_mel(sound, cfg, utterance.id)


def sound_to_mel(sound: Sound, cfg: Mel, name: str) -> Float32[np.ndarray, "frames m"]:
    """`normalized_log_mel`. Raises Unusable where there is too little sound for a frame."""
    sound = sound.at(mel_rate(cfg, sound.rate))
    try:
        frame_count(sound.wave.size, cfg, sound.rate)
    except Mistake as error:
        raise Unusable(TOO_SHORT, f"{name}: {error}") from error
    return normalized_log_mel(sound.wave, cfg, sound.rate)


def _check_longest(name: str, seconds: float, longest: float) -> None:
    if seconds > longest:
        raise Unusable(_too_long_reason(longest), f"{name}: lasts {seconds:.2f} s")


def _too_long_reason(longest: float) -> str:
    return f"longer than {longest:g} s"


def too_wide_reason(cfg: Data) -> str:
    """The reason that an example is counted under which is longer than a row."""
    return f"longer than the row of t={cfg.t}"
