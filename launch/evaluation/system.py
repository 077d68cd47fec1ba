"""A system that is compared: a run, an import, or a cascade of two, under a name."""

from collections.abc import Iterator, Sequence
import dataclasses
import pathlib

from launch.evaluation.cascade import check_cascade
from launch.runs.recognizer import check_hears
from melllm_jax.checkpoints import run_folder
from melllm_jax.checkpoints.integrity import checkpoint_digest, newest_checkpoint
from melllm_jax.errors import Mistake

FORM = "NAME=FOLDER, or NAME=WHISPER,LLM for a cascade"


@dataclasses.dataclass(frozen=True)
class System:
    """What `melllm evaluate` takes as --run and --llm."""

    name: str  # in the table
    run: str  # folder
    llm: str = ""  # folder

    @property
    def folders(self) -> tuple[str, ...]:
        """Where its weights lie."""
        return (self.run, self.llm) if self.llm else (self.run,)

    @property
    def answers(self) -> bool:
        """Whether it answers questions: a Whisper alone does not, nor does the template "plain"."""
        if self.llm:
            return True
        whisper = run_folder.read_whisper(self.run)
        return whisper is None and run_folder.read_spec(self.run).text.template != "plain"

    def digests(self) -> list[str]:
        """Hashes of its newest checkpoints. Raises Mistake where one has none that is whole."""
        places = (pathlib.Path(folder) / run_folder.CHECKPOINTS for folder in self.folders)
        try:
            return [checkpoint_digest(newest_checkpoint(place)) for place in places]
        except Mistake as mistake:
            raise Mistake(f"system={self.name}: {mistake}") from mistake


def read_systems(words: Sequence[str]) -> list[System]:
    """The systems that words name, in their order.

    Raises Mistake, naming the word or the system, for what is no system or has none to load, for a
    name given twice, and for none at all.
    """
    if not words:
        raise Mistake(f"systems: give one at least: {FORM}")
    found = list(_systems(words))
    names = [system.name for system in found]
    for name in names:
        if names.count(name) > 1:
            raise Mistake(f"system={name}: the name is given twice")
    for system in found:
        try:
            _check(system)
        except Mistake as mistake:
            raise Mistake(f"system={system.name}: {mistake}") from mistake
    return found


def _systems(words: Sequence[str]) -> Iterator[System]:
    for word in words:
        name, _, given = word.partition("=")
        folders = given.split(",")
        if not name.strip() or not all(folders) or len(folders) > 2:
            raise Mistake(f"system={word}: must be {FORM}")
        yield System(name, *folders)


def _check(system: System) -> None:
    """Raises Mistake for folders that hold no such system."""
    for folder in system.folders:
        if not pathlib.Path(folder).is_dir():
            raise Mistake(f"{folder}: is no folder")
    if system.llm:
        check_cascade(system.run, system.llm)
    elif not run_folder.holds_checkpoint(system.run):
        raise Mistake(f"run={system.run}: holds no run.json, nor the model.json of an import")
    elif run_folder.read_whisper(system.run) is None:
        check_hears(system.run, run_folder.read_spec(system.run))
