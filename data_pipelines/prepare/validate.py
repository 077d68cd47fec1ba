"""Turns one utterance into the records to be stored, or into a reject with a reason.

A pure function: the same utterance gives the same bytes on any machine with the same codecs. Text
is stored unchanged; a tokenizer only adds its ids.
"""

from collections.abc import Iterator
import dataclasses
import hashlib
import math
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
from melllm_jax.config.features import Mel
from melllm_jax.errors import Mistake
from melllm_jax.features.mel_filters import SAMPLE_RATE, mel_rate

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


@dataclasses.dataclass(frozen=True)
class PreparedRecord:
    """A record, and its statistics."""

    utterance: Utterance  # without its sound
    record: bytes  # empty where nothing is stored
    decibels: float  # dBFS
    moments: Moments  # of its mel before normalising
    digest: bytes  # of 16 bits a sample at 16 kHz, and the text: 16 bytes


def make_records(
    utterance: Utterance, record_config: RecordConfig, tokenizer: Tokenizer | None = None
) -> Iterator[PreparedRecord | Reject[str]]:
    """The records and rejects of one utterance: a single one unless it is cut at its pauses."""
    limits, name = record_config.limits, utterance.id
    try:
        if utterance.flaw:
            raise Unusable(MALFORMED, utterance.flaw)
        tokens = _tokens(utterance, limits, tokenizer)
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


def _make_record(
    utterance: Utterance, sound: Sound, record_config: RecordConfig, whole: bool
) -> PreparedRecord:
    limits, name, mel = record_config.limits, utterance.id, record_config.mel
    wave, heard = sound.at(SAMPLE_RATE).wave, sound.at(mel_rate(mel, sound.rate))
    level = loudness.decibels(wave)
    if utterance.duration < limits.shortest:
        raise Unusable("too short", f"{name}: lasts {utterance.duration:.3f} s")
    if level < limits.silence:
        raise Unusable("silent", f"{name}: has {level:.1f} dBFS, silence={limits.silence:g}")
    letters, most = len(utterance.text), limits.fastest * (utterance.duration + 1)
    if letters > most:
        spoken = f"{letters} characters in {utterance.duration:.2f} s"
        raise Unusable("text too long for its audio", f"{name}: {spoken}")
    try:
        frame_count(heard.wave.size, mel, heard.rate)
    except Mistake as error:
        raise Unusable("too short", f"{name}: {error}") from error
    raw = extract_log_mel(heard.wave, mel, heard.rate)
    moments = Moments.from_frames(raw)
    stored = dataclasses.replace(utterance, offset=None, channel=None, audio=None)
    samples = to_int16(wave).astype("<i2", copy=False)
    text = hashlib.sha256(utterance.text.encode()).digest()
    digest = hashlib.sha256(text + samples.tobytes()).digest()[:16]
    record = b""
    if record_config.store == "mel":
        record = encode_record(dataclasses.replace(stored, mel=normalize_mel(raw, mel)))
    elif record_config.store == "original" and whole and utterance.offset is None:
        audio, channel = _original_audio(utterance), utterance.channel
        record = encode_record(dataclasses.replace(stored, audio=audio, channel=channel))
    elif record_config.store != "nothing":  # a part of an original file becomes FLAC
        encode = to_opus if record_config.store == "opus" else to_flac
        audio = encode(heard.wave, heard.rate)
        record = encode_record(dataclasses.replace(stored, audio=audio))
    return PreparedRecord(stored, record, level, moments, digest)


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
    if not utterance.text.strip():
        if limits.untranscribed == "refuse":
            raise unusable_text(EMPTY_TRANSCRIPT, repr(utterance.text))
        return None
    return None if tokenizer is None else tuple(tokenizer.encode(utterance.text))


def _cuts(utterance: Utterance, sound: Sound, limits: Limits) -> tuple[slice, ...]:
    """The slices of the sound's samples that become records."""
    seconds, said = sound.seconds, utterance.duration
    if said and abs(seconds - said) > limits.tolerance:
        detail = f"lasts {seconds:.2f} s, the manifest says {said:.2f} s"
        raise Unusable("wrong duration", f"{utterance.id}: {detail}")
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
