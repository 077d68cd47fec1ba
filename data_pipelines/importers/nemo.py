"""NeMo's manifests: JSON lines with audio_filepath, text or text_filepath, duration and more.

Of the rest `offset`, `speaker`, `lang` and `id` are taken. SOURCE is a manifest or a folder of them
(*.json, *.jsonl); NAME_manifest.json is the split NAME. Paths are relative to the manifest. An id
that is not there is made of the path and the offset.
"""

from collections.abc import Iterator
import os

from etils import epath

from data_pipelines.importers.rows import Options, Row, chosen, fields, lines, number, row
from melllm_jax.errors import Fault, Mistake

_SUFFIXES = (".json", ".jsonl")


def splits(source: epath.Path, options: Options) -> dict[str, Iterator[Row]]:
    """Rows of every manifest."""
    held = [source] if source.is_file() else sorted(source.iterdir())
    found = {path.stem.removesuffix("_manifest"): path for path in held if path.suffix in _SUFFIXES}
    if not found:
        raise Mistake(f"source={source}: has no manifest: *.json or *.jsonl")
    return {name: _rows(found[name], options) for name in chosen(found, options, source)}


def _rows(path: epath.Path, options: Options) -> Iterator[Row]:
    for count, line in lines(path):
        where = f"{path}:{count}"
        told = fields(line, where)
        if "shard_id" in told:
            rule = "is tarred: give the manifest that the tars were made from"
            raise Mistake(f"{where}: shard_id={told['shard_id']}: {rule}")
        name = told.get("audio_filepath")
        if not isinstance(name, str) or not name:
            raise Mistake(f"{where}: audio_filepath={name!r}: must be a path")
        offset = number(told.get("offset"), "offset", where)
        made = name.rpartition(".")[0] or name
        yield row(
            str(told.get(options.id or "id") or (made if offset is None else f"{made}@{offset:g}")),
            _text(told, path, options, where),
            epath.Path(name) if "://" in name else path.parent / name,
            seconds=number(told.get("duration"), "duration", where),
            offset=offset,
            speaker=_word(told.get("speaker")),
            language=_word(told.get("lang") or told.get("source_lang")),
        )


def _text(told: Row, path: epath.Path, options: Options, where: str) -> str:
    field = options.text or "text"
    if field in told:
        return _word(told[field])
    if "text_filepath" not in told:
        raise Mistake(f"{where}: lacks {field} or text_filepath: has {', '.join(told)}")
    beside = path.parent / _word(told["text_filepath"])
    try:
        return beside.read_text().strip()
    except (FileNotFoundError, UnicodeDecodeError, IsADirectoryError) as error:
        raise Mistake(f"{where}: text_filepath={os.fspath(beside)}: is no text: {error}") from error
    except OSError as error:
        raise Fault(f"{beside}: cannot be read: {error}") from error


def _word(value: object) -> str:
    return "" if value is None else str(value)
