"""The Apache Beam pipeline of preparing, and the runners that it starts on.

These are the direct one, Dask, or any other by its name. Only tasks and digests travel between its
steps, never sound. Only this module imports Beam and Dask, once a runner is asked for.
"""

from collections.abc import Callable, Sequence
import contextlib
import logging
import os
import shlex
from typing import Any

from data_pipelines.prepare import beam_steps
from data_pipelines.prepare.job import watch_progress
from data_pipelines.prepare.tasks import Job, Task, encode_task
from melllm_jax.errors import Fault, Mistake

DIRECT = "apache_beam.runners.portability.fn_api_runner.FnApiRunner"
DASK = "apache_beam.runners.dask.dask_runner.DaskRunner"
QUIET = ("apache_beam", "distributed")  # loggers that report every step


def run_pipeline(
    tasks: list[Task],
    job: Job,
    progress: Callable[[int], None],
    *,
    runner: str,
    workers: int,
    words: Sequence[str],
) -> None:
    """Runs the pipeline on the Beam runner of that name, with the flags `words`."""
    beam = import_beam()
    cores = workers or os.cpu_count() or 1
    with contextlib.ExitStack() as stack:
        stack.enter_context(watch_progress(tasks, job, progress))
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
            words = [*_dask_flags(stack, cores, words), *words]
        for name in QUIET:
            logging.getLogger(name).setLevel(logging.CRITICAL)
        options = beam.options.pipeline_options.PipelineOptions([f"--runner={runner}", *words])
        try:
            pipeline = beam.Pipeline(options=options)
        except ValueError as error:
            raise Mistake(f"runner={runner}: {error}") from error
        (
            pipeline
            | "tasks" >> beam.Create([encode_task(task, job) for task in tasks])
            | "spread" >> beam.Reshuffle()
            | "stage" >> beam.FlatMap(beam_steps.stage)
            | "digests" >> beam.GroupByKey()
            | "repeated" >> beam.FlatMap(beam_steps.find_repeats)
            | "losses" >> beam.GroupByKey()
            | "reduce" >> beam.Map(beam_steps.drop_repeats, job)
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


def runner_flags(options: str) -> list[str]:
    """Beam's flags from one string of options, with or without their hyphens."""
    return [word if word.startswith("--") else f"--{word}" for word in shlex.split(options)]


def import_beam() -> Any:
    """Apache Beam as a module. Raises Mistake where the extra `beam` is not installed."""
    try:
        logging.disable(logging.WARNING)  # of parts of Google Cloud that are not installed
        import apache_beam  # noqa: PLC0415
        import apache_beam.options.pipeline_options  # noqa: PLC0415
    except ImportError as error:
        install = 'pip install "melllm_jax[beam]", or --runner inline'
        raise Mistake(f"preparing on a runner needs the extra beam ({error}): {install}") from error
    finally:
        logging.disable(logging.NOTSET)
    return apache_beam


def _dask_flags(stack: contextlib.ExitStack, cores: int, words: Sequence[str]) -> list[str]:
    """Flags for a Dask cluster on this machine, unless one is named, and for one task at a time."""
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
