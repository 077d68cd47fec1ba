"""What importers share: a row of the manifest, the options, and files read line by line.

An importer is a function of (source, options) that returns, by split, an iterator over rows. Rows
are made one at a time: a corpus of 100,000 hours has 50 million. One bad file does not end an
import: where its header cannot be read the duration is 0, and preparing reports what is wrong with
it. Sound without text, and text that is null or NaN, becomes a row with an empty text, which
preparing rejects and counts. What macOS puts beside files is passed over.
"""

import codecs
from collections.abc import Iterator, Mapping, Sequence
import contextlib
import dataclasses
import math
import os
from typing import Any

from etils import epath

from data_pipelines.audio.file_io import read_duration
from data_pipelines.audio.sound import MAX_RATE, MIN_RATE
from data_pipelines.corpora import audio_reference
from data_pipelines.corpora.utterance import AudioReference
from data_pipelines.reject import Unusable
from melllm_jax import files
from melllm_jax.errors import Fault, Mistake
from melllm_jax.json_text import parse_json

ManifestRow = dict[str, Any]
SOUND_SUFFIXES = (".flac", ".wav", ".mp3", ".ogg", ".opus")
_INFINITE = (math.inf, -math.inf)
_LISTED_NAMES = 8  # names that a message lists


@dataclasses.dataclass(frozen=True)
class ImportOptions:
    """What to say about a corpus of another layout, which uses what it needs of it."""

    # those to import, all if none (Common Voice: train, dev, test); train=train_960 names one anew,
    # and several that get one name become one
    splits: tuple[str, ...] = ()
    audio: str = ""  # column or feature of the sound (parquet, tfds, spoken-qa); found if empty
    text: str = ""  # column, feature, JSON field or X.txt of the text; found by its name if empty
    id: str = ""  # column or feature of the id (parquet, nemo, tfds); found or made if empty
    rate: int | None = None  # Hz of samples in a column or feature that does not say it
    language: str = ""  # of utterances that do not say theirs
    name: str = ""  # of the corpus, as `source` in every line; that of its folder if empty
    root: str = ""  # folder of relative paths to audio (kaldi, lhotse, mmau, spoken-qa)

    def __post_init__(self) -> None:
        check_rate(self.rate)


def check_rate(rate: int | None) -> None:
    """Raises Mistake for Hz of samples that no sound may have."""
    if rate is not None and not MIN_RATE <= rate <= MAX_RATE:
        raise Mistake(f"rate={rate}: must be from {MIN_RATE} to {MAX_RATE} Hz")


def make_row(
    name: str,
    text: str,
    location: epath.Path | AudioReference,
    *,
    where: str,
    spare: str = "",
    seconds: float | None = None,
    offset: float | None = None,
    channel: int | None = None,
    speaker: str = "",
    language: str = "",
) -> ManifestRow:
    """A row of the manifest; `seconds` of None are read from the header of the sound.

    where: the line or place that the row comes from. spare: the id, of no other row, that it gets
    where another row has `name`; empty where the two are a mistake. Neither is written. Bytes of a
    name that are no UTF-8 are spelt as escapes.
    """
    if seconds is None:
        seconds = max(0.0, header_duration(location) - (offset or 0.0))
    if isinstance(location, AudioReference):
        place = {k: v for k, v in dataclasses.asdict(location).items() if v not in (None, "")}
        place["audio_filepath"] = place.pop("path")
    else:
        place = {"audio_filepath": os.fspath(location)}
    optional = {
        "offset": offset,
        "channel": channel,
        "speaker": speaker or None,
        "language": language or None,
    }
    return {
        "id": spell_out(name),
        **place,
        "text": text,
        "duration": round(seconds, 6),
        **optional,
        "where": where,
        "spare": spell_out(spare),
    }


def spell_out(name: str) -> str:
    """A name in which what has no UTF-8, as bytes of a file's name, is spelt as an escape."""
    return name.encode("utf-8", "backslashreplace").decode()


def header_duration(location: epath.Path | AudioReference) -> float:
    """Seconds of the sound as its header says, 0 where that cannot be read."""
    try:
        if isinstance(location, AudioReference) or "://" in os.fspath(location):
            return read_duration(
                audio_reference.read_audio_bytes(location),
                audio_reference.describe_location(location),
            )
        return read_duration(location)
    except Unusable:
        return 0.0


def read_lines(path: epath.Path) -> Iterator[tuple[int, str]]:
    """Line number, from 1, and text of every filled line. Raises Mistake for what is no UTF-8."""
    number = 0
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                text = line.removeprefix(codecs.BOM_UTF8).decode()
                if text.strip():
                    yield number, text.rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise Mistake(f"{path}:{number}: is no UTF-8: {error.reason}") from error
    except FileNotFoundError as error:
        raise Mistake(f"{path}: is missing") from error
    except OSError as error:
        raise Fault(f"{path}: cannot be read: {error}") from error


def parse_json_object(line: str, where: str) -> dict[str, Any]:
    """The fields of a JSON object. Raises Mistake that starts with `where`."""
    try:
        found = parse_json(line)
    except ValueError as error:
        raise Mistake(f"{where}: is no JSON: {error}") from error
    if not isinstance(found, dict):
        raise Mistake(f"{where}: {str(found)[:40]!r} is no object of fields")
    return found


def parse_words(value: object, name: str, where: str) -> str:
    """Text, a speaker, a language or an id from a file: a string, or a number as one.

    Empty for None and for NaN, which stands for what is missing in tables. Raises Mistake, which
    starts with `where`, for anything else, as a list.
    """
    if isinstance(value, str):
        return value
    if value is None or isinstance(value, float) and math.isnan(value):
        return ""
    if isinstance(value, bool) or not isinstance(value, int | float) or value in _INFINITE:
        raise Mistake(f"{where}: {name}={repr(value)[:40]}: must be a string")
    return str(int(value) if value == int(value) else value)  # tables hold 84 as 84.0


def parse_seconds(value: object, name: str, where: str) -> float | None:
    """Seconds from a file, None for None and NaN. Raises Mistake that starts with `where`."""
    if value is None or isinstance(value, float) and math.isnan(value):
        return None
    try:
        seconds = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise Mistake(f"{where}: {name}={value!r}: must be seconds from 0")
    return seconds


def absolute_path(path: epath.PathLike) -> epath.Path:
    """The absolute path; that of a bucket unchanged (`epath` would put it below this folder).

    Raises Mistake for a scheme that nothing reads.
    """
    location = epath.Path(files.resolve_uri(os.fspath(path)))
    return location if "://" in os.fspath(location) else location.expanduser().absolute()


def find_audio_folder(
    paths: Sequence[epath.Path], first: str, options: ImportOptions, where: str
) -> epath.Path:
    """The folder of relative paths to audio: options.root, or the first of `paths` with `first`."""
    if options.root:
        return absolute_path(options.root)
    for path in paths:
        with contextlib.suppress(OSError, ValueError):  # no name of a file
            if (path / first).exists():
                return path
    tried = ", ".join(os.fspath(path) for path in paths)
    raise Mistake(f"{where}: {first} is in none of {tried}: name its folder by --root")


def find_files(folder: epath.Path, endings: tuple[str, ...]) -> list[epath.Path]:
    """Files at any depth whose names end in one of `endings`, in order of their paths."""
    held = files.list_folder(folder)
    parts = (find_files(path, endings) if path.is_dir() else [path] for path in held)
    return [path for part in parts for path in part if path.name.endswith(endings)]


def select_splits(found: Mapping[str, Any], options: ImportOptions, source: object) -> list[str]:
    """The splits to import, in order of their names. Raises Mistake for one not in `found`."""
    for split in options.splits:
        if split not in found:
            raise Mistake(f"splits={split}: {source} has {join_names(found)}")
    return sorted(options.splits or found)


def join_names(names: Mapping[str, Any] | Sequence[str]) -> str:
    """Names for a message, the first few of many."""
    shown = sorted(names)
    more = f" and {len(shown) - _LISTED_NAMES} more" if len(shown) > _LISTED_NAMES else ""
    return ", ".join(shown[:_LISTED_NAMES]) + more
