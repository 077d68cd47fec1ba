"""Opens corpora on disk, folders of manifests or of prepared shards, for random access.

Opening a corpus checks its form; what a record says of its sound is checked where it is used.
"""

import hashlib

from etils import epath
from jaxtyping import Float32
import numpy as np

from data_pipelines.audio.file_io import decode_sound
from data_pipelines.audio.sound import Sound
from data_pipelines.corpora import audio_reference, shard_index
from data_pipelines.corpora.manifest import MANIFEST_SUFFIX, Manifest, map_file
from data_pipelines.corpora.shard_reader import ShardReader
from data_pipelines.corpora.utterance import Utterance
from data_pipelines.reject import MALFORMED, Unusable
from melllm_jax import files
from melllm_jax.errors import Mistake
from melllm_jax.features.mel_filters import SAMPLE_RATE

Corpus = Manifest | ShardReader


def open_corpus(path: epath.PathLike, split: str, *, skip: bool = False) -> Corpus:
    """The utterances of one split of a folder of manifests or of shards.

    Raises Mistake for what a user can correct, Fault for a shard that is missing or damaged; with
    `skip` only once a record of it is read.
    """
    folder = _folder_with_split(path, split)
    if _is_prepared(folder):
        return ShardReader(folder, shard_index.read_index(folder), split, skip=skip)
    return Manifest(folder / f"{split}{MANIFEST_SUFFIX}")


def split_digest(path: epath.PathLike, split: str) -> str:
    """Hash of a manifest's bytes, or of a split's entry in the index: 16 hexadecimal digits.

    The index has a hash of every shard; a manifest has none of its audio files.
    """
    folder = _folder_with_split(path, split)
    if _is_prepared(folder):
        index = shard_index.read_index(folder)
        text = repr((index.mel, index.splits[split]))
        as_before = text.replace(", telephone='resampled'", "")  # what came later, at its default
        as_before = as_before.replace(", floor=0.0", "")
        return hashlib.sha256(as_before.encode()).hexdigest()[:16]
    return hashlib.sha256(map_file(folder / f"{split}{MANIFEST_SUFFIX}")).hexdigest()[:16]


def list_splits(path: epath.PathLike) -> list[str]:
    """The splits of a folder. Raises Mistake where it holds neither shards nor manifests."""
    folder = files.place(path)
    if not folder.is_dir():
        raise Mistake(f"data={folder}: is no folder")
    if _is_prepared(folder):
        return sorted(shard_index.read_index(folder).splits)
    names = [file.name for file in files.list_folder(folder) if file.name != shard_index.REJECTS]
    if any(shard_index.SHARD_SUFFIX in name for name in names):
        raise Mistake(
            f"data={folder}: has shards but no {shard_index.INDEX}: preparing did not finish"
        )
    found = [name.removesuffix(MANIFEST_SUFFIX) for name in names if name.endswith(MANIFEST_SUFFIX)]
    if not found:
        raise Mistake(
            f"data={folder}: holds neither {shard_index.INDEX} nor SPLIT{MANIFEST_SUFFIX}: write "
            f"a line for each sound into train{MANIFEST_SUFFIX}, or let `melllm data import` do it"
        )
    return found


def load_utterance_wave(utterance: Utterance) -> Float32[np.ndarray, "w"]:
    """Samples at 16 kHz of an utterance, as `load_utterance_sound` reads it."""
    return load_utterance_sound(utterance).at(SAMPLE_RATE).wave


def load_utterance_sound(utterance: Utterance) -> Sound:
    """The sound of an utterance without ready mel, from its offset on if it has one.

    Raises Unusable with a reason, and Fault where the disk, not the file, is at fault.
    """
    if utterance.flaw:
        raise Unusable(MALFORMED, utterance.flaw)
    audio, name = utterance.audio, utterance.id
    if audio is None:
        raise Unusable("missing", f"{name}: has no audio")
    part = None if utterance.offset is None else (utterance.offset, utterance.duration)
    return (
        decode_sound(audio, name, part, utterance.channel)
        if isinstance(audio, bytes)
        else audio_reference.load_sound(audio, part, utterance.channel)
    )


def indices_longest_first(corpus: Corpus) -> list[int]:
    """Indices of `corpus`, longest utterance first, equally long ones in the file's order."""
    return sorted(range(len(corpus)), key=lambda index: -corpus[index].seconds)


def _is_prepared(folder: epath.Path) -> bool:
    return (folder / shard_index.INDEX).exists()


def _folder_with_split(path: epath.PathLike, split: str) -> epath.Path:
    known = list_splits(path)
    if split not in known:
        rule = f"`melllm data import --splits {split}=NAME` gives one that name"
        raise Mistake(f"split={split}: {path} has {', '.join(known)}: {rule}")
    return files.place(path)
