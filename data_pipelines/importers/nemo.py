"""NeMo's manifests: JSON lines with audio_filepath, text or text_filepath, duration and more.

Of the rest `offset`, `channel`, `speaker`, `lang` and `id` are taken. SOURCE is a manifest or a
folder of them (*.json, *.jsonl); NAME_manifest.json is the split NAME. Paths are relative to the
manifest. An id that is not there is made of the path and the offset, and of the number of the line
where an earlier line has these.
"""

from collections.abc import Iterator
import os

from etils import epath

from data_pipelines.corpora.manifest import locate_audio
from data_pipelines.importers.manifest_row import (
    ImportOptions,
    ManifestRow,
    make_row,
    parse_json_object,
    parse_seconds,
    parse_words,
    read_lines,
    select_splits,
)
from melllm_jax import files
from melllm_jax.errors import Fault, Mistake

_SUFFIXES = (".json", ".jsonl")


def read_splits(source: epath.Path, options: ImportOptions) -> dict[str, Iterator[ManifestRow]]:
    """Rows of every manifest."""
    held = [source] if source.is_file() else files.list_folder(source)
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
        own = parse_words(fields.get(options.id or "id"), options.id or "id", where)
        language = next((f for f in ("lang", "source_lang") if fields.get(f)), "lang")
        yield make_row(
            own or (made if offset is None else f"{made}@{offset:.15g}"),
            _text(fields, path, options, where),
            locate_audio(name, path.parent),
            where=where,
            spare="" if own else f"{made}:{count}",
            seconds=parse_seconds(fields.get("duration"), "duration", where),
            offset=offset,
            channel=_channel(fields, where),
            speaker=parse_words(fields.get("speaker"), "speaker", where),
            language=parse_words(fields.get(language), language, where),
        )


def _channel(fields: ManifestRow, where: str) -> int | None:
    """The one channel of a line, counted from 0; None where all are averaged."""
    name = next((f for f in ("channel", "channel_selector") if fields.get(f) is not None), "")
    value = fields.get(name)
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if value is None or value == "average" or value != value:  # NaN: tables lack it
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if type(value) is not int or value < 0:
        rule = "must be one channel, counted from 0, or average"
        raise Mistake(f"{where}: {name}={repr(fields[name])[:40]}: {rule}")
    return value


def _text(fields: ManifestRow, path: epath.Path, options: ImportOptions, where: str) -> str:
    field = options.text or "text"
    if field in fields:
        return parse_words(fields[field], field, where)
    if "text_filepath" not in fields:
        raise Mistake(f"{where}: lacks {field} or text_filepath: has {', '.join(fields)}")
    name = parse_words(fields["text_filepath"], "text_filepath", where)
    beside = files.place(name) if "://" in name else path.parent / name
    try:
        content = beside.read_bytes().decode("utf-8-sig")
        return content.replace("\r\n", "\n").strip()
    except (FileNotFoundError, ValueError, IsADirectoryError) as error:
        raise Mistake(f"{where}: text_filepath={os.fspath(beside)}: is no text: {error}") from error
    except OSError as error:
        raise Fault(f"{beside}: cannot be read: {error}") from error
