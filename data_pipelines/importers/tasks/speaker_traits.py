"""Gender and age of speakers, from the columns of Common Voice's tables.

Rows whose speaker does not tell, or tells a gender of which there are few, are no part of the task.
The table tells ages in decades: the answer is the middle of the decade in years, so that the error
of a model that knew the age itself would still be 2.5 years.
"""

from collections.abc import Iterator

from etils import epath

from data_pipelines.corpora.manifest import locate_audio
from data_pipelines.importers import commonvoice
from data_pipelines.importers.manifest_row import ImportOptions, ManifestRow
from data_pipelines.importers.tasks.task_row import list_options, make_task_row
from melllm_jax.errors import Mistake

GENDERS = {
    "female": "female",
    "female_feminine": "female",
    "male": "male",
    "male_masculine": "male",
}
OPTIONS = ("female", "male")
AGES = {  # with the table's own spelling of 40
    "teens": 15,
    "twenties": 25,
    "thirties": 35,
    "fourties": 45,
    "forties": 45,
    "fifties": 55,
    "sixties": 65,
    "seventies": 75,
    "eighties": 85,
    "nineties": 95,
}
ASK_GENDER = list_options("What is the gender of the speaker?", OPTIONS)
ASK_AGE = "How old is the speaker, in years? Answer with a number."


def read_genders(source: epath.Path, options: ImportOptions) -> dict[str, Iterator[ManifestRow]]:
    """Rows of each split, and the speaker's gender."""
    tables, seconds = commonvoice.find_tables(source, options)
    return {name: _genders(table, seconds) for name, table in tables.items()}


def read_ages(source: epath.Path, options: ImportOptions) -> dict[str, Iterator[ManifestRow]]:
    """Rows of each split, and the speaker's age."""
    tables, seconds = commonvoice.find_tables(source, options)
    return {name: _ages(table, seconds) for name, table in tables.items()}


def _genders(table: epath.Path, seconds: dict[str, float]) -> Iterator[ManifestRow]:
    for where, fields in commonvoice.read_records(table):
        answer = GENDERS.get(_cell(fields, "gender", where))
        if answer is not None:
            yield _row(
                table, where, fields, seconds, "gender", "choice", ASK_GENDER, answer, OPTIONS
            )


def _ages(table: epath.Path, seconds: dict[str, float]) -> Iterator[ManifestRow]:
    for where, fields in commonvoice.read_records(table):
        told = _cell(fields, "age", where)
        if not told:
            continue
        if told not in AGES:
            raise Mistake(f"{where}: age={told[:40]}: must be one of {', '.join(AGES)}")
        yield _row(table, where, fields, seconds, "age", "mae", ASK_AGE, str(AGES[told]), ())


def _cell(fields: dict[str, str], name: str, where: str) -> str:
    if name not in fields:
        raise Mistake(f"{where}: has no column {name}: has {', '.join(fields)}")
    return fields[name]


def _row(
    table: epath.Path,
    where: str,
    fields: dict[str, str],
    seconds: dict[str, float],
    task: str,
    metric: str,
    instruction: str,
    answer: str,
    options: tuple[str, ...],
) -> ManifestRow:
    clip = commonvoice.clip_name(fields)
    return make_task_row(
        clip.rpartition(".")[0],
        locate_audio(clip, table.parent / "clips"),
        where=where,
        task=task,
        metric=metric,
        instruction=instruction,
        answers=[answer],
        options=options,
        seconds=seconds.get(clip),
        speaker=fields.get("client_id", ""),
    )
