"""IEMOCAP (Busso et al. 2008): the emotion of each turn, from SessionN/dialog/EmoEvaluation.

The sound is SessionN/sentences/wav/DIALOG/TURN.wav. As is usual, four emotions are asked for, and
excitement counts as happiness: turns of other labels (frustration, surprise, fear, disgust, other,
and xxx where raters disagree) are no part of the task. Each session is a split, session1 to
session5, for cross-validation by speakers.
"""

from collections.abc import Iterator
import re

from etils import epath

from data_pipelines.importers.manifest_row import (
    ImportOptions,
    ManifestRow,
    read_lines,
    select_splits,
)
from data_pipelines.importers.tasks.task_row import list_options, make_task_row
from melllm_jax import files
from melllm_jax.errors import Mistake

EMOTIONS = {"ang": "angry", "exc": "happy", "hap": "happy", "neu": "neutral", "sad": "sad"}
OTHERS = ("fru", "sur", "fea", "dis", "oth", "xxx")
OPTIONS = tuple(sorted(set(EMOTIONS.values())))
INSTRUCTION = list_options("What is the emotion of the speaker?", OPTIONS)
_TURN = re.compile(r"\[[\d.]+ - [\d.]+\]\s+(\S+)\s+(\w+)\s")
_SESSION = re.compile(r"Session(\d+)")


def read_splits(source: epath.Path, options: ImportOptions) -> dict[str, Iterator[ManifestRow]]:
    """Rows of each session."""
    held = [path for path in files.list_folder(source) if _SESSION.fullmatch(path.name)]
    found = {path.name.lower(): path for path in held if (path / "dialog/EmoEvaluation").is_dir()}
    if not found:
        raise Mistake(f"source={source}: has no Session1/dialog/EmoEvaluation")
    return {name: _rows(found[name]) for name in select_splits(found, options, source)}


def _rows(session: epath.Path) -> Iterator[ManifestRow]:
    for path in files.list_folder(session / "dialog/EmoEvaluation"):
        if path.suffix != ".txt" or path.name.startswith("."):
            continue
        for count, line in read_lines(path):
            where = f"{path}:{count}"
            turn = _TURN.match(f"{line} ")
            if turn is None:
                if line.startswith("[") and not line.startswith("[START"):
                    raise Mistake(f"{where}: must be [START - END], a turn and its emotion")
                continue  # the header, and what each rater said
            name, label = turn.groups()
            if label not in EMOTIONS and label not in OTHERS:
                known = ", ".join((*EMOTIONS, *OTHERS))
                raise Mistake(f"{where}: emotion {label}: must be one of {known}")
            if label in EMOTIONS:
                yield make_task_row(
                    name,
                    session / "sentences/wav" / path.stem / f"{name}.wav",
                    where=where,
                    task="iemocap",
                    metric="choice",
                    instruction=INSTRUCTION,
                    answers=[EMOTIONS[label]],
                    options=OPTIONS,
                    speaker=_speaker(name),
                )


def _speaker(turn: str) -> str:
    """Ses01F for Ses01M_impro02_F003: the session, and the sex of who speaks this turn."""
    return f"{turn[:5]}{turn.rpartition('_')[2][:1]}"
