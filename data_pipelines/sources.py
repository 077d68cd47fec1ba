"""Utterances on disk as random-access sources: folders of manifests, or of prepared shards.

Opening a source checks its form; what a record says of its sound is checked where it is used.
"""

import hashlib

from etils import epath
from jaxtyping import Float32
import numpy as np

from data_pipelines import containers, shards
from data_pipelines.audio import BadAudio, decode
from data_pipelines.manifest import SUFFIX, Manifest, mapped
from data_pipelines.reader import Shards
from data_pipelines.utterance import Utterance
from melllm_jax.errors import Mistake

Corpus = Manifest | Shards


def open_source(path: epath.PathLike, split: str, *, skip: bool = False) -> Corpus:
    """The utterances of one split of a folder of manifests or of shards.

    Raises Mistake for what a user can set right, Fault for a shard that is missing or damaged;
    with `skip` not before a record of it is read.
    """
    folder = _folder_with(path, split)
    if _is_prepared(folder):
        return Shards(folder, shards.read_index(folder), split, skip=skip)
    return Manifest(folder / f"{split}{SUFFIX}")


def digest(path: epath.PathLike, split: str) -> str:
    """Hash of a manifest's bytes, or of what the index says of a split: 16 hexadecimal digits.

    The index holds a hash of every shard; a manifest says nothing of what is in its audio files.
    """
    folder = _folder_with(path, split)
    if _is_prepared(folder):
        index = shards.read_index(folder)
        text = repr((index.mel, index.splits[split])).encode()
        return hashlib.sha256(text).hexdigest()[:16]
    return hashlib.sha256(mapped(folder / f"{split}{SUFFIX}")).hexdigest()[:16]


def splits(path: epath.PathLike) -> list[str]:
    """Names of the splits of a folder. Raises Mistake where it is none of shards or manifests."""
    folder = epath.Path(path)
    if not folder.is_dir():
        raise Mistake(f"data={folder}: is no folder")
    if _is_prepared(folder):
        return sorted(shards.read_index(folder).splits)
    names = sorted(file.name for file in folder.iterdir() if file.name != shards.REJECTS)
    if any(shards.SUFFIX in name for name in names):
        raise Mistake(f"data={folder}: has shards but no {shards.INDEX}: preparing did not finish")
    found = [name.removesuffix(SUFFIX) for name in names if name.endswith(SUFFIX)]
    if not found:
        raise Mistake(f"data={folder}: holds neither {shards.INDEX} nor SPLIT{SUFFIX}")
    return found


def sound(utterance: Utterance) -> Float32[np.ndarray, "w"]:
    """Samples at 16 kHz of an utterance that has no ready mel, from its offset on where it has one.

    Raises BadAudio with a reason, and Fault where the disk, not the file, is at fault.
    """
    audio, name = utterance.audio, utterance.id
    if audio is None:
        raise BadAudio("missing", f"{name}: has no audio")
    part = None if utterance.offset is None else (utterance.offset, utterance.duration)
    return decode(audio, name, part) if isinstance(audio, bytes) else containers.wave(audio, part)


def by_length(corpus: Corpus) -> list[int]:
    """Indices of `corpus`, longest utterance first, equal ones in order of file."""
    return sorted(range(len(corpus)), key=lambda index: -corpus[index].duration)


def _is_prepared(folder: epath.Path) -> bool:
    return (folder / shards.INDEX).exists()


def _folder_with(path: epath.PathLike, split: str) -> epath.Path:
    known = splits(path)
    if split not in known:
        raise Mistake(f"split={split}: {path} has {', '.join(known)}")
    return epath.Path(path)
