"""NeMo's manifests: JSON lines with audio_filepath, text or text_filepath, duration and more.

Of the rest `offset`, `speaker`, `lang` and `id` are taken. SOURCE is a manifest or a folder of them
(*.json, *.jsonl); NAME_manifest.json is the split NAME. Paths are relative to the manifest. An id
that is not there is made of the path and the offset.
"""

from collections.abc import Iterator
import os

from etils import epath

from data_pipelines.importers.manifest_row import (
    ImportOptions,
    ManifestRow,
    make_row,
    parse_json_object,
    parse_seconds,
    read_lines,
    select_splits,
)
from melllm_jax.errors import Fault, Mistake

_SUFFIXES = (".json", ".jsonl")


def read_splits(source: epath.Path, options: ImportOptions) -> dict[str, Iterator[ManifestRow]]:
    """Rows of every manifest."""
    held = [source] if source.is_file() else sorted(source.iterdir())
    found = {path.stem.removesuffix("_manifest"): path for path in held if path.suffix in _SUFFIXES}
    if not found:
        raise Mistake(f"source={source}: has no manifest: *.json or *.jsonl")
    return {name: _rows(found[name], options) for name in select_splits(found, options, source)}


def _rows(path: epath.Path, options: ImportOptions) -> Iterator[ManifestRow]:
    for count, line in read_lines(path):
        where = f"{path}:{count}"
        fields = parse_json_object(line, where)
        if "shard_id" in fields:
            rule = "is tarred: give the manifest that the tars were made from"
            raise Mistake(f"{where}: shard_id={fields['shard_id']}: {rule}")
        name = fields.get("audio_filepath")
        if not isinstance(name, str) or not name:
            raise Mistake(f"{where}: audio_filepath={name!r}: must be a path")
        offset = parse_seconds(fields.get("offset"), "offset", where)
        made = name.rpartition(".")[0] or name
        yield make_row(
            str(
                fields.get(options.id or "id") or (made if offset is None else f"{made}@{offset:g}")
            ),
            _text(fields, path, options, where),
            epath.Path(name) if "://" in name else path.parent / name,
            seconds=parse_seconds(fields.get("duration"), "duration", where),
            offset=offset,
            speaker=_word(fields.get("speaker")),
            language=_word(fields.get("lang") or fields.get("source_lang")),
        )


def _text(fields: ManifestRow, path: epath.Path, options: ImportOptions, where: str) -> str:
    field = options.text or "text"
    if field in fields:
        return _word(fields[field])
    if "text_filepath" not in fields:
        raise Mistake(f"{where}: lacks {field} or text_filepath: has {', '.join(fields)}")
    beside = path.parent / _word(fields["text_filepath"])
    try:
        return beside.read_text().strip()
    except (FileNotFoundError, UnicodeDecodeError, IsADirectoryError) as error:
        raise Mistake(f"{where}: text_filepath={os.fspath(beside)}: is no text: {error}") from error
    except OSError as error:
        raise Fault(f"{beside}: cannot be read: {error}") from error


def _word(value: object) -> str:
    return "" if value is None else str(value)
