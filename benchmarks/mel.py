"""Log-mel on one core: ours beside transformers and librosa, in one run on the same sound.

    python benchmarks/mel.py --out benchmarks/results/mel.json

Every figure is audio seconds a second: the median over --repeats rounds, in each of which all
contestants take their turn, so that a slow moment of the machine meets them alike. The process
ties itself to one core and its libraries to one thread before they load. "median" is by the clock
on the wall; "cpu" by the processor's time, which other programs on the core do not use up.
"""

import os

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"):
    os.environ[_name] = "1"  # read when the libraries load: before the imports below
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})

import argparse
from collections.abc import Callable
import datetime
import importlib.metadata
import json
import pathlib
import platform
import statistics
import sys
import time

import librosa
import numpy as np
import torch
import transformers

from data_pipelines.audio.file_io import decode_audio, to_flac
from data_pipelines.audio.log_mel import normalized_log_mel
from melllm_jax.config.features import Mel
from melllm_jax.features.mel_filters import SAMPLE_RATE

LIBRARIES = ("numpy", "scipy", "soundfile", "soxr", "librosa", "transformers", "torch")
LENGTHS = (1.3, 4.1, 7.7, 12.9, 15.4, 24.7)  # seconds, spread as in read speech
OURS = {
    "ours phi4 80": Mel(normalize="none"),
    "ours phi4 80, utterance": Mel(normalize="utterance"),
    "ours whisper 80": Mel("whisper", normalize="none"),
    "ours whisper 128": Mel("whisper", m=128, normalize="none"),
    "ours plain 80": Mel("plain", normalize="none"),
    "ours plain 128": Mel("plain", m=128, normalize="none"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=pathlib.Path, help="JSON file to write the figures to")
    parser.add_argument("--repeats", type=int, default=9, help="rounds (9)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    waves = [voiced(seconds, seed) for seed, seconds in enumerate(LENGTHS)]
    speeds = measured(contestants(waves), sum(map(len, waves)) / SAMPLE_RATE, arguments.repeats)
    report = {
        "audio_seconds_a_second": speeds,
        "against_transformers_phi4": ratio(speeds, "ours phi4 80", "transformers phi4 80"),
        "against_transformers_whisper": ratio(speeds, "ours whisper 80", "transformers whisper 80"),
        "against_librosa": ratio(speeds, "ours plain 80", "librosa 80"),
        "audio_seconds": sum(LENGTHS),
        "repeats": arguments.repeats,
        "cores": 1,
        "load": os.getloadavg()[0],  # 1 or less is a machine to ourselves
        "machine": f"{platform.machine()} {processor()}",
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in LIBRARIES},
        "command": " ".join(["python", *sys.argv]),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    for name, row in speeds.items():
        spread = f"{row['slowest']:8,.0f} to {row['fastest']:7,.0f}"
        line = f"{name:26s} {row['median']:8,.0f}   ({spread})   cpu {row['cpu']:8,.0f}"
        print(line, file=sys.stderr)
    text = json.dumps(report, indent=1) + "\n"
    print(text, end="")
    if arguments.out:
        arguments.out.write_text(text)


def contestants(waves: list[np.ndarray]) -> dict[str, Callable[[], object]]:
    """What is timed, each over all the waves."""
    phi4 = transformers.Phi4MultimodalFeatureExtractor()
    whisper = transformers.WhisperFeatureExtractor()
    unpadded = {"padding": "do_not_pad", "truncation": False}
    constants = {
        "sr": SAMPLE_RATE,
        "n_fft": 512,
        "win_length": 400,
        "hop_length": 160,
        "n_mels": 80,
    }
    flacs = [to_flac(wave) for wave in waves]

    def ours(cfg: Mel) -> Callable[[], object]:
        return lambda: [normalized_log_mel(wave, cfg) for wave in waves]

    return {name: ours(cfg) for name, cfg in OURS.items()} | {
        "transformers phi4 80": lambda: [phi4(wave, sampling_rate=SAMPLE_RATE) for wave in waves],
        "transformers whisper 80": lambda: [
            whisper(wave, sampling_rate=SAMPLE_RATE, **unpadded) for wave in waves
        ],
        "librosa 80": lambda: [
            np.log(np.maximum(librosa.feature.melspectrogram(y=wave, **constants), 1e-6))
            for wave in waves
        ],
        "decode FLAC": lambda: [decode_audio(flac) for flac in flacs],
        "decode FLAC, ours phi4 80": lambda: [
            normalized_log_mel(decode_audio(flac), OURS["ours phi4 80"]) for flac in flacs
        ],
    }


def measured(
    timed: dict[str, Callable[[], object]], seconds: float, repeats: int
) -> dict[str, dict[str, float]]:
    """Speeds of each: median, slowest and fastest round, after one to warm up."""
    wall: dict[str, list[float]] = {name: [] for name in timed}
    cpu: dict[str, list[float]] = {name: [] for name in timed}
    for turn in range(repeats + 1):
        for name, call in timed.items():
            start, start_cpu = time.perf_counter(), time.process_time()
            call()
            if turn:
                cpu[name].append(seconds / (time.process_time() - start_cpu))
                wall[name].append(seconds / (time.perf_counter() - start))
    return {
        name: {
            "median": round(statistics.median(wall[name]), 1),
            "slowest": round(min(wall[name]), 1),
            "fastest": round(max(wall[name]), 1),
            "cpu": round(statistics.median(cpu[name]), 1),
        }
        for name in timed
    }


def ratio(speeds: dict[str, dict[str, float]], ours: str, theirs: str) -> float:
    """How many times faster, in processor time."""
    return round(speeds[ours]["cpu"] / speeds[theirs]["cpu"], 2)


def voiced(seconds: float, seed: int) -> np.ndarray:
    """Sound that FLAC packs about as it packs speech: low-passed noise under a slow envelope."""
    rng = np.random.default_rng(seed)
    walk = rng.standard_normal(int(seconds * SAMPLE_RATE))
    smooth = np.convolve(walk, np.hanning(12), mode="same")
    envelope = np.sin(np.arange(walk.size) / SAMPLE_RATE * 2 * np.pi * 2.5) ** 2
    return (0.03 * smooth * envelope).astype(np.float32)


def processor() -> str:
    """The processor's name, where Linux tells it."""
    file = pathlib.Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


if __name__ == "__main__":
    main()
