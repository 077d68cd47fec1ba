"""Bring in a corpus of a layout that nobody knows: manifests, shards, and the first batch.

    python examples/custom_importer.py VOICES shards

The layout here is VOICES/SPEAKER/NAME.wav with the text in NAME.txt beside it. Every tenth speaker
is kept for testing. Whatever is wrong with a file is found, counted and named by `prepare`.
"""

from collections.abc import Iterator
import pathlib
import sys

from etils import epath

from launch import api


def rows(speakers: list[pathlib.Path]) -> Iterator[dict]:
    """A row of the manifest for each sound; its length in seconds is read from its header."""
    for speaker in speakers:
        for sound in sorted(speaker.glob("*.wav")):
            transcript = sound.with_suffix(".txt")
            text = transcript.read_text().strip() if transcript.exists() else ""
            name = f"{speaker.name}-{sound.stem}"
            location = epath.Path(sound.absolute())
            yield api.make_row(name, text, location, where=str(sound), speaker=speaker.name)


source, out = map(pathlib.Path, sys.argv[1:3])
speakers = sorted(path for path in source.iterdir() if path.is_dir())
manifests = epath.Path(out / "manifests")
api.write_manifest(manifests, "test", rows(speakers[::10]))
api.write_manifest(manifests, "train", rows([x for x in speakers if x not in speakers[::10]]))

index = api.prepare(manifests, out / "shards")  # 16 kHz FLAC, each utterance checked
for split, shards in index.splits.items():
    print(f"{split}: {sum(shard.count for shard in shards)} utterances")

batch = next(api.batches("digits", out / "shards"))  # what `melllm train digits` would read first
print(f"batch: {batch.tokens.shape} positions, {batch.is_speech.mean():.0%} of them speech")
