"""`melllm bench data`, `melllm data bench`: time how fast corpora become batches, with no model."""

from collections.abc import Sequence
import contextlib
import dataclasses
import itertools
import json
import os
import time
from typing import Any

from data_pipelines.corpora.corpus import open_corpus
from data_pipelines.corpora.sample import sample_indices
from data_pipelines.loader import pipeline
from data_pipelines.loader.stage_timing import make_stages
from data_pipelines.text.tokenizer import Tokenizer
from launch.bench.chips_fed import feed_rate
from launch.bench.timing import medians, time_in_turns
from launch.runs.run_inputs import complete_run
from launch.terminal.flags import RunArguments, run_arguments
from launch.terminal.progress_bar import count_progress
from melllm_jax.config.overrides import override
from melllm_jax.config.run import Run
from melllm_jax.errors import Mistake
from melllm_jax.presets import catalog

WARMUP_BATCHES = 3  # before the clock starts: they open files and fill the packer's bins
ROUNDS = 5  # of the stages: medians
ROWS, LANES = 8, (2, 4, 8)  # a batch of more rows is read as so many, so that it fills no memory
DEFAULT_PRESET = "mel_llm_asr_full_v5p_128"  # of `melllm data bench DIR` where no preset is named


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataBenchArguments(RunArguments):
    """Read the corpora of --data as PRESET (quickstart if none is given) does in training.

    Each stage is timed by itself on the same utterances, and the whole chain as PRESET reads, and
    with one reading process, two, four, and so on up to the machine's cores or the lanes. A batch
    of more than 8 rows is read as 8. `melllm data bench DIR... [--preset NAME]` means the same;
    there the preset, unless one is named, is mel_llm_asr_full_v5p_128.
    """

    seconds: float = 10.0  # how long to read, with each number of processes
    utterances: int = 64  # that the stages are timed on; they are held in memory
    chip: str = "TPU v5p"  # that trains PRESET: how many of them reading feeds
    mfu: float = 0.5  # assumed: share of the chip's peak FLOP/s that training reaches
    json: bool = False  # print one JSON object on standard output and nothing else

    def __post_init__(self) -> None:
        if self.utterances < 1:
            raise Mistake(f"utterances={self.utterances}: must be positive")


def main(argv: Sequence[str]) -> int:
    """`melllm data bench DIR… [--preset NAME] [flags]`, or PRESET and flags as `melllm bench`."""
    figures, text, as_json = bench(_reorder(list(argv)), prog="melllm data bench")
    print(json.dumps(figures) if as_json else text)
    return 0


def bench(argv: Sequence[str], prog: str = "melllm bench data") -> tuple[dict[str, Any], str, bool]:
    """Figures, the same as text, and whether JSON was asked for. Raises Mistake."""
    arguments = run_arguments(
        DataBenchArguments, argv, catalog.preset, prog=prog, presets=catalog.PRESETS
    )
    figures = measure(arguments)
    return figures, format_figures(figures), arguments.json


def measure(arguments: DataBenchArguments) -> dict[str, Any]:
    """The figures of all stages, and of the whole by number of processes."""
    full = arguments.run
    feed_rate(full, 0.0, arguments.chip, arguments.mfu)  # raises mistakes before anything is read
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    counts = _process_counts(cores or 1)
    inputs = complete_run(_shrink_run(full, counts[-1]))
    run, tokenizer = inputs.run, inputs.tokenizer
    assert isinstance(run, Run)
    stages = _stage_figures(run, tokenizer, arguments.utterances)
    # A process that has one core to itself reads faster without threads.
    more = {count: 0 for count in counts if count <= run.data.lane_count}
    threads = dict(sorted((more | {run.data.workers: run.data.threads}).items()))
    by_workers = {}
    with count_progress(len(threads), "numbers of processes") as advance:
        for count in threads:
            by_workers[count] = _pipeline_figures(
                run, tokenizer, count, threads[count], arguments.seconds
            )
            advance()
    as_configured = by_workers[run.data.workers]
    figures = {
        "what": "data",
        "preset": run.name,
        "data": [source.path for source in run.data.sources],
        "rows": run.data.b,
        "positions": run.data.t,
        **as_configured,
        "stages": stages,
        "workers": list(by_workers.values()),
    }
    if (decoded := stages.get("decode")) is not None:
        decoding = decoded["audio_seconds_per_second"]
        figures["share_of_decoding"] = as_configured["audio_seconds_per_core_second"] / decoding
    best = max(by_workers.values(), key=lambda one: one["audio_seconds_per_second"])
    rate = best["batches_per_second"] * run.data.b * run.data.t
    fed = feed_rate(full, rate, arguments.chip, arguments.mfu)
    figures["feeds"] = dataclasses.asdict(fed) | {
        "workers": best["workers"],
        "chips_per_core": fed.chips / best["cores"],
        "audio_seconds_per_position": best["audio_seconds_per_second"] / rate,
    }
    return figures


def format_figures(figures: dict[str, Any]) -> str:
    """The figures for people."""
    lines = [
        f"{figures['preset']}: {figures['batches']} batches of {figures['rows']} × "
        f"{figures['positions']} positions in {figures['seconds']:.1f} s, "
        f"{figures['filled']:.1%} of them filled",
        f"speed       {figures['batches_per_second']:.2f} batches/s, "
        f"{figures['audio_seconds_per_second']:.0f} s of audio a second",
        f"cost        {figures['audio_seconds_per_core_second']:.0f} s of audio a second of "
        f"one core; {figures['cores']:.2f} cores were busy",
    ]
    for name, stage in figures["stages"].items():
        lines.append(
            f"{name:11} {stage['audio_seconds_per_second']:,.0f} s of audio a second, "
            f"{stage['share']:.1%} of the stages' time"
        )
    if "share_of_decoding" in figures:
        share = figures["share_of_decoding"]
        lines.append(
            f"limit       all of it on a core is {share:.2f} times as fast as decoding alone"
        )
    for one in figures["workers"]:
        count, threads = one["workers"], one["threads"]
        who = f"{count} process{'' if count == 1 else 'es'}" if count else f"{threads} threads"
        lines.append(
            f"{who:11} "
            f"{one['audio_seconds_per_second']:,.0f} s of audio a second, "
            f"{one['filled']:.1%} of positions filled"
        )
    feeds = figures["feeds"]
    lines.append(
        f"feeds       {feeds['chips']:.3g} × {feeds['chip']} that train {figures['preset']} at an "
        f"assumed MFU of {feeds['mfu']:.0%}: {feeds['positions']:,.0f} positions a second each, "
        f"{1000 * feeds['audio_seconds_per_position']:.0f} ms of audio a position; "
        f"{feeds['chips_per_core']:.3g} chips a core"
    )
    return "\n".join(lines)


def _reorder(words: list[str]) -> list[str]:
    """DIR… and --preset NAME as PRESET --data DIR …; other words as they are."""
    if not words or words[0] in (*catalog.PRESETS, "-h", "--help"):
        return words
    folders = list(itertools.takewhile(lambda word: not word.startswith("-"), words))
    rest = words[len(folders) :]
    name = DEFAULT_PRESET
    if "--preset" in rest:
        position = rest.index("--preset")
        if position + 1 == len(rest):
            raise Mistake("preset: --preset needs a name")
        name = rest[position + 1]
        del rest[position : position + 2]
    return [name, *(word for folder in folders for word in ("--data", folder)), *rest]


def _shrink_run(run: Run, cores: int) -> Run:
    """`run` with batches of at most ROWS rows; where it had more, in as many lanes as cores."""
    if run.data.b <= ROWS:
        return run
    lanes = next((n for n in LANES if n >= cores), ROWS)
    return override(run, {"data.b": ROWS, "data.lanes": lanes})


def _process_counts(cores: int) -> list[int]:
    """1, 2, 4, … and the number of cores."""
    return [*itertools.takewhile(lambda n: n < cores, (2**i for i in range(20))), cores]


def _stage_figures(run: Run, tokenizer: Tokenizer, count: int) -> dict[str, dict[str, float]]:
    """The figures of each stage, timed in turns on `count` utterances of the first corpus."""
    corpus = open_corpus(run.data.sources[0].path, "train")
    stages = make_stages(run, tokenizer, corpus, sample_indices(corpus, count, run.seed))
    taken = medians(time_in_turns(stages.actions, ROUNDS))
    audio = {name: stages.packed if name == "pack" else stages.audio for name in taken}
    cost = {name: taken[name] / audio[name] for name in taken}
    return {
        name: {
            "audio_seconds_per_second": 1 / cost[name],
            "share": cost[name] / sum(cost.values()),
            "seconds": taken[name],
            "utterances": stages.utterances,
        }
        for name in taken
    }


def _pipeline_figures(
    run: Run, tokenizer: Tokenizer, workers: int, threads: int, seconds: float
) -> dict[str, Any]:
    """The figures of reading for so many seconds with so many processes and threads of each."""
    run = override(run, {"data.workers": workers, "data.threads": threads})
    with contextlib.closing(iter(pipeline.train_batches(run, tokenizer))) as batches:
        for _ in itertools.islice(batches, WARMUP_BATCHES):
            pass
        count = positions = 0
        audio = 0.0
        began, worked = time.perf_counter(), time.process_time() + batches.worker_cpu_seconds
        for batch in batches:
            count += 1
            positions += int((batch.segments > 0).sum())
            audio += float(batch.frames.sum()) * run.mel.hop_seconds
            if time.perf_counter() - began >= seconds:
                break
        passed = time.perf_counter() - began
        worked = time.process_time() + batches.worker_cpu_seconds - worked
    if not count:
        raise Mistake(
            f"data.sources: give {WARMUP_BATCHES} batches or fewer, then end: too few to measure"
        )
    return {
        "workers": workers,
        "threads": threads,
        "seconds": passed,
        "batches": count,
        "batches_per_second": count / passed,
        "audio_seconds_per_second": audio / passed,
        "audio_seconds_per_core_second": audio / worked,
        "cores": worked / passed,
        "filled": positions / (count * run.data.b * run.data.t),
    }
