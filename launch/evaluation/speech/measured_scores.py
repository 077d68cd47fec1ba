"""Scores of single sounds, each measured once: what is heard, how it sounds, how far it is off."""

from collections.abc import Callable, Sequence
import dataclasses
import pathlib

import jax

from data_pipelines.examples.whisper_example import HOP
from launch.evaluation.speech.cepstral_distortion import (
    LONGEST,
    VARIANT,
    mel_cepstral_distortion,
)
from launch.evaluation.speech.journal import Journal
from launch.evaluation.speech.judge_process import (
    JudgeAnswer,
    JudgeError,
    JudgeName,
    JudgeProcess,
    open_judge,
)
from launch.evaluation.speech.spoken_set import (
    Place,
    SoundFacts,
    SpokenFile,
    load_place,
    wave_digest,
)
from launch.runs import model_loader, transcriber
from launch.runs.recognizer import DtypeChoice, load_recognizer
from launch.terminal.progress_bar import count_progress
from melllm_jax import __version__
from melllm_jax.checkpoints import run_folder
from melllm_jax.checkpoints.integrity import checkpoint_digest, newest_checkpoint
from melllm_jax.errors import Mistake
from melllm_jax.features.mel_filters import SAMPLE_RATE
from melllm_jax.inference.sampling import DecodingOptions

Say = Callable[[str], None]  # is told what begins
Sounding = tuple[SpokenFile, SoundFacts]


@dataclasses.dataclass(frozen=True)
class Heard:
    """What the judge heard in a file."""

    text: str = ""
    looped: bool = False  # the repetition guard stopped it


@dataclasses.dataclass(frozen=True)
class FileScores:
    """A score of each file that has one."""

    values: Sequence[float | None]
    by: str = ""  # what gave them, with its version
    error: str = ""  # why there are none, or fewer
    failed: bool = False  # the error is trouble, and no property of the sounds or the machine


@dataclasses.dataclass(frozen=True)
class Hearing:
    """A Whisper that hears, and how."""

    folder: str
    batch: int = 32  # files at once
    dtype: DtypeChoice = "own"
    decoding: DecodingOptions = DecodingOptions()

    def check(self) -> None:
        """Raises Mistake where the folder holds no Whisper, or none that is whole."""
        if run_folder.read_whisper(self.folder) is None:
            raise Mistake(f"judge={self.folder}: holds no Whisper, as `melllm convert import` does")
        transcriber.round_up_rows(self.batch)
        self.digest()

    def digest(self) -> str:
        """Hash of its newest weights. Raises Mistake where there are none that are whole."""
        return checkpoint_digest(
            newest_checkpoint(pathlib.Path(self.folder) / run_folder.CHECKPOINTS)
        )


def hear(files: Sequence[Sounding], how: Hearing, journal: Journal, say: Say) -> list[Heard]:
    """What the judge hears in each file; nothing in one that is too short for a frame."""
    by = ["heard", how.digest(), how.dtype, dataclasses.asdict(how.decoding), __version__]
    long = [pair for pair in files if pair[1].seconds * SAMPLE_RATE >= HOP]
    new = {x.digest: one for one, x in long if journal.find(*by, x.digest) is None}
    say(f"hearing {len(new)} of {len(files)} files")
    if new:
        rows = transcriber.round_up_rows(min(how.batch, len(new)))  # empty rows take as long
        with jax.set_mesh(model_loader.all_devices_mesh()):
            judge = load_recognizer(how.folder, how.decoding, how.dtype)
            trials = (judge.prompts([one.utterance])[0] for one in new.values())
            with count_progress(len(new), "files heard") as advance:
                for digest, told in zip(new, judge.transcribe(trials, rows), strict=True):
                    journal.keep({"text": told.line, "looped": told.looped}, *by, digest)
                    advance()
    known = (journal.find(*by, x.digest) for _, x in files)
    return [Heard(**({} if value is None else value)) for value in known]


def judge_sounds(
    name: JudgeName, files: Sequence[Sounding], journal: Journal, say: Say, python: str = ""
) -> FileScores | None:
    """The scores of the judge `name`, a process of `python`: see `torch_judges`.

    For similarity each file is held against the voice that was to speak, or else the recording;
    None where no file has either. What befalls the judge is told in the scores, not raised.
    """
    asked = [i for i, (_, facts) in enumerate(files) if facts.seconds]
    others: list[Place | None] = [None] * len(files)
    if name == "similarity":
        others = [one.voice or one.reference for one, _ in files]
        asked = [i for i in asked if others[i]]
        if not any(others):
            return None
    values: list[float | None] = [None] * len(files)
    refused, by = list[str](), ""
    try:
        with open_judge(name, python) as judge, count_progress(len(asked), name) as advance:
            by = judge.by
            say(f"{name} by {by}")
            for i in asked:
                told = _judged(judge, *files[i], others[i], journal)
                values[i] = told.value
                refused += [f"{files[i][0].utterance.id}: {told.error}"] if told.error else []
                advance()
    except JudgeError as error:
        return FileScores(values, by, str(error), failed=not error.missing)
    why = f"{name}: {len(refused)} files have none: {refused[0]}" if refused else ""
    return FileScores(values, by, why)


def _judged(
    judge: JudgeProcess, one: SpokenFile, facts: SoundFacts, other: Place | None, journal: Journal
) -> JudgeAnswer:
    """What the judge says of a file, now or before."""
    voice = None if other is None else load_place(other, one.where).wave
    key = [judge.name, judge.by, facts.digest, None if voice is None else wave_digest(voice)]
    told = journal.find(*key)
    if told is None:
        told = dataclasses.asdict(judge.ask(one.load().wave, voice))
        journal.keep(told, *key)
    return JudgeAnswer(**told)


def distortions(files: Sequence[Sounding], journal: Journal, say: Say) -> FileScores | None:
    """The mel cepstral distortion in dB of each file that has a recording; None where none has.

    Sound of over a minute has none.
    """
    recorded = [i for i, (one, _) in enumerate(files) if one.reference]
    if not recorded:
        return None
    say(f"mcd by {VARIANT}")
    values: list[float | None] = [None] * len(files)
    too_long = list[str]()
    with count_progress(len(recorded), "distortions") as advance:
        for i in recorded:
            one, facts = files[i]
            assert one.reference is not None
            recording = load_place(one.reference, one.where)
            if max(facts.seconds, recording.seconds) > LONGEST:
                too_long.append(one.utterance.id)
            elif facts.seconds:
                key = [VARIANT, facts.digest, wave_digest(recording.wave)]
                value = journal.find(*key)
                if value is None:
                    value = mel_cepstral_distortion(one.load().wave, recording.wave)
                    journal.keep(value, *key)
                values[i] = value
            advance()
    rule = f"files have none, as they last over {LONGEST:g} s"
    why = f"mcd: {len(too_long)} {rule}: {too_long[0]}" if too_long else ""
    return FileScores(values, VARIANT, why)
