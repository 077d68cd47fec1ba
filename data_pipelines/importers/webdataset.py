"""WebDataset: tars whose members KEY.flac, KEY.txt, KEY.json, one after the other, are one sample.

SOURCE is a tar or a folder of them. A split is the folder of its tars (train/*.tar), or where they
lie in SOURCE itself what their names begin with (train-000000.tar). Nothing is copied: a row says
which bytes of the tar are the sound. The text is in KEY.txt, or a field of KEY.json.
"""

from collections.abc import Iterator, Sequence
import dataclasses
import re
import tarfile
from typing import Any

from etils import epath

from data_pipelines.corpora.utterance import AudioReference
from data_pipelines.importers.manifest_row import (
    SOUND_SUFFIXES,
    ImportOptions,
    ManifestRow,
    find_files,
    make_row,
    parse_json_object,
    parse_seconds,
    select_splits,
)
from melllm_jax.errors import Fault, Mistake

_NUMBER = re.compile(r"[-_.]?\d+$")
_PACKED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
_TEXTS = ("text", "sentence", "transcription", "transcript")


@dataclasses.dataclass
class _Sample:
    """The members of one key, in the order of the tar."""

    key: str
    location: AudioReference | None = None
    text: str | None = None
    metadata: dict[str, Any] = dataclasses.field(default_factory=dict)


def read_splits(source: epath.Path, options: ImportOptions) -> dict[str, Iterator[ManifestRow]]:
    """Rows of every split, of all its tars in order of their names."""
    files = [source] if source.is_file() else find_files(source, (".tar", *_PACKED))
    found: dict[str, list[epath.Path]] = {}
    for path in files:
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
    last = kind.rpartition(".")[2]
    if last not in ("txt", "json"):
        if sample.location is not None:
            raise Mistake(f"{where}: {sample.key} has two sounds: needs one")
        sample.location = AudioReference(str(path), start=member.offset_data, size=member.size)
        return
    stream = tar.extractfile(member)
    content = stream.read() if stream else b""
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        raise Mistake(f"{where}: is no UTF-8: {error.reason}") from error
    if last == "txt":
        sample.text = text.strip()
    else:
        sample.metadata = parse_json_object(text, where)


def _row(sample: _Sample, path: epath.Path, options: ImportOptions) -> ManifestRow:
    where, metadata = f"{path}, {sample.key}", sample.metadata
    if sample.location is None:
        raise Mistake(f"{where}: has text and no sound: {', '.join(SOUND_SUFFIXES)}")
    names = (options.text,) if options.text else _TEXTS
    text = sample.text
    if text is None or options.text:
        text = next((str(metadata[name]) for name in names if metadata.get(name) is not None), None)
    if text is None and metadata:
        rule = f"has no text in {' or '.join(names)}: name it by --text; there are"
        raise Mistake(f"{where}: {rule} {', '.join(metadata)}")
    fields = ("speaker", "speaker_id")
    speaker = next((metadata[name] for name in fields if metadata.get(name) is not None), "")
    return make_row(
        f"{path.stem}/{sample.key}",  # keys may start anew in every tar
        text or "",
        sample.location,
        seconds=parse_seconds(metadata.get("duration"), "duration", where),
        speaker=str(speaker),
        language=str(metadata.get("language") or metadata.get("lang") or ""),
    )


def _key_and_kind(name: str) -> tuple[str, str]:
    """Key and kind of a member: up to the first dot of its file name, and from there on."""
    folder, slash, file = name.removeprefix("./").rpartition("/")
    stem, _, kind = file.partition(".")
    return f"{folder}{slash}{stem}", kind.lower()
