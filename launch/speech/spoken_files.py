"""Texts spoken into sound files, one after another; what is finished stays finished."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
import dataclasses
import hashlib
import json
import pathlib
import re
import time
from typing import Any

from etils import epath
from jaxtyping import Float32
import numpy as np

from data_pipelines.audio.file_io import to_wav
from data_pipelines.audio.sound import Sound
from launch.runtime import folder_claim
from launch.runtime.folder_claim import FolderClaim
from launch.speech.speaking_model import Reply, SpeakingModel, SpokenMel
from launch.speech.vocoder_choice import SoundMaker
from melllm_jax import files
from melllm_jax.errors import Fault, Mistake
from melllm_jax.json_text import parse_json, read_object

MANIFEST, SETTINGS, RECORDINGS = "spoken.jsonl", "speak.json", "recordings"
_PLAIN = re.compile(r"[^\w.-]+")  # what a file's name has none of


@dataclasses.dataclass(frozen=True)
class SpeechRequest:
    """A text to be spoken, by its name, and what it is to be held against."""

    id: str
    text: str
    recording: Callable[[], Sound] | None = None  # of the same text, to be laid beside it
    voice: str = ""  # path of the sound that it is to sound like


@dataclasses.dataclass(frozen=True)
class SpokenSound:
    """A text as sound."""

    spoken: SpokenMel
    wave: Float32[np.ndarray, " w"]
    rate: int  # Hz
    seconds: float  # to make it: mel and sound
    first: float  # seconds until the first of it was there

    @property
    def duration(self) -> float:
        """Seconds that it lasts."""
        return len(self.wave) / self.rate

    @property
    def figures(self) -> dict[str, Any]:
        """What a user is told of it, as JSON."""
        duration = self.duration
        return {
            "duration": round(duration, 3),
            "seconds": round(self.seconds, 3),
            "first_sound_seconds": round(self.first, 3),
            "rtf": round(self.seconds / duration, 3) if duration else None,
            "flags": self.spoken.flags,
        }


def speak(
    model: SpeakingModel,
    vocoder: SoundMaker,
    texts: Sequence[str | Reply],
    *,
    batch: int,
    seed: int,
) -> Iterator[SpokenSound]:
    """Each text as sound, in their order. Raises Mistake as `SpeakingModel.say` does."""
    for spoken in model.say(texts, batch=batch, seed=seed):
        began = time.perf_counter()
        wave = vocoder(spoken.mel) if len(spoken.mel) else np.zeros(0, np.float32)
        took = time.perf_counter() - began
        seconds = spoken.seconds + took
        yield SpokenSound(spoken, wave, vocoder.rate, seconds, first=seconds)


def write_sound(path: pathlib.Path, sound: SpokenSound) -> None:
    """Writes a WAV file whole or not at all. Raises Fault where it cannot be written."""
    files.write_bytes(path, to_wav(sound.wave, sound.rate))


def speak_folder(
    requests: Sequence[SpeechRequest],
    folder: pathlib.Path,
    settings: Mapping[str, Any],
    make: Callable[[Sequence[str]], Iterator[SpokenSound]],
    progress: Callable[[int], None] = lambda count: None,
) -> list[dict[str, Any]]:
    """Speaks requests into ID.wav of a folder, and gives the lines of its manifest, spoken.jsonl.

    What a run before, by the same `settings`, has finished is not made again. `progress` is told
    how many are done. Raises Mistake for an id that comes twice, for a folder of other settings and
    for one in which another process speaks, Fault where a file cannot be written; files that are
    finished stay.
    """
    names = _file_names(requests)
    _check_settings(folder, settings)
    with FolderClaim(str(folder)):
        _write_settings(folder, settings)
        return _speak_missing(requests, folder, names, make, progress)


def _speak_missing(
    requests: Sequence[SpeechRequest],
    folder: pathlib.Path,
    names: Mapping[str, str],
    make: Callable[[Sequence[str]], Iterator[SpokenSound]],
    progress: Callable[[int], None],
) -> list[dict[str, Any]]:
    """Speaks what the folder lacks, a line of the manifest as soon as each is there."""
    manifest = folder / MANIFEST
    done = _finished(manifest, requests, names)
    _write_lines(manifest, done.values())  # without a line that a kill tore
    waiting = [request for request in requests if request.id not in done]
    progress(len(done))
    for request, sound in zip(waiting, make([x.text for x in waiting]), strict=True):
        name = names[request.id]
        write_sound(folder / name, sound)
        line = {"id": request.id, "text": request.text, "audio_filepath": name} | sound.figures
        if request.recording is not None:
            (folder / RECORDINGS).mkdir(exist_ok=True)
            own = request.recording()
            files.write_bytes(folder / RECORDINGS / name, to_wav(own.wave, own.rate))
            line["reference"] = f"{RECORDINGS}/{name}"
        if request.voice:
            line["voice"] = str(pathlib.Path(request.voice).resolve())
        _append_line(manifest, line)
        done[request.id] = line
        progress(len(done))
    lines = [done[request.id] for request in requests]
    _write_lines(manifest, lines)
    return lines


def _file_names(requests: Sequence[SpeechRequest]) -> dict[str, str]:
    names: dict[str, str] = {}
    for request in requests:
        if request.id in names:
            raise Mistake(f"id={request.id!r}: comes twice")
        plain = _PLAIN.sub("_", request.id)[:80]
        if plain != request.id:  # two ids must not share a file
            plain = f"{plain}-{hashlib.sha256(request.id.encode()).hexdigest()[:8]}"
        names[request.id] = f"{plain}.wav"
    return names


def _check_settings(folder: pathlib.Path, settings: Mapping[str, Any]) -> None:
    """Raises Mistake where the folder holds speech of other settings, or anything else."""
    path = folder / SETTINGS
    if path.exists():
        before = read_object(path)
        changed = [x for x in {**before, **settings} if before.get(x) != settings.get(x)]
        if changed:
            name = changed[0]
            raise Mistake(
                f"out={folder}: holds speech of {name}={before.get(name)!r}, not "
                f"{settings.get(name)!r}: give another folder"
            )
    elif folder.exists() and (not folder.is_dir() or _strangers(folder)):
        raise Mistake(f"out={folder}: is no folder of speech, and not empty: give another")


def _strangers(folder: pathlib.Path) -> bool:
    """Whether there is more in a folder than the claim of who spoke there."""
    return any(path.name != folder_claim.FOLDER for path in folder.iterdir())


def _write_settings(folder: pathlib.Path, settings: Mapping[str, Any]) -> None:
    if not (folder / SETTINGS).exists():
        files.write_text(folder / SETTINGS, json.dumps(settings, indent=1) + "\n")


def _finished(
    manifest: pathlib.Path, requests: Sequence[SpeechRequest], names: Mapping[str, str]
) -> dict[str, dict[str, Any]]:
    """The lines of an earlier manifest whose text is the same and whose file is there."""
    if not manifest.exists():
        return {}
    texts = {request.id: request.text for request in requests}
    found = {}
    for line in manifest.read_bytes().splitlines():
        try:
            row = parse_json(line)
            name, text = row["id"], row["text"]
        except (ValueError, TypeError, KeyError):
            continue  # torn
        if texts.get(name) == text and (manifest.parent / names[name]).exists():
            found[name] = row
    return found


def _append_line(manifest: pathlib.Path, line: Mapping[str, Any]) -> None:
    try:
        with open(manifest, "ab") as file:
            file.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
    except OSError as error:
        raise Fault(f"{manifest}: cannot be written: {error.strerror}") from error


def _write_lines(manifest: pathlib.Path, lines: Iterable[Mapping[str, Any]]) -> None:
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    files.write_text(epath.Path(manifest), text)
