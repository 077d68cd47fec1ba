"""Sound files damaged at random, as disks, downloads and people damage them."""

import io
import json

import numpy as np
import soundfile

from melllm_jax.features.mel_filters import SAMPLE_RATE

KINDS = {
    "flac": ("FLAC", "PCM_16"),
    "wav": ("WAV", "PCM_16"),
    "float.wav": ("WAV", "FLOAT"),
    "mp3": ("MP3", "MPEG_LAYER_III"),
    "ogg": ("OGG", "VORBIS"),
    "opus": ("OGG", "OPUS"),
}
DAMAGES = ("bits", "many bits", "cut", "empty", "text", "zeros", "header", "joined")
SECONDS = 0.8


def speech(rng):
    """Something with the level and the gaps of speech."""
    samples = int(SAMPLE_RATE * SECONDS)
    loud = np.repeat(rng.uniform(0, 0.3, 16), samples // 16)
    return (loud * rng.standard_normal(loud.size)).clip(-0.9, 0.9).astype(np.float32)


def encoded(kind, wave):
    stream = io.BytesIO()
    container, subtype = KINDS[kind]
    soundfile.write(stream, wave, SAMPLE_RATE, format=container, subtype=subtype)
    return stream.getvalue()


def damaged(content, how, rng):
    """The bytes of a file, damaged."""
    spoiled = bytearray(content)
    if how in ("bits", "many bits", "header"):
        count = {"bits": 1, "many bits": 200, "header": 3}[how]
        last = min(64, len(spoiled)) if how == "header" else len(spoiled)
        for place in rng.integers(0, last, count):
            spoiled[place] ^= 1 << rng.integers(8)
    elif how == "cut":
        del spoiled[rng.integers(1, len(spoiled)) :]
    elif how == "empty":
        spoiled.clear()
    elif how == "text":
        spoiled = bytearray(b"this was said here, but nobody recorded it\n" * 40)
    elif how == "zeros":
        start = rng.integers(len(spoiled))
        stop = min(start + 4096, len(spoiled))
        spoiled[start:stop] = bytes(stop - start)
    elif how == "joined":
        half = len(spoiled) // 2
        spoiled = spoiled[: rng.integers(1, half)] + spoiled[rng.integers(half, len(spoiled)) :]
    return bytes(spoiled)


def write_damaged(folder, count, seed):
    """`count` damaged files and their manifest: what was done to each, by id."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    whole = {kind: [encoded(kind, speech(rng)) for _ in range(4)] for kind in KINDS}
    lines, done = [], {}
    for number in range(count):
        kind = list(KINDS)[number % len(KINDS)]
        how = DAMAGES[rng.integers(len(DAMAGES))]
        name = f"{number:04d}.{kind}"
        (folder / name).write_bytes(damaged(whole[kind][rng.integers(4)], how, rng))
        row = {"id": name, "audio_filepath": name, "text": f"number {number}", "speaker": "x"}
        lines.append(json.dumps(row | {"duration": SECONDS, "source": kind}) + "\n")
        done[name] = how
    (folder / "train.jsonl").write_text("".join(lines))
    return done
