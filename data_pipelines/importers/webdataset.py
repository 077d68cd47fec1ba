"""WebDataset: tars whose members KEY.flac, KEY.txt, KEY.json, one after the other, are one sample.

SOURCE is a tar or a folder of them. A split is the folder of its tars (train/*.tar), or where they
lie in SOURCE itself what their names begin with (train-000000.tar). Nothing is copied: a row says
which bytes of the tar are the sound. The text is in KEY.txt, or a field of KEY.json; where it is in
another KEY.X.txt, the option `text` is X.txt.
"""

from collections.abc import Iterator, Mapping, Sequence
import dataclasses
import re
import tarfile
from typing import Any

from etils import epath

from data_pipelines.corpora.audio_reference import describe_location
from data_pipelines.corpora.utterance import AudioReference
from data_pipelines.importers.manifest_row import (
    SOUND_SUFFIXES,
    ImportOptions,
    ManifestRow,
    find_files,
    make_row,
    parse_json_object,
    parse_seconds,
    parse_words,
    select_splits,
)
from melllm_jax import files
from melllm_jax.errors import Fault, Mistake

_NUMBER = re.compile(r"[-_.]?\d+$")
_PACKED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
_TEXTS = ("text", "sentence", "transcription", "transcript")


@dataclasses.dataclass
class _Sample:
    """The members of one key, in the order of the tar."""

    key: str
    location: AudioReference | None = None
    stem: str = ""  # of the sound's kind: "left" of KEY.left.flac
    words: dict[str, str] = dataclasses.field(default_factory=dict)  # of each .txt and .json


def read_splits(source: epath.Path, options: ImportOptions) -> dict[str, Iterator[ManifestRow]]:
    """Rows of every split, of all its tars in order of their names."""
    held = [source] if source.is_file() else find_files(source, (".tar", *_PACKED))
    found: dict[str, list[epath.Path]] = {}
    for path in held:
        if path.name.endswith(_PACKED):
            raise Mistake(f"{path}: is compressed, so that no sound in it can be found: unpack it")
        home = "" if path.parent in (source, source.parent) else path.parent.name
        found.setdefault(home or _NUMBER.sub("", path.stem) or source.stem, []).append(path)
    if not found:
        raise Mistake(f"source={source}: has no .tar")
    return {name: _rows(found[name], options) for name in select_splits(found, options, source)}


def _rows(paths: Sequence[epath.Path], options: ImportOptions) -> Iterator[ManifestRow]:
    for path in paths:
        for sample in _samples(path):
            yield _row(sample, path, options)


def _samples(path: epath.Path) -> Iterator[_Sample]:
    sample = None
    try:
        with path.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                # Else it keeps all it has seen.
                tar.members.clear()  # type: ignore[attr-defined]
                key, kind = _key_and_kind(member.name)
                if not member.isfile() or kind.rpartition(".")[2] not in _KINDS:
                    continue
                if any(map(files.is_litter, member.name.split("/"))):
                    continue
                if sample is not None and sample.key != key:
                    yield sample
                    sample = None
                sample = sample or _Sample(key)
                _add_member(sample, kind, member, tar, path)
            file.seek(tar.offset)  # a header that is cut off would pass for the end
            if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise tarfile.ReadError("it stops without the blocks of zeros that end one")
    except FileNotFoundError as error:
        raise Mistake(f"{path}: is missing") from error
    except (tarfile.TarError, EOFError) as error:
        raise Mistake(f"{path}: is no whole tar: {error}") from error
    except OSError as error:
        raise Fault(f"{path}: cannot be read: {error}") from error
    if sample is not None:
        yield sample


_KINDS = ("txt", "json", *(suffix.removeprefix(".") for suffix in SOUND_SUFFIXES))


def _add_member(
    sample: _Sample, kind: str, member: tarfile.TarInfo, tar: tarfile.TarFile, path: epath.Path
) -> None:
    where = f"{path}, {member.name}"
    if kind.rpartition(".")[2] not in ("txt", "json"):
        if sample.location is not None:
            raise Mistake(f"{where}: {sample.key} has two sounds: needs one")
        sample.location = AudioReference(str(path), start=member.offset_data, size=member.size)
        sample.stem = kind.rpartition(".")[0]
        return
    if kind in sample.words:
        raise Mistake(f"{where}: {sample.key} has two .{kind}: needs one")
    stream = tar.extractfile(member)
    content = stream.read() if stream else b""
    try:
        sample.words[kind] = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise Mistake(f"{where}: is no UTF-8: {error.reason}") from error


def _row(sample: _Sample, path: epath.Path, options: ImportOptions) -> ManifestRow:
    where = f"{path}, {sample.key}"
    if sample.location is None:
        raise Mistake(f"{where}: has text and no sound: {', '.join(SOUND_SUFFIXES)}")
    metadata = _metadata(sample, where)
    speaker = next((f for f in ("speaker", "speaker_id") if metadata.get(f) is not None), "speaker")
    language = next((f for f in ("language", "lang") if metadata.get(f)), "language")
    return make_row(
        f"{path.stem}/{sample.key}",  # keys may start anew in every tar
        _text(sample, metadata, options, where),
        sample.location,
        where=describe_location(sample.location),
        seconds=parse_seconds(metadata.get("duration"), "duration", where),
        speaker=parse_words(metadata.get(speaker), speaker, where),
        language=parse_words(metadata.get(language), language, where),
    )


def _text(sample: _Sample, metadata: Mapping[str, Any], options: ImportOptions, where: str) -> str:
    """The text of a .txt or of a field. Raises Mistake where neither is known to be it."""
    if options.text.endswith(".txt"):
        return sample.words.get(options.text.lower(), "").strip()
    own, others = _members(sample, "txt")
    if own and not options.text:
        return sample.words[own].strip()
    names = (options.text,) if options.text else _TEXTS
    there = sorted((name for name in names if name in metadata), key=lambda n: metadata[n] is None)
    if there:
        return parse_words(metadata[there[0]], there[0], where)
    if others:
        rule = f"has no .txt but .{' and .'.join(others)}: name that of the text by --text"
        raise Mistake(f"{where}: {rule} {others[0]}")
    if metadata:
        rule = f"has no text in {' or '.join(names)}: name it by --text; there are"
        raise Mistake(f"{where}: {rule} {', '.join(metadata)}")
    return ""


def _metadata(sample: _Sample, where: str) -> dict[str, Any]:
    """The fields of the sample's .json. Raises Mistake for several that are not named as it is."""
    own, others = _members(sample, "json")
    if not own and len(others) > 1:
        raise Mistake(f"{where}: has .{' and .'.join(others)}: needs one, or .json by itself")
    kind = own or next(iter(others), "")
    return parse_json_object(sample.words[kind], f"{where}.{kind}") if kind else {}


def _members(sample: _Sample, last: str) -> tuple[str, list[str]]:
    """The kind of the .txt or .json named as the sound, or as the key alone; and all others."""
    kinds = [kind for kind in sample.words if kind.rpartition(".")[2] == last]
    own = next((kind for kind in (f"{sample.stem}.{last}", last) if kind in kinds), "")
    return own, [kind for kind in kinds if kind != own]


def _key_and_kind(name: str) -> tuple[str, str]:
    """Key and kind of a member: up to the first dot of its file name, and from there on."""
    folder, slash, file = name.removeprefix("./").rpartition("/")
    stem, _, kind = file.partition(".")
    return f"{folder}{slash}{stem}", kind.lower()
