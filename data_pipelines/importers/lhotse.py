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

from data_pipelines.importers.manifest_row import (
    ImportOptions,
    ManifestRow,
    find_audio_folder,
    make_row,
    parse_json_object,
    parse_seconds,
    read_lines,
    select_splits,
)
from melllm_jax.errors import Fault, Mistake

_SUFFIX = re.compile(r"\.jsonl(\.gz)?$")
_NAME = re.compile(r"^(?:.*[_-])?cuts[_-](.+)$")
_SAMPLE = 1 / 16_000  # s: less than this is no difference


def read_splits(source: epath.Path, options: ImportOptions) -> dict[str, Iterator[ManifestRow]]:
    """Rows of every file of cuts."""
    held = [source] if source.is_file() else sorted(source.iterdir())
    files = [path for path in held if _SUFFIX.search(path.name)]
    found = {_split_name(path): path for path in files if "cuts" in path.name or path == source}
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
        location = epath.Path(name) if absolute or base is None else base / name
        yield from _supervision_rows(cut, location, where)


def _supervision_rows(
    cut: dict[str, Any], location: epath.Path, where: str
) -> Iterator[ManifestRow]:
    begin = parse_seconds(cut.get("start"), "start", where) or 0.0
    whole = parse_seconds(cut["recording"].get("duration"), "recording.duration", where)
    # What has no supervision becomes a row without text.
    for supervision in cut.get("supervisions") or [
        {"id": cut.get("id"), "duration": cut.get("duration")}
    ]:
        ahead = supervision.get("start") or 0.0  # of its cut, where it reaches over its edge
        if not isinstance(ahead, int | float):
            raise Mistake(f"{where}: supervision.start={ahead!r}: must be seconds")
        offset = begin + ahead
        seconds = parse_seconds(supervision.get("duration"), "supervision.duration", where) or 0.0
        if offset < -_SAMPLE:
            raise Mistake(f"{where}: a supervision starts {-offset:g} s before its recording")
        full = offset < _SAMPLE and whole is not None and abs(whole - seconds) < _SAMPLE
        yield make_row(
            str(supervision.get("id") or cut.get("id")),
            supervision.get("text") or "",
            location,
            seconds=seconds,
            offset=None if full else round(max(0.0, offset), 6),
            speaker=supervision.get("speaker") or "",
            language=supervision.get("language") or "",
        )


def _recording_file(cut: dict[str, Any], where: str) -> str:
    """The file of a cut's recording. Raises Mistake for what is no plain file of one channel."""
    name = cut.get("id")
    if (kind := cut.get("type", "MonoCut")) != "MonoCut":
        raise Mistake(f"{where}: cut {name} is a {kind}: only MonoCut can be read")
    recording = cut.get("recording")
    if not isinstance(recording, dict):
        raise Mistake(f"{where}: cut {name} has no recording")
    sources = recording.get("sources") or []
    if len(sources) != 1 or sources[0].get("type") != "file":
        kinds = ", ".join(str(source.get("type")) for source in sources) or "nothing"
        raise Mistake(f"{where}: cut {name} comes from {kinds}: must be one source of type file")
    if len(channels := sources[0].get("channels") or [0]) > 1:
        raise Mistake(f"{where}: cut {name} is one of channels={channels}: write each to a file")
    changed = [str(change.get("name")) for change in recording.get("transforms") or []]
    if set(changed) - {"Resample"}:
        raise Mistake(
            f"{where}: cut {name} is changed by {', '.join(changed)}: only Resample can be"
        )
    return str(sources[0]["source"])


def _gzip_lines(path: epath.Path) -> Iterator[tuple[int, str]]:
    try:
        with path.open("rb") as packed, gzip.open(packed, "rt", encoding="utf-8") as file:
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
