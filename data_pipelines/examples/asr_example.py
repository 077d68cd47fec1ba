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
from numpy.typing import DTypeLike

from data_pipelines.audio.file_io import AudioReason
from data_pipelines.audio.log_mel import frame_count, normalized_log_mel
from data_pipelines.audio.sound import Sound
from data_pipelines.audio.spec_augment import RandomStreams, augment_mel
from data_pipelines.corpora.corpus import load_utterance_sound
from data_pipelines.corpora.utterance import ASR, Utterance
from data_pipelines.examples.interleave import (
    asr_columns,
    asr_prompt_columns,
    fill_turns,
    interleave,
)
from data_pipelines.examples.wave_augment import BAD_NOISE, BAD_ROOM, NO_EFFECTS, Effects
from data_pipelines.reject import MALFORMED, Reject, Unusable
from data_pipelines.text.prompt import asr_prompt
from data_pipelines.text.tokenizer import EMPTY_TRANSCRIPT, UNKNOWN_CHARACTERS, Tokenizer
from data_pipelines.text.turn_prompt import UNSAYABLE, turn_ids
from melllm_jax.config.data import Data
from melllm_jax.config.features import Mel
from melllm_jax.config.run import Run
from melllm_jax.errors import Mistake
from melllm_jax.features.mel_filters import check_heard_rate, mel_rate

TRANSFER_DTYPES = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(ml_dtypes.bfloat16)}
TOO_SHORT = "too short"  # for a frame


@dataclasses.dataclass(frozen=True)
class EvalExample:
    """One utterance to answer: the prompt that decoding starts from, and the reference."""

    id: str
    reference: str
    duration: float  # seconds of all its clips
    columns: dict[str, np.ndarray]  # of `interleave`, up to where the transcript or answer starts
    task: str = ASR  # under which it is scored
    metric: str = "wer"  # by which
    answers: tuple[str, ...] = ()  # that are right, in a task
    options: tuple[str, ...] = ()  # to choose from
    choices: tuple[tuple[int, ...], ...] = ()  # ids of each option and the end token


def reject_reasons(cfg: Data) -> tuple[str, ...]:
    """Every reason that `ExampleMaker` gives under `cfg`."""
    audio = (
        *typing.get_args(AudioReason),
        TOO_SHORT,
        _too_long_reason(cfg.longest),
        BAD_NOISE,
        BAD_ROOM,
    )
    text = (MALFORMED, EMPTY_TRANSCRIPT, UNKNOWN_CHARACTERS, UNSAYABLE)
    return (*audio, *text, too_wide_reason(cfg))


Wave = Float32[np.ndarray, "_"]
Change = Callable[[Wave], Wave]  # of samples at 16 kHz


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
        check_heard_rate(run.mel)
        self._run, self._tokenizer, self._effects, self._ready = run, tokenizer, effects, ready
        self._prompt = asr_prompt(tokenizer, run.text)

    def train(
        self, drawn: tuple[int, Utterance], rng: np.random.Generator
    ) -> dict[str, np.ndarray] | Reject[int]:
        """Columns [t ...] of (index of its corpus, utterance), augmented with `rng`.

        They are those of `interleave` and `sources`; patches have the transfer dtype.
        """
        source, utterance = drawn
        data = self._run.data
        try:
            mels = self.augmented_mels(utterance, rng)
            if utterance.turns:
                columns = self._turn_columns(utterance, mels, TRANSFER_DTYPES[data.wire])
            else:
                ids: Sequence[int] | None = utterance.tokens if source in self._ready else None
                if ids is None:
                    ids = self._tokenizer.encode(utterance.text)
                r, dtype = self._run.mel.r, TRANSFER_DTYPES[data.wire]
                columns = asr_columns(mels[0], ids, self._prompt, r=r, dtype=dtype)
            t = len(columns["tokens"])
            if t > data.t:
                raise Unusable(too_wide_reason(data), f"{utterance.id}: takes t={t} positions")
        except Unusable as error:
            return Reject(source, utterance.id, error.reason, str(error))
        columns["sources"] = np.full(t, source, np.int32)
        return columns

    def augmented_mels(
        self, utterance: Utterance, rng: np.random.Generator
    ) -> list[Float[np.ndarray, "_ m"]]:
        """The mel of each clip that is heard, augmented with `rng`. Raises Unusable."""
        data, draws = self._run.data, RandomStreams(rng)
        change = lambda wave: self._effects(wave, draws)
        mels = self._mels(utterance, longest=data.longest, change=change)
        return [augment_mel(mel, data.augment, draws) for mel in mels]

    def eval_example(self, utterance: Utterance) -> EvalExample | Reject[int]:
        """The prompt of an utterance of any length, and its reference unchanged.

        Of several turns the last is asked, after the right answers of those before.
        """
        try:
            mels = self._mels(utterance, longest=math.inf)
            if utterance.turns:
                columns = self._turn_columns(utterance, mels, np.float32, answered=False)
            else:
                columns = asr_prompt_columns(mels[0], self._prompt, r=self._run.mel.r)
            encode, end = self._tokenizer.encode, self._prompt.end
            choices = tuple((*encode(option), end) for option in utterance.options)
        except Unusable as error:
            return Reject(0, utterance.id, error.reason, str(error))
        return EvalExample(
            utterance.id,
            utterance.text,
            sum((clip.duration for clip in utterance.heard), 0.0),
            columns,
            utterance.task or ASR,
            utterance.metric or "wer",
            utterance.answers,
            utterance.options,
            choices,
        )

    def _mels(
        self, utterance: Utterance, *, longest: float, change: Change = lambda wave: wave
    ) -> list[Float[np.ndarray, "_ m"]]:
        """The mel of each clip that is heard. Raises Unusable as `load_mel` does."""
        if utterance.flaw:
            raise Unusable(MALFORMED, utterance.flaw)
        return [
            load_mel(clip, self._run.mel, longest=longest, change=change)
            for clip in utterance.heard
        ]

    def _turn_columns(
        self,
        utterance: Utterance,
        mels: Sequence[Float[np.ndarray, "_ m"]],
        dtype: DTypeLike,
        *,
        answered: bool = True,
    ) -> dict[str, np.ndarray]:
        """The columns of a task, with or without its last answer."""
        turns, cfg = utterance.turns, self._run.text
        parts = fill_turns(turn_ids(self._tokenizer, cfg, turns, answered=answered), mels)
        mel = self._run.mel
        return interleave(parts, r=mel.r, m=mel.m, audio=self._prompt.audio, dtype=dtype)


def load_mel(
    utterance: Utterance, cfg: Mel, *, longest: float, change: Change = lambda w: w
) -> Float[np.ndarray, "frames m"]:
    """The mel of an utterance: stored in it in bfloat16, or computed from its sound after `change`.

    `change` takes and gives samples at 16 kHz. Audio that lasts more than `longest` seconds by its
    manifest is not opened; how long it lasts after `change` does not matter here. Raises Unusable,
    also for its length.
    """
    check_longest(utterance.id, utterance.duration, longest)
    if utterance.mel is not None:
        if not len(utterance.mel):
            raise Unusable(TOO_SHORT, f"{utterance.id}: its ready mel has 0 frames")
        return utterance.mel
    sound = load_utterance_sound(utterance)
    check_longest(utterance.id, sound.seconds, longest)
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


def check_longest(name: str, seconds: float, longest: float) -> None:
    """Raises Unusable for a sound of more than `longest` seconds."""
    if seconds > longest:
        raise Unusable(_too_long_reason(longest), f"{name}: lasts {seconds:.2f} s")


def _too_long_reason(longest: float) -> str:
    return f"longer than {longest:g} s"


def too_wide_reason(cfg: Data) -> str:
    """The reason that an example is counted under which is longer than a row."""
    return f"longer than the row of t={cfg.t}"
