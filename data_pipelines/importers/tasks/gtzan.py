"""GTZAN (Tzanetakis and Cook 2002): genres_original/GENRE/GENRE.00000.wav, music of ten genres.

The folders are the options. No split was published: fold1 to fold10 here are ten consecutive
numbers of each genre each, as neighbours often are of one artist. The folds are our own.
"""

from collections.abc import Iterator
import re

from etils import epath

from data_pipelines.importers.manifest_row import (
    SOUND_SUFFIXES,
    ImportOptions,
    ManifestRow,
    select_splits,
)
from data_pipelines.importers.tasks.task_row import list_options, make_task_row
from melllm_jax import files
from melllm_jax.errors import Mistake

FOLDERS = ("genres_original", "genres")
FOLD = 10  # recordings of a genre
_NUMBER = re.compile(r"\.(\d+)$")


def read_splits(source: epath.Path, options: ImportOptions) -> dict[str, Iterator[ManifestRow]]:
    """Rows of each fold."""
    folder = next((source / name for name in FOLDERS if (source / name).is_dir()), source)
    genres = [path for path in files.list_folder(folder) if path.is_dir()]
    folds: dict[str, list[tuple[epath.Path, str]]] = {}
    for genre in genres:
        for path in files.list_folder(genre):
            number = _NUMBER.search(path.stem)
            if path.suffix in SOUND_SUFFIXES and number and not path.name.startswith("."):
                fold = f"fold{int(number[1]) // FOLD + 1}"
                folds.setdefault(fold, []).append((path, genre.name))
    if not folds:
        raise Mistake(f"source={source}: has no {FOLDERS[0]}/GENRE/GENRE.00000.wav")
    names = sorted({genre for held in folds.values() for _, genre in held})
    return {name: _rows(folds[name], names) for name in select_splits(folds, options, source)}


def _rows(held: list[tuple[epath.Path, str]], genres: list[str]) -> Iterator[ManifestRow]:
    for path, genre in held:
        yield make_task_row(
            path.stem,
            path,
            where=str(path),
            task="gtzan",
            metric="choice",
            instruction=list_options("What is the genre of this music?", genres),
            answers=[genre],
            options=genres,
        )
