"""Small corpora of noise on disk, and runs that read them."""

import functools
import json

from etils import epath
import numpy as np

from data_pipelines.audio.file_io import to_flac
from data_pipelines.examples import asr_example
from melllm_jax.config.data import Data, Source
from melllm_jax.config.features import Mel
from melllm_jax.config.model import Model
from melllm_jax.config.run import Optim, Run

MEL = Mel(kind="plain", m=8)
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def spelled(number):
    """A text of its own for each number: "one two" for 12."""
    return " ".join(WORDS[int(digit)] for digit in str(number))


def write_corpus(folder, count, split="train", first=0, seconds=0.3, changes=None):
    """`count` FLAC files of about `seconds` and their manifest; changes: index → other fields."""
    rng = np.random.default_rng(first)
    (folder / "audio").mkdir(parents=True, exist_ok=True)
    rows = []
    for number in range(first, first + count):
        samples = int(16_000 * seconds * rng.uniform(0.5, 1.5))
        wave = rng.normal(0.0, 0.1, samples).clip(-0.9, 0.9).astype(np.float32)
        (folder / f"audio/{number}.flac").write_bytes(to_flac(wave))
        row = {
            "audio_filepath": f"audio/{number}.flac",
            "text": spelled(number),
            "duration": samples / 16_000,
            "speaker": "noise",
            "id": f"id{number}",
        }
        rows.append(row | (changes or {}).get(number, {}))
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / f"{split}.jsonl").write_text(lines)
    return epath.Path(folder)


def run_over(*folders, weights=None, seed=0, **data):
    """A run over these folders with a small model; other keywords are fields of Data."""
    shares = weights or [1.0] * len(folders)
    sources = tuple(Source(str(f), weight=w) for f, w in zip(folders, shares, strict=True))
    small = {"t": 96, "b": 4, "bins": 2, "threads": 1, "ahead": 1} | data
    return Run(
        name="test",
        model=Model(d=8, n=1, k=1, h=8, f=8, l=1, v=300),
        data=Data(sources=sources, **small),
        optim=Optim(steps=1),
        mel=MEL,
        seed=seed,
    )


def heard_once():
    """A fixture: a file's tests decode each sound and make its mel once, most of a small example.

    For tests of what becomes of examples. Samples, which all then share, cannot be written on.
    """
    load_sound, make_mel, made = asr_example.load_utterance_sound, asr_example.sound_to_mel, {}

    @functools.cache
    def load_once(utterance):
        sound = load_sound(utterance)
        sound.wave.flags.writeable = False
        return sound

    def make_once(sound, cfg, name):
        key = sound.wave.tobytes(), sound.rate, cfg, name
        if key not in made:
            made[key] = make_mel(sound, cfg, name)
        return made[key].copy()

    asr_example.load_utterance_sound, asr_example.sound_to_mel = load_once, make_once
    yield
    asr_example.load_utterance_sound, asr_example.sound_to_mel = load_sound, make_mel
