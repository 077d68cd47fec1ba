"""Prepares a corpus as shards, by an Apache Beam pipeline or by the same steps in this process.

What must hold: the output is a function of the input and the options alone, whatever runner is used
and however often it was cut off. `OUT/.work` holds what is done so far; a second run continues it.
Only tasks and digests travel between the steps of the pipeline, never sound.
"""

from collections.abc import Callable, Mapping
import contextlib
import dataclasses
import functools
import json
import math
import os
from typing import Any

from etils import epath

from data_pipelines.corpora import shard_index
from data_pipelines.importers import write_manifests
from data_pipelines.prepare import beam_steps, deduplicate
from data_pipelines.prepare.beam_pipeline import import_beam, run_pipeline, runner_flags
from data_pipelines.prepare.job import ProgressCallback, TaskRunner, run_job
from data_pipelines.prepare.publish import publish_shards, staged_mel_statistics
from data_pipelines.prepare.tasks import Job, Task, plan_tasks
from data_pipelines.prepare.validate import Limits, RecordConfig, Store
from data_pipelines.text.load_tokenizer import load_tokenizer
from melllm_jax import files
from melllm_jax.config.features import Mel
from melllm_jax.errors import Fault, Mistake

WORK = ".work"  # folder in OUT that is removed at the end
INLINE = "inline"  # instead of a runner: this process, without Beam
LIMITS = Limits()


def prepare(
    source: str | os.PathLike[str],
    out: epath.PathLike,
    *,
    kind: str = "jsonl",
    options: Mapping[str, Any] | None = None,
    store: Store | None = None,
    mel: Mel | None = None,
    limits: Limits = LIMITS,
    tokenizer: str = "",
    per_shard: int = 5000,
    bad: float = 0.01,
    runner: str = INLINE,
    workers: int = 0,
    beam: str = "",
    progress: ProgressCallback = lambda done, total: None,
    log: Callable[[str], None] = lambda line: None,
) -> shard_index.ShardIndex:
    """Writes every split of `source` as shards into `out`; returns the index, written last.

    kind, options: "jsonl" for manifests, or a kind of importer and its options. store: by default
    mel where `mel` is given, else FLAC; `mel` is also what is measured where it is not stored.
    per_shard: utterances a shard. bad: share of unusable utterances that stops the work; repeated
    ones do not count. runner: Beam's, by its name, or "inline"; workers: processes of direct and
    dask, 0 for one a core; beam: further options of the runner, as "project=x region=y". progress
    is called with how many utterances are done, and of how many; log with lines for people. What
    is left out is listed in rejects.jsonl, also where the work stops. Raises Mistake for that, for
    manifest errors, and for an `out` that is already complete.
    """
    folder = files.place(out)
    given = dict(options or {})
    _check_arguments(folder, per_shard, bad, kind, given)
    if runner != INLINE:
        import_beam()  # raises now if it is not installed
    digest = load_tokenizer(tokenizer).digest() if tokenizer else ""
    record_config = RecordConfig(store or ("mel" if mel else "flac"), mel or Mel(), limits)
    asked = [os.fspath(source), kind, given, dataclasses.asdict(record_config), digest, per_shard]
    if kind == "jsonl":
        lines = files.place(source)
        plan_tasks(lines, per_shard)  # raises for a bad manifest before anything is written
    work = _work_folder(folder, json.dumps(asked, sort_keys=True))
    if kind != "jsonl":
        lines = _import_corpus(source, kind, work, given, log)
    tasks = plan_tasks(lines, per_shard)
    max_rejects = math.floor(bad * sum(task.lines for task in tasks) + 1e-9)
    splits = tuple(deduplicate.sort_splits({task.split for task in tasks}))
    job = Job(os.fspath(work), record_config, splits, tokenizer, digest, max_rejects)
    run = functools.partial(run_job, out=folder, tasks=tasks, bad=bad, progress=progress)
    run_beam = functools.partial(
        run_pipeline, runner=runner, workers=workers, words=runner_flags(beam)
    )
    launch: TaskRunner = beam_steps.run_inline if runner == INLINE else run_beam
    wanted = record_config.mel
    if record_config.store == "mel" and wanted.normalize == "global" and not wanted.mean:
        log("mel.normalize=global has no constants yet: a first pass takes them from all sound")
        job = _measure_mel(job, tasks, lambda first: run(first, launch))
        log("second pass: storing mel, normalised")
    run(job, launch)
    index = publish_shards(folder, tasks, job)
    work.rmtree()
    return index


def _measure_mel(job: Job, tasks: list[Task], run: Callable[[Job], None]) -> Job:
    """The job with the mel constants that a first pass, which stores nothing, measures."""
    config = job.record_config
    plain = dataclasses.replace(config.mel, normalize="none")
    first = dataclasses.replace(
        job,
        work=os.fspath(epath.Path(job.work) / "measured"),
        record_config=RecordConfig("nothing", plain, config.limits),
    )
    run(first)
    found = staged_mel_statistics(tasks, first)
    mel = dataclasses.replace(config.mel, mean=found.mean, invstd=found.invstd)
    return dataclasses.replace(job, record_config=dataclasses.replace(config, mel=mel))


def _check_arguments(
    folder: epath.Path, per_shard: int, bad: float, kind: str, options: Mapping[str, Any]
) -> None:
    if (folder / shard_index.INDEX).exists():
        raise Mistake(
            f"out={folder}: already holds a whole {shard_index.INDEX}: choose another folder"
        )
    if per_shard < 1:
        raise Mistake(f"per_shard={per_shard}: must be positive")
    if not 0 <= bad <= 1:
        raise Mistake(f"bad={bad}: must lie in [0, 1]")
    if kind == "jsonl" and options:
        name = min(options)
        rule = "is for corpora of another kind than jsonl: give --kind"
        raise Mistake(f"{name}={options[name]}: {rule}")


def _work_folder(folder: epath.Path, asked: str) -> epath.Path:
    """The folder of staged files, emptied where it was made with other arguments."""
    work = folder / WORK
    asked_file = work / "asked.json"
    try:
        if work.exists() and not (asked_file.exists() and asked_file.read_text() == asked):
            work.rmtree()
        work.mkdir(parents=True, exist_ok=True)
        files.write_bytes(asked_file, asked.encode())
    except OSError as error:
        raise Fault(f"{work}: cannot be written: {error}") from error
    return work


def _import_corpus(
    source: str | os.PathLike[str],
    kind: str,
    work: epath.Path,
    options: Mapping[str, Any],
    log: Callable[[str], None],
) -> epath.Path:
    """The folder of manifests of a foreign corpus, written now or by a run cut off earlier."""
    lines, done = work / "lines", work / "imported.json"
    if not done.exists():
        if lines.exists():
            lines.rmtree()
        log(f"reading the {kind} corpus {os.fspath(source)}")
        try:
            counts = write_manifests.import_corpus(os.fspath(source), kind, lines, **options)
        except Mistake:  # nothing is begun
            work.rmtree()
            with contextlib.suppress(OSError):
                work.parent.rmdir()
            raise
        files.write_bytes(done, json.dumps(counts).encode())
    return lines
