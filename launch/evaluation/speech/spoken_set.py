"""What is scored: spoken files and what each was to say, of a manifest or of a corpus.

A line of a manifest is one of SPLIT.jsonl, in which `duration` may be missing, and may have
`reference`, the recording of the same sentence; `voice`, a sound of the voice that was to speak;
and `flags` of the generator, of which "stopped": false says that it did not end by itself.
"""

from collections.abc import Iterator, Mapping
import dataclasses
import functools
import hashlib
import json
import pathlib
from typing import Any

from etils import epath
from jaxtyping import Float32
import numpy as np

from data_pipelines.audio.sound import Sound
from data_pipelines.corpora import audio_reference
from data_pipelines.corpora.corpus import load_utterance_sound, open_corpus
from data_pipelines.corpora.manifest import locate_audio, parse_line
from data_pipelines.corpora.utterance import AudioReference, Utterance
from data_pipelines.reject import Unusable
from launch.evaluation.speech.failures import silent_share
from launch.terminal.text_input import read_text
from melllm_jax.errors import Mistake
from melllm_jax.features.mel_filters import SAMPLE_RATE
from melllm_jax.json_text import parse_json

Place = epath.Path | AudioReference
EMPTY = "empty"  # the reason of a file without a sample, which a generator may well write


@dataclasses.dataclass(frozen=True)
class SpokenFile:
    """A sound, what it was to say, and what it is held against."""

    utterance: Utterance
    where: str  # in the manifest
    reference: Place | None = None  # the recording of the same sentence
    voice: Place | None = None  # a sound of the voice that was to speak
    flags: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # as the generator says

    @property
    def stopped(self) -> bool | None:
        """Whether the generator says that it ended by itself; None where it says nothing."""
        return self.flags.get("stopped")

    def load(self) -> Sound:
        """Its sound at 16 kHz, which may hold no sample. Raises Mistake where it is none."""
        try:
            return load_utterance_sound(self.utterance).at(SAMPLE_RATE)
        except Unusable as error:
            if error.reason == EMPTY:
                return Sound(np.zeros(0, np.float32), SAMPLE_RATE)
            raise Mistake(f"{self.where}: {error}") from error


@dataclasses.dataclass(frozen=True)
class SoundFacts:
    """What is known of a sound once it was read."""

    digest: str  # of its samples at 16 kHz
    seconds: float
    silent: float  # share of frames below a level


def read_spoken(path: str, split: str = "test") -> list[SpokenFile]:
    """The spoken files of a manifest, or of a split of a corpus in a folder.

    Raises Mistake, naming the line, for a malformed one, one without text, an id that comes twice,
    a task and ready mel; and for none at all.
    """
    found = list(_of_corpus(path, split) if pathlib.Path(path).is_dir() else _of_manifest(path))
    if not found:
        raise Mistake(f"speech={path}: has 0 lines: needs one a spoken file")
    seen = set[str]()
    for one in found:
        said = one.utterance
        if said.turns or said.audio is None:
            what = "is a task" if said.turns else "holds ready mel"
            raise Mistake(f"{one.where}: {what}: must be the sound of a text")
        if not said.text.strip():
            raise Mistake(f"{one.where}: text={said.text!r}: must say what was to be spoken")
        if said.id in seen:
            raise Mistake(f"{one.where}: id {said.id!r} comes twice")
        seen.add(said.id)
    return found


@functools.lru_cache(maxsize=16)  # many files are held against one voice
def load_place(place: Place, where: str) -> Sound:
    """The sound at a place, at 16 kHz. Raises Mistake, which begins with `where`, for none."""
    try:
        return audio_reference.load_sound(place).at(SAMPLE_RATE)
    except Unusable as error:
        raise Mistake(f"{where}: {error}") from error


def read_facts(one: SpokenFile, silent_level: float) -> SoundFacts:
    """The facts of a spoken file; its frames below `silent_level` dBFS are silent.

    Raises Mistake where it, its recording or its voice is no sound.
    """
    for place in (one.reference, one.voice):
        if place is not None:
            load_place(place, one.where)
    sound = one.load()
    return SoundFacts(wave_digest(sound.wave), sound.seconds, silent_share(sound, silent_level))


def wave_digest(wave: Float32[np.ndarray, " w"]) -> str:
    """Hash of samples."""
    return hashlib.sha256(wave.tobytes()).hexdigest()


def _of_corpus(path: str, split: str) -> Iterator[SpokenFile]:
    corpus = open_corpus(path, split)
    for index in range(len(corpus)):
        utterance = corpus[index]
        if utterance.flaw:
            raise Mistake(utterance.flaw)
        yield SpokenFile(utterance, f"{path} ({split}) {utterance.id}")


def _of_manifest(path: str) -> Iterator[SpokenFile]:
    folder = epath.Path(path).parent
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if line.strip():
            yield _spoken_file(line, folder, f"{path} line {number}")


def _spoken_file(line: str, folder: epath.Path, where: str) -> SpokenFile:
    try:
        row = parse_json(line)
    except json.JSONDecodeError as error:
        raise Mistake(f"{where}: is no JSON: {error}") from error
    if isinstance(row, dict):
        line = json.dumps({"duration": 0.0} | row)
    utterance = parse_line(line.encode(), folder, where)
    if utterance.flaw:
        raise Mistake(utterance.flaw)
    places = dict[str, Place]()
    for name in ("reference", "voice"):
        given = row.get(name)
        if given is not None:
            if not isinstance(given, str) or not given:
                raise Mistake(f"{where}: {name}={given!r}: must be the path of a sound")
            places[name] = locate_audio(given, folder)
    flags = row.get("flags") or {}
    if not isinstance(flags, dict) or not isinstance(flags.get("stopped"), bool | None):
        raise Mistake(f"{where}: flags={flags!r}: must be an object, stopped in it true or false")
    return SpokenFile(utterance, where, flags=flags, **places)
