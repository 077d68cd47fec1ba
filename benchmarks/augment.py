"""What each augmentation costs on one core, beside decoding and mel of the same sound.

    python benchmarks/augment.py --out benchmarks/results/augment.json

Every figure is processor time over that of decoding FLAC and log-mel of 80 bands in the same
round: 0.5 makes an example half as dear again. Each augmentation is applied to every utterance, as
training applies it: with its draws, and with the reading and decoding of its noise or room.
"""

import os

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = "1"  # read when the libraries load: before the imports below
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})

import argparse
from collections.abc import Callable
import json
import pathlib
import statistics
import tempfile
import time

import numpy as np
from support.report import report

from data_pipelines.audio.file_io import decode_audio, to_flac
from data_pipelines.audio.log_mel import normalized_log_mel
from data_pipelines.audio.spec_augment import RandomStreams, augment_mel
from data_pipelines.examples.wave_augment import Effects
from melllm_jax.config.data import Augment, Sounds
from melllm_jax.config.features import Mel
from melllm_jax.features.mel_filters import SAMPLE_RATE

LENGTHS = (1.3, 4.1, 7.7, 12.9, 15.4, 24.7)  # seconds, spread as in read speech
NOISE, ROOM = 10.0, 1.0  # seconds of a noise and of an impulse response, typical of MUSAN and RIRS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", default="", help="JSON file to write the figures to")
    parser.add_argument("--repeats", type=int, default=15, help="rounds (15)")
    arguments = parser.parse_args()
    waves = [voiced(seconds, seed) for seed, seconds in enumerate(LENGTHS)]
    with tempfile.TemporaryDirectory() as folder:
        spent = measured(contestants(waves, pathlib.Path(folder)), arguments.repeats)
    base = "decode FLAC, mel"
    ratios = {
        name: round(
            statistics.median(a / b for a, b in zip(spent[name], spent[base], strict=True)), 3
        )
        for name in spent
        if name != base
    }
    seconds = sum(LENGTHS)
    figures = {
        "audio_seconds": seconds,
        "repeats": arguments.repeats,
        "cores": 1,
        "audio_seconds_a_second_decode_and_mel": round(seconds / statistics.median(spent[base])),
        "cost_over_decode_and_mel": ratios,
    }
    report("cost of each augmentation", figures, arguments.out, ("numpy", "scipy", "soxr"))


def contestants(waves: list[np.ndarray], folder: pathlib.Path) -> dict[str, Callable[[], object]]:
    """What is timed, each over all the waves."""
    noises = written(folder / "noises", [voiced(NOISE, seed) for seed in range(50, 58)])
    decay = np.exp(-np.arange(int(ROOM * SAMPLE_RATE)) / 2000).astype(np.float32)
    rooms = written(folder / "rooms", [voiced(ROOM, seed) * decay for seed in range(60, 68)])
    on_sound = {
        "speed": {"speed": 1.0, "speeds": (0.9, 1.1)},  # 1.0 costs nothing
        "reverb": {"reverb": 1.0, "rooms": Sounds(rooms)},
        "noise": {"noise": 1.0, "noises": Sounds(noises)},
        "volume": {"volume": 1.0},
    }
    on_mel = {"warp": {"warp": 1.0}, "mask": {"mask": 1.0}, "shift": {"shift": 7}}
    flacs = [to_flac(wave) for wave in waves]
    mels = [normalized_log_mel(wave, Mel()) for wave in waves]
    rng = np.random.default_rng(0)

    def changed(fields: dict) -> Callable[[], object]:
        effects = Effects(Augment(**fields))
        return lambda: [effects(wave, RandomStreams(rng)) for wave in waves]

    def changed_mel(fields: dict) -> Callable[[], object]:
        return lambda: [augment_mel(mel, Augment(**fields), RandomStreams(rng)) for mel in mels]

    return {
        "decode FLAC, mel": lambda: [
            normalized_log_mel(decode_audio(flac), Mel()) for flac in flacs
        ],
        **{name: changed(fields) for name, fields in on_sound.items()},
        **{name: changed_mel(fields) for name, fields in on_mel.items()},
    }


def measured(timed: dict[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Processor seconds of each, round by round, after one to warm up."""
    spent: dict[str, list[float]] = {name: [] for name in timed}
    for turn in range(repeats + 1):
        for name, call in timed.items():
            start = time.process_time()
            call()
            if turn:
                spent[name].append(time.process_time() - start)
    return spent


def written(folder: pathlib.Path, waves: list[np.ndarray]) -> str:
    """A corpus of these sounds: the folder of its manifest."""
    folder.mkdir()
    rows = []
    for number, wave in enumerate(waves):
        (folder / f"{number}.flac").write_bytes(to_flac(wave))
        row = {"audio_filepath": f"{number}.flac", "duration": wave.size / SAMPLE_RATE}
        rows.append(row | {"text": "", "speaker": "", "id": str(number)})
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder)


def voiced(seconds: float, seed: int) -> np.ndarray:
    """Sound that FLAC packs about as it packs speech: low-passed noise under a slow envelope."""
    rng = np.random.default_rng(seed)
    walk = rng.standard_normal(int(seconds * SAMPLE_RATE))
    smooth = np.convolve(walk, np.hanning(12), mode="same")
    envelope = np.sin(np.arange(walk.size) / SAMPLE_RATE * 2 * np.pi * 2.5) ** 2
    return (0.03 * smooth * envelope).astype(np.float32)


if __name__ == "__main__":
    main()
