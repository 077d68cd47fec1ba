"""`melllm bench data`: how fast corpora become batches, without a model."""

from collections.abc import Sequence
import contextlib
import dataclasses
import time
from typing import Any

from data_pipelines import pipeline
from launch.arguments import RunArguments, run_arguments
from launch.train import completed
from melllm_jax import config, presets
from melllm_jax.update import HOP

WARM = 3  # batches before the clock starts: files are opened, and the bins of the packer filled


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arguments(RunArguments):
    """Read the corpora of --data as PRESET (quickstart if none is given) does in training."""

    seconds: float = 10.0  # how long to read
    json: bool = False  # print one JSON object on standard output and nothing else


def bench(argv: Sequence[str]) -> tuple[dict[str, Any], str, bool]:
    """Figures, the same as text, and whether JSON was asked for. Raises Mistake."""
    arguments = run_arguments(
        Arguments, argv, presets.preset, prog="melllm bench data", presets=presets.PRESETS
    )
    figures = measured(arguments.run, arguments.seconds)
    return figures, told(figures), arguments.json


def measured(run: config.Run, seconds: float) -> dict[str, Any]:
    """The figures of reading for so many seconds."""
    run, tokenizer = completed(run)
    with contextlib.closing(iter(pipeline.train_batches(run, tokenizer))) as batches:
        for _ in range(WARM):
            next(batches)
        count = positions = 0
        audio = 0.0
        began, worked = time.perf_counter(), time.process_time()
        while (passed := time.perf_counter() - began) < seconds or not count:
            batch = next(batches)
            count += 1
            positions += int((batch.segments > 0).sum())
            audio += float(batch.frames.sum()) * HOP
        worked = time.process_time() - worked
    return {
        "what": "data",
        "preset": run.name,
        "data": [source.path for source in run.data.sources],
        "threads": run.data.threads,
        "rows": run.data.b,
        "positions": run.data.t,
        "seconds": passed,
        "batches": count,
        "batches_per_second": count / passed,
        "audio_seconds_per_second": audio / passed,
        "audio_seconds_per_core_second": audio / worked,
        "cores": worked / passed,
        "filled": positions / (count * run.data.b * run.data.t),
    }


def told(figures: dict[str, Any]) -> str:
    """The figures for people."""
    return "\n".join(
        [
            f"{figures['preset']}: {figures['batches']} batches of {figures['rows']} × "
            f"{figures['positions']} positions in {figures['seconds']:.1f} s, "
            f"{figures['filled']:.1%} of them filled",
            f"speed       {figures['batches_per_second']:.2f} batches/s, "
            f"{figures['audio_seconds_per_second']:.0f} s of audio a second",
            f"cost        {figures['audio_seconds_per_core_second']:.0f} s of audio a second of "
            f"one core; {figures['cores']:.2f} cores were busy, {figures['threads']} threads read",
        ]
    )
