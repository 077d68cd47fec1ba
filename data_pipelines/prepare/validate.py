"""Turns one utterance into the records to be stored, or into a reject with a reason.

A pure function: the same utterance gives the same bytes on any machine with the same codecs. Text
is stored unchanged; a tokenizer only adds its ids.
"""

from collections.abc import Iterator
import dataclasses
import functools
import hashlib
import json
import math
import operator
from typing import Literal

from data_pipelines.audio import loudness, pauses
from data_pipelines.audio.file_io import to_flac, to_int16, to_opus
from data_pipelines.audio.log_mel import Moments, extract_log_mel, frame_count, normalize_mel
from data_pipelines.audio.sound import Sound
from data_pipelines.corpora import audio_reference
from data_pipelines.corpora.corpus import load_utterance_sound
from data_pipelines.corpora.utterance import Utterance, encode_record
from data_pipelines.reject import MALFORMED, Reject, Unusable
from data_pipelines.text.tokenizer import (
    EMPTY_TRANSCRIPT,
    UNKNOWN_CHARACTERS,
    Tokenizer,
    unusable_text,
)
from data_pipelines.text.turns import CLIP
from melllm_jax.config.features import Mel
from melllm_jax.errors import Mistake
from melllm_jax.features.mel_filters import SAMPLE_RATE, check_heard_rate, mel_rate

Store = Literal["flac", "opus", "original", "mel", "nothing"]


@dataclasses.dataclass(frozen=True)
class Limits:
    """Which utterances are rejected. The defaults reject only what no model can learn from."""

    shortest: float = 0.05  # seconds
    longest: float = 600.0  # seconds
    long: Literal["refuse", "split"] = "refuse"  # longer sound without text may be cut at pauses
    untranscribed: Literal["refuse", "keep"] = "refuse"  # utterances whose text is blank
    fastest: float = 40.0  # characters a second of sound, one second added: more is no speech
    silence: float = -70.0  # dBFS: an utterance quieter than that is silent
    tolerance: float = (
        0.5  # seconds of difference between the manifest's duration and the decoded one
    )
    duplicates: Literal["refuse", "keep"] = "refuse"  # equal sound and text, but for the first

    def __post_init__(self) -> None:
        for name in ("shortest", "longest", "fastest", "tolerance"):
            value = getattr(self, name)
            if not value > 0:
                raise Mistake(f"{name}={value}: must be positive")
        if self.shortest >= self.longest:
            raise Mistake(f"shortest={self.shortest}: must be below longest={self.longest}")
        if self.long == "split" and self.untranscribed == "refuse":
            rule = "cuts only what has no text: it needs untranscribed=keep"
            raise Mistake(f"long=split: {rule}")


@dataclasses.dataclass(frozen=True)
class RecordConfig:
    """How records are made and which utterances are rejected."""

    store: Store = "flac"  # nothing: only statistics are gathered
    mel: Mel = Mel()  # stored, or else only measured for the index
    limits: Limits = Limits()

    def __post_init__(self) -> None:
        check_heard_rate(self.mel)


@dataclasses.dataclass(frozen=True)
class PreparedRecord:
    """A record, and its statistics."""

    utterance: Utterance  # without its sound
    record: bytes  # empty where nothing is stored
    decibels: float  # dBFS; NaN of text alone
    moments: Moments  # of its mel before normalising
    digest: bytes  # of 16 bits a sample at 16 kHz, and the text or all turns: 16 bytes


def make_records(
    utterance: Utterance, record_config: RecordConfig, tokenizer: Tokenizer | None = None
) -> Iterator[PreparedRecord | Reject[str]]:
    """The records and rejects of one utterance: a single one unless it is cut at its pauses."""
    limits, name = record_config.limits, utterance.id
    try:
        if utterance.flaw:
            raise Unusable(MALFORMED, utterance.flaw)
        tokens = _tokens(utterance, limits, tokenizer)
        if utterance.turns:
            yield _make_task_record(utterance, record_config)
            return
        _check_longest(utterance, utterance.duration, limits)
        sound = load_utterance_sound(utterance)
        cuts = _cuts(utterance, sound, limits)
    except Unusable as error:
        yield Reject(utterance.source, name, error.reason, str(error))
        return
    for index, cut in enumerate(cuts):
        piece = name if len(cuts) == 1 else f"{name}.{index:03d}"
        held = Sound(sound.wave[cut], sound.rate)
        one = dataclasses.replace(utterance, id=piece, duration=held.seconds, tokens=tokens)
        try:
            yield _make_record(one, held, record_config, whole=len(cuts) == 1)
        except Unusable as error:
            yield Reject(utterance.source, piece, error.reason, str(error))


def reject_crashed(utterance: Utterance, how: str) -> Reject[str]:
    """The reject of an utterance whose decoder crashes or hangs; `how` says which."""
    return Reject(utterance.source, utterance.id, "undecodable", f"{utterance.id}: {how}")


@dataclasses.dataclass(frozen=True)
class _StoredClip:
    """A clip as it is stored, without path or offset, and what is measured of it."""

    clip: Utterance
    decibels: float
    moments: Moments
    samples: bytes  # 16 bits at 16 kHz


def _make_record(
    utterance: Utterance, sound: Sound, record_config: RecordConfig, whole: bool
) -> PreparedRecord:
    limits = record_config.limits
    stored = _store_clip(utterance, sound, record_config, whole)
    letters, most = len(utterance.text), limits.fastest * (utterance.duration + 1)
    if letters > most:
        spoken = f"{letters} characters in {utterance.duration:.2f} s"
        raise Unusable("text too long for its audio", f"{utterance.id}: {spoken}")
    text = hashlib.sha256(utterance.text.encode()).digest()
    digest = hashlib.sha256(text + stored.samples).digest()[:16]
    return _prepared(stored.clip, record_config, stored.decibels, stored.moments, digest)


def _make_task_record(utterance: Utterance, record_config: RecordConfig) -> PreparedRecord:
    """The record of a task: of each clip what is stored of an utterance, in text alone none."""
    stored = list[_StoredClip]()
    for clip in utterance.clips:
        _check_longest(clip, clip.duration, record_config.limits)
        sound = load_utterance_sound(clip)
        _check_duration(clip, sound, record_config.limits)
        _check_longest(clip, sound.seconds, record_config.limits)
        timed = dataclasses.replace(clip, duration=sound.seconds)
        stored.append(_store_clip(timed, sound, record_config, whole=True))
    first = stored[0].clip if stored else utterance
    task = dataclasses.replace(first, more=tuple(one.clip for one in stored[1:]))
    asked = json.dumps([[turn.role, turn.parts] for turn in task.turns]).encode()
    sounds = b"".join(hashlib.sha256(one.samples).digest() for one in stored)
    digest = hashlib.sha256(hashlib.sha256(asked).digest() + sounds).digest()[:16]
    loudest = max((one.decibels for one in stored), default=math.nan)
    moments = functools.reduce(operator.add, (one.moments for one in stored), Moments())
    return _prepared(task, record_config, loudest, moments, digest)


def _prepared(
    stored: Utterance, record_config: RecordConfig, level: float, moments: Moments, digest: bytes
) -> PreparedRecord:
    """The record of a stored utterance, and the utterance without its sound."""
    record = b"" if record_config.store == "nothing" else encode_record(stored)
    more = tuple(dataclasses.replace(clip, audio=None, mel=None) for clip in stored.more)
    bare = dataclasses.replace(stored, audio=None, mel=None, channel=None, more=more)
    return PreparedRecord(bare, record, level, moments, digest)


def _store_clip(
    utterance: Utterance, sound: Sound, record_config: RecordConfig, whole: bool
) -> _StoredClip:
    """The utterance with its sound as `record_config` stores it. Raises Unusable for its sound."""
    limits, name, mel = record_config.limits, utterance.id, record_config.mel
    wave, heard = sound.at(SAMPLE_RATE).wave, sound.at(mel_rate(mel, sound.rate))
    level = loudness.decibels(wave)
    if utterance.duration < limits.shortest:
        raise Unusable("too short", f"{name}: lasts {utterance.duration:.3f} s")
    if level < limits.silence:
        raise Unusable("silent", f"{name}: has {level:.1f} dBFS, silence={limits.silence:g}")
    try:
        frame_count(heard.wave.size, mel, heard.rate)
    except Mistake as error:
        raise Unusable("too short", f"{name}: {error}") from error
    raw = extract_log_mel(heard.wave, mel, heard.rate)
    moments = Moments.from_frames(raw)  # before `raw` itself is normalised
    stored = dataclasses.replace(utterance, offset=None, channel=None, audio=None)
    if record_config.store == "mel":
        stored = dataclasses.replace(stored, mel=normalize_mel(raw, mel))
    elif record_config.store == "original" and whole and utterance.offset is None:
        audio, channel = _original_audio(utterance), utterance.channel
        stored = dataclasses.replace(stored, audio=audio, channel=channel)
    elif record_config.store != "nothing":  # a part of an original file becomes FLAC
        encode = to_opus if record_config.store == "opus" else to_flac
        stored = dataclasses.replace(stored, audio=encode(heard.wave, heard.rate))
    samples = to_int16(wave).astype("<i2", copy=False).tobytes()
    return _StoredClip(stored, level, moments, samples)


def _original_audio(utterance: Utterance) -> bytes:
    audio = utterance.audio
    assert audio is not None, "its sound was decoded"
    return audio if isinstance(audio, bytes) else audio_reference.read_audio_bytes(audio)


def _tokens(
    utterance: Utterance, limits: Limits, tokenizer: Tokenizer | None
) -> tuple[int, ...] | None:
    for field in ("id", "text", "speaker", "language", "source"):
        try:
            getattr(utterance, field).encode()
        except UnicodeEncodeError as error:  # half of a surrogate pair, which JSON can spell
            raise unusable_text(UNKNOWN_CHARACTERS, f"{field}: {error.reason}") from error
    if utterance.turns:
        _check_words(utterance)
        return None  # a template decides what stands around its words
    if not utterance.text.strip():
        if limits.untranscribed == "refuse":
            raise unusable_text(EMPTY_TRANSCRIPT, repr(utterance.text))
        return None
    return None if tokenizer is None else tuple(tokenizer.encode(utterance.text))


def _check_words(utterance: Utterance) -> None:
    """Raises Unusable for words of a task that are no valid Unicode."""
    said = [part for turn in utterance.turns for part in turn.parts if part is not CLIP]
    for text in (*said, *utterance.answers, *utterance.options, utterance.task):
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise unusable_text(UNKNOWN_CHARACTERS, f"{utterance.id}: {error.reason}") from error


def _check_duration(utterance: Utterance, sound: Sound, limits: Limits) -> None:
    seconds, said = sound.seconds, utterance.duration
    if said and abs(seconds - said) > limits.tolerance:
        detail = f"lasts {seconds:.2f} s, the manifest says {said:.2f} s"
        raise Unusable("wrong duration", f"{utterance.id}: {detail}")


def _cuts(utterance: Utterance, sound: Sound, limits: Limits) -> tuple[slice, ...]:
    """The slices of the sound's samples that become records."""
    seconds = sound.seconds
    _check_duration(utterance, sound, limits)
    if seconds <= limits.longest:
        return (slice(0, sound.wave.size),)
    _check_longest(utterance, seconds, limits)
    cuts = pauses.split_at_pauses(sound.at(SAMPLE_RATE).wave, limits.longest)
    if not cuts:
        detail = f"lasts {seconds:.2f} s and has no pause to cut it at"
        raise Unusable(_too_long_reason(limits), f"{utterance.id}: {detail}")
    each = SAMPLE_RATE // sound.rate
    starts = [cut.start // each for cut in cuts]
    return tuple(map(slice, starts, [*starts[1:], sound.wave.size]))


def _check_longest(utterance: Utterance, seconds: float, limits: Limits) -> None:
    """Raises Unusable for sound too long that may not be cut: text could not be cut with it."""
    cut = limits.long == "split" and not utterance.text.strip() and math.isfinite(seconds)
    if seconds > limits.longest and not cut:
        raise Unusable(_too_long_reason(limits), f"{utterance.id}: lasts {seconds:.2f} s")


def _too_long_reason(limits: Limits) -> str:
    return f"longer than {limits.longest:g} s"
