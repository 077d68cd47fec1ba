"""LibriSpeech's tree: ROOT/SUBSET/SPEAKER/CHAPTER/S-C.trans.txt beside S-C-NNNN.flac (or wav).

Each SUBSET is a split; ROOT may also be one SUBSET. A line of the transcript is an id, a space and
the text, which is taken as it stands (LibriSpeech's own is in capitals).
"""

from collections.abc import Iterator
import os

from etils import epath

from data_pipelines.importers.manifest_row import (
    SOUND_SUFFIXES,
    ImportOptions,
    ManifestRow,
    make_row,
    read_lines,
    select_splits,
)
from melllm_jax import files
from melllm_jax.errors import Mistake

TRANSCRIPT = ".trans.txt"


def read_splits(source: epath.Path, options: ImportOptions) -> dict[str, Iterator[ManifestRow]]:
    """Rows of every subset."""
    if _is_subset(source):
        subsets = {source.name: source}
    else:
        subsets = {path.name: path for path in _folders(source) if _is_subset(path)}
    if not subsets:
        rule = f"has no SUBSET/SPEAKER/CHAPTER/*{TRANSCRIPT}"
        raise Mistake(f"source={source}: {rule}: give the folder that holds the subsets")
    return {name: _rows(subsets[name]) for name in select_splits(subsets, options, source)}


def _rows(subset: epath.Path) -> Iterator[ManifestRow]:
    for speaker in _folders(subset):
        for chapter in _folders(speaker):
            yield from _chapter(chapter, speaker.name)


def _chapter(chapter: epath.Path, speaker: str) -> Iterator[ManifestRow]:
    held = files.list_folder(chapter)
    sounds: dict[str, epath.Path] = {}
    for path in held:
        if path.suffix.lower() in SOUND_SUFFIXES:
            first = sounds.setdefault(path.stem, path)
            if first != path:
                raise Mistake(f"{path}: {first.name} has its name too: keep one of the two")
    seen: dict[str, str] = {}
    for path in held:
        if not path.name.endswith(TRANSCRIPT):
            continue
        for count, line in read_lines(path):
            name, _, text = line.partition(" ")
            where = f"{path}:{count}"
            if name in seen:
                raise Mistake(f"{where}: id {name} stands already at {seen[name]}")
            seen[name] = where
            location = sounds.pop(name, chapter / f"{name}.flac")  # missing: preparing says so
            yield make_row(name, text.strip(), location, where=where, speaker=speaker)
    for name, location in sounds.items():  # without a transcript
        yield make_row(name, "", location, where=os.fspath(location), speaker=speaker)


def _is_subset(path: epath.Path) -> bool:
    chapters = (chapter for speaker in _folders(path) for chapter in _folders(speaker))
    names = (path.name for chapter in chapters for path in files.list_folder(chapter))
    return any(name.endswith(TRANSCRIPT) for name in names)


def _folders(path: epath.Path) -> list[epath.Path]:
    return [child for child in files.list_folder(path) if child.is_dir()]
