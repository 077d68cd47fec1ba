"""Shards to packed batches on one core, beside lhotse's decoding and Fbank of the same files.

    python benchmarks/data.py DATA --split train --out benchmarks/results/data.json

DATA is a folder of manifests of 16 kHz sound. Its utterances are prepared twice, as FLAC and as
ready mel of 80 bands, and read through the whole chain of training: shuffled, tokenised, packed,
batched. lhotse decodes the FLAC of the same utterances, from memory, and makes its Fbank: nothing
is packed. All take turns in rounds; figures are audio seconds a second of one core, medians. The
process ties itself to one core and its libraries to one thread before they load. With --cores 2
the chain alone is measured: in this process on one core, and made by one and by two processes on
two cores. Figures of a second of a core are beside: other work on the machine changes them less.
"""

import os
import sys

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = "1"  # read when the libraries load: before the imports below
CORES = 2 if "--cores" in sys.argv and sys.argv[sys.argv.index("--cores") + 1] == "2" else 1
MINE = sorted(os.sched_getaffinity(0))[:CORES]
os.sched_setaffinity(0, MINE)

import argparse
from collections.abc import Callable, Sequence
import contextlib
import pathlib
import tempfile
import time

import lhotse
import numpy as np
from support.report import report
import torch

from data_pipelines.audio.file_io import to_flac
from data_pipelines.corpora.corpus import load_utterance_wave, open_corpus
from data_pipelines.loader import pipeline
from data_pipelines.loader.lanes import LanesIterator
from data_pipelines.text.load_tokenizer import load_tokenizer
from launch.bench.timing import medians
from launch.cli import main as melllm
from launch.runtime import malloc
from melllm_jax.config.data import Data, Source
from melllm_jax.config.features import Mel
from melllm_jax.config.model import Model
from melllm_jax.config.run import Optim, Run
from melllm_jax.features.mel_filters import SAMPLE_RATE

MODEL = Model(d=8, n=1, k=1, h=8, f=8, l=1, v=300)  # never built: a run has one
HOP = Mel().hop_seconds
STORES = ("flac", "mel")
AHEAD = 2  # batches


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data", help="folder of SPLIT.jsonl manifests")
    parser.add_argument("--split", default="train")
    parser.add_argument("--most", type=float, default=3600.0, help="seconds of audio for lhotse")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=3.0, help="of reading in each turn")
    parser.add_argument("--cores", type=int, choices=(1, 2), default=1)
    parser.add_argument("--out", default="")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    malloc.keep_freed_memory()  # as `melllm train` does
    with tempfile.TemporaryDirectory() as scratch, contextlib.ExitStack() as opened:
        turns: dict[str, Callable[[], float]] = {}
        work: dict[str, list[float]] = {}
        for store in STORES:
            folder = prepared(arguments.data, store, pathlib.Path(scratch))
            for workers in range(3 if arguments.cores == 2 else 1):
                cores = MINE if workers else MINE[:1]
                os.sched_setaffinity(0, cores)
                run = packed(folder, workers)
                batches = iter(
                    pipeline.train_batches(run, load_tokenizer("bytes"), split=arguments.split)
                )
                opened.enter_context(contextlib.closing(batches))
                name = f"ours from {store}" + ("", ", 1 process", ", 2 processes")[workers]
                turns[name] = speed(batches, arguments.seconds, cores, work.setdefault(name, []))
        if arguments.cores == 1:
            flacs = of_one_rate(arguments.data, arguments.split, arguments.most)
            turns |= lhotses(flacs)
        taken: dict[str, list[float]] = {name: [] for name in turns}
        for turn in range(arguments.rounds + 1):
            for name, once in turns.items():
                quiet()
                figure = once()
                if turn:
                    taken[name].append(figure)
    report(
        "shards to packed batches: audio seconds a second",
        {
            "cores": arguments.cores,
            "audio_seconds_per_second": medians(taken),
            "slowest": {name: min(values) for name, values in taken.items()},
            "fastest": {name: max(values) for name, values in taken.items()},
            "audio_seconds_per_core_second": medians(work),
            **ratios(medians(taken)),
            "rounds": arguments.rounds,
        },
        arguments.out,
        ("numpy", "scipy", "soundfile", "grain", "array_record", "lhotse", "torch"),
    )


def prepared(data: str, store: str, scratch: pathlib.Path) -> pathlib.Path:
    """The corpus as shards."""
    folder = scratch / store
    words = ["prepare", data, "--out", str(folder), "--store", store, "--bad", "0.5"]
    if status := melllm(words):
        raise SystemExit(status)
    return folder


def packed(folder: pathlib.Path, workers: int) -> Run:
    """A run over the shards, as the presets have their data: rows of 4,096 positions.

    Of local files, who packs reads fastest: there are no threads beside.
    """
    source = Source(str(folder))
    data = Data(t=4096, b=8, sources=(source,), workers=workers, threads=0, ahead=AHEAD)
    return Run(
        name="bench", model=MODEL, data=data, optim=Optim(steps=1), mel=Mel(normalize="utterance")
    )


def speed(
    batches: LanesIterator, seconds: float, cores: Sequence[int], work: list[float]
) -> Callable[[], float]:
    """A turn of reading, as audio seconds a second; what was made ahead of it does not count.

    Those a second of a core are added to `work`.
    """

    def once() -> float:
        os.sched_setaffinity(0, cores)
        for _ in range(AHEAD + 1):
            next(batches)
        worked = time.process_time() + batches.worker_cpu_seconds
        audio, began = 0.0, time.perf_counter()
        while (passed := time.perf_counter() - began) < seconds:
            audio += float(next(batches).frames.sum()) * HOP
        work.append(audio / (time.process_time() + batches.worker_cpu_seconds - worked))
        return audio / passed

    return once


def quiet() -> None:
    """Wait until no thread of this process or of those that it started is at work.

    Batches are made ahead in their own.
    """
    while True:
        worked = at_work()
        time.sleep(0.1)
        if at_work() - worked < 0.005:
            return


def at_work() -> float:
    """Seconds of cores taken by this process and those that it started."""
    listed = pathlib.Path("/proc/self/task").glob("*/children")
    found = [pid for path in listed for pid in path.read_text().split()]
    told = [pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2] for pid in found]
    ticks = sum(int(word) for line in told for word in line.split()[11:13])
    return time.process_time() + ticks / os.sysconf("SC_CLK_TCK")


def of_one_rate(data: str, split: str, most: float) -> list[tuple[bytes, float]]:
    """(FLAC at 16 kHz, seconds) of the first utterances of a split."""
    corpus, found, total = open_corpus(data, split), [], 0.0
    for index in range(len(corpus)):
        wave = load_utterance_wave(corpus[index])
        found.append((to_flac(wave), wave.size / SAMPLE_RATE))
        total += wave.size / SAMPLE_RATE
        if total >= most:
            break
    return found


def lhotses(flacs: list[tuple[bytes, float]]) -> dict[str, Callable[[], float]]:
    """lhotse's turns: decoding and Fbank, and decoding alone."""
    recordings = [
        lhotse.Recording.from_bytes(flac, f"{number}") for number, (flac, _) in enumerate(flacs)
    ]
    seconds = sum(length for _, length in flacs)
    fbank = lhotse.Fbank(lhotse.FbankConfig(num_mel_bins=80))

    def timed(action: Callable[[lhotse.Recording], object]) -> Callable[[], float]:
        def once() -> float:
            began = time.perf_counter()
            for recording in recordings:
                action(recording)
            return seconds / (time.perf_counter() - began)

        return once

    def features(recording: lhotse.Recording) -> np.ndarray:
        return np.asarray(fbank.extract(recording.load_audio(), SAMPLE_RATE))

    return {
        "lhotse decode + Fbank": timed(features),
        "lhotse decode": timed(lambda recording: recording.load_audio()),
    }


def ratios(speeds: dict[str, float]) -> dict[str, float]:
    """What is to be told: ours over theirs, and two processes over one and over the chain here."""
    found = {}
    if theirs := speeds.get("lhotse decode + Fbank"):
        found |= {f"{store}_over_lhotse": speeds[f"ours from {store}"] / theirs for store in STORES}
    for store in STORES:
        if two := speeds.get(f"ours from {store}, 2 processes"):
            found[f"{store}_two_over_one"] = two / speeds[f"ours from {store}, 1 process"]
            found[f"{store}_two_over_one_core"] = two / speeds[f"ours from {store}"]
    return found


if __name__ == "__main__":
    main()
