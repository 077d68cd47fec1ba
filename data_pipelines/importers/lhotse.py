"""Lhotse's cuts, read directly: JSON lines of MonoCut, plain or gzipped; a row a supervision.

SOURCE is such a file or a folder of them: NAME_cuts_SPLIT.jsonl.gz and cuts_SPLIT.jsonl are the
split SPLIT. Where a supervision starts counts from its cut, and the cut from its recording.
"""

from collections.abc import Iterator
import gzip
import re
from typing import Any
import zlib

from etils import epath

from data_pipelines.corpora.manifest import locate_audio
from data_pipelines.corpora.utterance import AudioReference
from data_pipelines.importers.manifest_row import (
    ImportOptions,
    ManifestRow,
    find_audio_folder,
    make_row,
    parse_json_object,
    parse_seconds,
    parse_words,
    read_lines,
    select_splits,
)
from melllm_jax import files
from melllm_jax.errors import Fault, Mistake

_SUFFIX = re.compile(r"\.jsonl(\.gz)?$")
_NAME = re.compile(r"^(?:.*[_-])?cuts[_-](.+)$")
_SAMPLE = 1 / 16_000  # s: less than this is no difference


def read_splits(source: epath.Path, options: ImportOptions) -> dict[str, Iterator[ManifestRow]]:
    """Rows of every file of cuts."""
    listed = [source] if source.is_file() else files.list_folder(source)
    held = [path for path in listed if _SUFFIX.search(path.name)]
    found = {_split_name(path): path for path in held if "cuts" in path.name or path == source}
    if not found:
        raise Mistake(f"source={source}: has no cuts: *cuts*.jsonl or *cuts*.jsonl.gz")
    return {name: _rows(found[name], options) for name in select_splits(found, options, source)}


def _rows(path: epath.Path, options: ImportOptions) -> Iterator[ManifestRow]:
    base: epath.Path | None = None
    for count, line in _gzip_lines(path) if path.name.endswith(".gz") else read_lines(path):
        where = f"{path}:{count}"
        cut = parse_json_object(line, where)
        name = _recording_file(cut, where)
        if not (absolute := name.startswith("/") or "://" in name) and base is None:
            tried = [epath.Path().absolute(), path.parent, path.parent.parent]
            base = find_audio_folder(tried, name, options, where)
        location = locate_audio(name, path.parent if absolute or base is None else base)
        yield from _supervision_rows(cut, location, f"{path.stem.partition('.')[0]}-{count}", where)


def _supervision_rows(
    cut: dict[str, Any], location: epath.Path | AudioReference, made: str, where: str
) -> Iterator[ManifestRow]:
    """A row a supervision; `made` is an id of the cut that no other line has."""
    begin = parse_seconds(cut.get("start"), "start", where) or 0.0
    whole = parse_seconds(cut["recording"].get("duration"), "recording.duration", where)
    own = parse_words(cut.get("id"), "id", where) or made
    # What has no supervision becomes a row without text.
    held = _objects(cut, "supervisions", where) or [{"id": own, "duration": cut.get("duration")}]
    for number, supervision in enumerate(held):
        words = {
            name: parse_words(supervision.get(name), f"supervision.{name}", where)
            for name in ("id", "text", "speaker", "language")
        }
        ahead = supervision.get("start") or 0.0  # of its cut, where it reaches over its edge
        if not isinstance(ahead, int | float):
            raise Mistake(f"{where}: supervision.start={ahead!r}: must be seconds")
        offset = begin + ahead
        seconds = parse_seconds(supervision.get("duration"), "supervision.duration", where) or 0.0
        if offset < -_SAMPLE:
            raise Mistake(f"{where}: a supervision starts {-offset:g} s before its recording")
        full = offset < _SAMPLE and whole is not None and abs(whole - seconds) < _SAMPLE
        yield make_row(
            words["id"] or own,
            words["text"],
            location,
            where=where,
            spare=f"{made}-{number}",  # windows of one recording share its supervisions
            seconds=seconds,
            offset=None if full else round(max(0.0, offset), 6),
            channel=_channel(cut, where),
            speaker=words["speaker"],
            language=words["language"],
        )


def _recording_file(cut: dict[str, Any], where: str) -> str:
    """The file of a cut's recording. Raises Mistake for what is no plain file."""
    name = cut.get("id")
    if (kind := cut.get("type", "MonoCut")) != "MonoCut":
        raise Mistake(f"{where}: cut {name} is a {kind}: only MonoCut can be read")
    recording = cut.get("recording")
    if not isinstance(recording, dict):
        raise Mistake(f"{where}: cut {name} has no recording")
    sources = _objects(recording, "sources", where)
    if len(sources) != 1 or sources[0].get("type") != "file":
        kinds = ", ".join(str(source.get("type")) for source in sources) or "nothing"
        raise Mistake(f"{where}: cut {name} comes from {kinds}: must be one source of type file")
    if not isinstance(sources[0].get("source"), str):
        raise Mistake(f"{where}: source={sources[0].get('source')!r}: must be a path")
    changes = recording.get("transforms") or []
    named = [c.get("name") if isinstance(c, dict) else c for c in _as_list(changes)]
    if set(map(str, named)) - {"Resample"}:
        changed = ", ".join(map(str, named))
        raise Mistake(f"{where}: cut {name} is changed by {changed}: only Resample can be")
    return str(sources[0]["source"])


def _channel(cut: dict[str, Any], where: str) -> int | None:
    """The channel of a cut in its file, from 0; None for a file of one channel.

    Raises Mistake where the cut does not say which of several it is.
    """
    channels, own = cut["recording"]["sources"][0].get("channels") or [0], cut.get("channel")
    if not isinstance(channels, list) or len(channels) == 1:
        return None
    if own not in channels:
        raise Mistake(f"{where}: channel={own!r}: must be one of the file's channels={channels}")
    return channels.index(own)


def _objects(tree: dict[str, Any], name: str, where: str) -> list[dict[str, Any]]:
    """The objects that a field lists. Raises Mistake where it holds something else."""
    held = tree.get(name) or []
    if not isinstance(held, list) or not all(isinstance(one, dict) for one in held):
        raise Mistake(f"{where}: {name}={repr(held)[:40]}: must be a list of objects")
    return held


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _gzip_lines(path: epath.Path) -> Iterator[tuple[int, str]]:
    try:
        with path.open("rb") as packed, gzip.open(packed, "rt", encoding="utf-8-sig") as file:
            for count, line in enumerate(file, 1):
                if line.strip():
                    yield count, line
    except (EOFError, gzip.BadGzipFile, zlib.error, UnicodeDecodeError) as error:
        raise Mistake(f"{path}: is no whole gzip of text: {error}") from error
    except FileNotFoundError as error:
        raise Mistake(f"{path}: is missing") from error
    except OSError as error:
        raise Fault(f"{path}: cannot be read: {error}") from error


def _split_name(path: epath.Path) -> str:
    stem = _SUFFIX.sub("", path.name)
    named = _NAME.match(stem)
    return named[1] if named else stem
