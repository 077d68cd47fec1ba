"""Manifests to shards: an Apache Beam pipeline, or the same steps in this process.

What must hold: what is written is a function of the input and the options alone, whatever runs it
and however often it was cut off. `OUT/.work` holds what is done so far; a second run goes on there.
Only tasks and digests travel between the steps of the pipeline, never sound.
"""

from collections.abc import Callable, Mapping, Sequence
import contextlib
import dataclasses
import functools
import json
import logging
import math
import os
import shlex
from typing import Any

from etils import epath

from data_pipelines import duplicates, imported, planned, shards, steps, text
from data_pipelines.checked import Limits, Making, Store
from data_pipelines.judged import Launch, Tick, ran, watched
from data_pipelines.published import published, statistics
from data_pipelines.task import Job, Task, encoded
from melllm_jax.config import Mel
from melllm_jax.errors import Fault, Mistake

WORK = ".work"  # folder in OUT that is removed at the end
INLINE = "inline"  # the runner that is none: one process, without Beam
DIRECT = "apache_beam.runners.portability.fn_api_runner.FnApiRunner"
DASK = "apache_beam.runners.dask.dask_runner.DaskRunner"
QUIET = ("apache_beam", "distributed")  # loggers that tell every step
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
    tick: Tick = lambda done, total: None,
    say: Callable[[str], None] = lambda line: None,
) -> shards.Index:
    """Writes every split of `source` into `out`; the index it returns is written last.

    kind, options: what source is, and what the importer of that kind takes. store: if not said,
    mel where `mel` is given, else FLAC; `mel` is also what is measured where it is not stored.
    per_shard: utterances a shard. bad: share of unusable utterances that stops the work; repeated
    ones do not count. runner: Beam's, by its name, or "inline"; workers: processes of direct and
    dask, 0 for one a core; beam: further options of the runner, as "project=x region=y". tick is
    told how many utterances are done, of how many. What is left out stands in rejects.jsonl, also
    where the work stops. Raises Mistake for that, for manifest errors, and for an `out` that is
    already whole.
    """
    folder = epath.Path(out)
    _check(folder, per_shard, bad)
    if runner != INLINE:
        _imported_beam()  # or it says now that it is not there
    digest = text.load(tokenizer).digest() if tokenizer else ""
    making = Making(store or ("mel" if mel else "flac"), mel or Mel(), limits)
    told = dict(options or {})
    asked = [os.fspath(source), kind, told, dataclasses.asdict(making), digest, per_shard]
    if kind == "jsonl":
        lines = epath.Path(source)
        planned.tasks(lines, per_shard)  # what is wrong with it shows before anything is made
    work = _work(folder, json.dumps(asked, sort_keys=True))
    if kind != "jsonl":
        lines = _imported(source, kind, work, told, say)
    tasks = planned.tasks(lines, per_shard)
    allowed = math.floor(bad * sum(task.lines for task in tasks) + 1e-9)
    splits = tuple(duplicates.ranks({task.split for task in tasks}))
    job = Job(os.fspath(work), making, splits, tokenizer, digest, allowed)
    run = functools.partial(ran, out=folder, tasks=tasks, bad=bad, tick=tick)
    piped = functools.partial(_beam, runner=runner, workers=workers, words=_flags(beam))
    launch: Launch = steps.inline if runner == INLINE else piped
    if making.store == "mel" and making.mel.normalize == "global" and not making.mel.mean:
        say("mel.normalize=global has no constants yet: a first pass takes them from all sound")
        first = Making("nothing", dataclasses.replace(making.mel, normalize="none"), limits)
        measured = dataclasses.replace(job, work=os.fspath(work / "measured"), making=first)
        run(measured, launch)
        found = statistics(tasks, measured)
        stored = dataclasses.replace(making.mel, mean=found.mean, invstd=found.invstd)
        job = dataclasses.replace(job, making=dataclasses.replace(making, mel=stored))
        say("second pass: storing mel, normalised")
    run(job, launch)
    index = published(folder, tasks, job)
    work.rmtree()
    return index


def _check(folder: epath.Path, per_shard: int, bad: float) -> None:
    if (folder / shards.INDEX).exists():
        raise Mistake(f"out={folder}: already holds a whole {shards.INDEX}: choose another folder")
    if per_shard < 1:
        raise Mistake(f"per_shard={per_shard}: must be positive")
    if not 0 <= bad <= 1:
        raise Mistake(f"bad={bad}: must lie in [0, 1]")


def _work(folder: epath.Path, asked: str) -> epath.Path:
    """The folder of what is staged, emptied where something else was asked for when it was made."""
    work = folder / WORK
    said = work / "asked.json"
    try:
        if work.exists() and not (said.exists() and said.read_text() == asked):
            work.rmtree()
        work.mkdir(parents=True, exist_ok=True)
        shards.write(said, asked.encode())
    except OSError as error:
        raise Fault(f"{work}: cannot be written: {error}") from error
    return work


def _imported(
    source: str | os.PathLike[str],
    kind: str,
    work: epath.Path,
    options: Mapping[str, Any],
    say: Callable[[str], None],
) -> epath.Path:
    """The folder of manifests of a foreign corpus, written now or by a run that was cut off."""
    lines, done = work / "lines", work / "imported.json"
    if not done.exists():
        if lines.exists():
            lines.rmtree()
        say(f"reading the {kind} corpus {os.fspath(source)}")
        try:
            counts = imported.write(os.fspath(source), kind, lines, **options)
        except Mistake:  # nothing is begun
            work.rmtree()
            with contextlib.suppress(OSError):
                work.parent.rmdir()
            raise
        shards.write(done, json.dumps(counts).encode())
    return lines


def _beam(
    tasks: list[Task],
    job: Job,
    tick: Callable[[int], None],
    *,
    runner: str,
    workers: int,
    words: Sequence[str],
) -> None:
    """The pipeline, on the runner of that name."""
    beam = _imported_beam()
    cores = workers or os.cpu_count() or 1
    with contextlib.ExitStack() as stack:
        stack.enter_context(watched(tasks, job, tick))
        if runner.lower() in ("direct", "directrunner"):
            # Beam's own DirectRunner first tries to fetch a program from the network (Prism); this
            # is what it then runs. Each task is a process, so threads are enough to wait for them.
            runner = DIRECT
            words = [
                "--direct_running_mode=multi_threading",
                f"--direct_num_workers={cores}",
                *words,
            ]
        elif runner.lower() in ("dask", "daskrunner"):
            runner = DASK
            words = [*_dask(stack, cores, words), *words]
        for name in QUIET:
            logging.getLogger(name).setLevel(logging.CRITICAL)
        options = beam.options.pipeline_options.PipelineOptions([f"--runner={runner}", *words])
        try:
            pipeline = beam.Pipeline(options=options)
        except ValueError as error:
            raise Mistake(f"runner={runner}: {error}") from error
        (
            pipeline
            | "tasks" >> beam.Create([encoded(task, job) for task in tasks])
            | "spread" >> beam.Reshuffle()
            | "stage" >> beam.FlatMap(steps.stage)
            | "digests" >> beam.GroupByKey()
            | "repeated" >> beam.FlatMap(steps.lost)
            | "losses" >> beam.GroupByKey()
            | "reduce" >> beam.Map(steps.reduce, job)
        )
        try:
            result = pipeline.run()
            state = result.wait_until_finish()
        except Exception as error:  # of any kind: each runner has its own
            raise Fault(f"runner={runner}: {error}") from error
        if runner == DASK:
            result.client.close()
        if state in ("FAILED", "CANCELLED"):
            raise Fault(f"runner={runner}: ended as {state}")


def _flags(options: str) -> list[str]:
    """Options in one string as Beam takes them, with or without their hyphens."""
    return [word if word.startswith("--") else f"--{word}" for word in shlex.split(options)]


def _imported_beam() -> Any:
    try:
        logging.disable(logging.WARNING)  # of parts of Google Cloud that nobody asked for
        import apache_beam  # noqa: PLC0415
        import apache_beam.options.pipeline_options  # noqa: PLC0415
    except ImportError as error:
        install = 'pip install "melllm_jax[beam]", or --runner inline'
        raise Mistake(f"preparing on a runner needs the extra beam ({error}): {install}") from error
    finally:
        logging.disable(logging.NOTSET)
    return apache_beam


def _dask(stack: contextlib.ExitStack, cores: int, words: Sequence[str]) -> list[str]:
    """Options for a cluster on this machine, unless one is named, and for tasks one by one."""
    try:
        from dask import distributed  # noqa: PLC0415
    except ImportError as error:
        install = 'pip install "melllm_jax[dask]"'
        raise Mistake(f"runner=dask needs the extra dask ({error}): {install}") from error
    found = []
    if not any(word.startswith(("--dask_client_address", "--dask_scheduler")) for word in words):
        cluster = distributed.LocalCluster(
            n_workers=cores,
            threads_per_worker=1,
            dashboard_address=None,
            silence_logs=logging.CRITICAL,
        )
        stack.enter_context(cluster)
        found.append(f"--dask_client_address={cluster.scheduler_address}")
    if not any(word.startswith(("--dask_npartitions", "--dask_partition")) for word in words):
        found.append("--dask_partition_size=1")
    return found
