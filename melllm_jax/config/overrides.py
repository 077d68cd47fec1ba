"""Changes, writes and reads configs: dotted overrides, JSON, and the hash of a run's identity.

Unknown, missing or ill-typed fields raise Mistake.
"""

from collections.abc import Iterator, Mapping
import dataclasses
import difflib
import functools
import hashlib
import json
import types
import typing
from typing import Any, Literal, TypeVar

from melllm_jax.config.model import FrontSpec, ModelSpec
from melllm_jax.config.run import BaseRun, Run
from melllm_jax.config.validation import require
from melllm_jax.config.vocoder import VocoderSpec
from melllm_jax.config.vocoder_run import VocoderRun
from melllm_jax.config.whisper import WhisperSpec
from melllm_jax.errors import Mistake
from melllm_jax.json_text import parse_json

# Dotted fields of `Run` that were renamed, old name to new: run.json, specs, ledgers and flags that
# were written before are still read.
RENAMED: Mapping[str, str] = types.MappingProxyType(
    {
        "data.bad": "data.max_reject_share",
        "keep.every": "checkpoints.every",
        "keep.last": "checkpoints.last",
        "keep.milestone": "checkpoints.milestone",
        "keep.log": "metrics.every",
        "keep.score": "scoring.every",
    }
)
_OLD_NAMES = {new: old for old, new in RENAMED.items()}
# What run.json says under "kind" of a run that is not `Run`'s, which says nothing.
RUN_KINDS: Mapping[str, type[BaseRun]] = types.MappingProxyType({"vocoder": VocoderRun})

AnyRun = TypeVar("AnyRun", bound=BaseRun)


def override(run: AnyRun, changes: Mapping[str, Any]) -> AnyRun:
    """`run` with the dotted fields of `changes` set: `override(run, {"model.d": 512})`.

    A field's old name sets it too. Raises Mistake for a name that does not exist, with the nearest
    that does, and for a value of another type than the field's.
    """
    names = dict(fields(run))
    tree: dict[str, Any] = {}
    for name, value in with_new_names(changes).items():
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1, cutoff=0.0)
            raise Mistake(f"unknown field {name}={value!r}: did you mean {near[0]}?")
        _set_field(tree, name, value)
    replaced: AnyRun = _replace_fields(run, tree, "")
    return replaced


def with_new_names(changes: Mapping[str, Any]) -> dict[str, Any]:
    """Overrides with each field under the name that it has now.

    Raises Mistake where a field is set by both its old name and its new one.
    """
    twice = [old for old, new in RENAMED.items() if old in changes and new in changes]
    if twice:
        raise Mistake(f"{twice[0]}: is the old name of {RENAMED[twice[0]]}, which is set as well")
    return {RENAMED.get(name, name): value for name, value in changes.items()}


def with_old_names(changes: Mapping[str, Any]) -> dict[str, Any]:
    """Overrides with each field under its first name: what digests on disk were taken of."""
    return {_OLD_NAMES.get(name, name): value for name, value in changes.items()}


def _set_field(tree: dict[str, Any], name: str, value: Any) -> None:
    """Sets a dotted field in nested objects, making those on the way."""
    *parts, last = name.split(".")
    for part in parts:
        tree = tree.setdefault(part, {})
    tree[last] = value


def fields(cfg: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every settable field of a config as (dotted name, value)."""
    for field in ordered_fields(cfg):
        value = getattr(cfg, field.name)
        if dataclasses.is_dataclass(value):
            yield from fields(value, f"{prefix}{field.name}.")
        else:
            yield prefix + field.name, value


def ordered_fields(cfg: Any) -> list[dataclasses.Field[Any]]:
    """The fields of a config as they are written: of a run those of `BaseRun` among its own."""
    order = getattr(cfg, "ORDER", ())
    found = list(dataclasses.fields(cfg))
    return sorted(found, key=lambda field: order.index(field.name)) if order else found


def to_json(cfg: BaseRun | ModelSpec | FrontSpec | WhisperSpec | VocoderSpec) -> str:
    """A run or a spec as indented JSON; `from_json` reads it back equal."""
    names: dict[type, dict[str, str]] = {kind: {"kind": name} for name, kind in RUN_KINDS.items()}
    return json.dumps(names.get(type(cfg), {}) | written_tree(cfg), indent=1) + "\n"


def written_tree(value: Any) -> Any:
    """A dataclass as a JSON tree, without fields that came later and are as before."""
    if dataclasses.is_dataclass(value):
        written = (f for f in ordered_fields(value) if not _is_as_before(f, value))
        return {f.name: written_tree(getattr(value, f.name)) for f in written}
    return [written_tree(item) for item in value] if isinstance(value, tuple) else value


def _is_as_before(field: dataclasses.Field[Any], value: Any) -> bool:
    """Whether a field is marked `LATER` and has its default."""
    return "later" in field.metadata and getattr(value, field.name) == field.default


Kind = TypeVar("Kind", BaseRun, Run, ModelSpec, FrontSpec, WhisperSpec, VocoderSpec)
NAMES: Mapping[type, str] = {
    BaseRun: "run",
    Run: "run",
    ModelSpec: "model",
    FrontSpec: "front",
    WhisperSpec: "whisper",
    VocoderSpec: "vocoder",
}


def from_json(text: str | bytes, kind: type[Kind]) -> Kind:
    """What `to_json` wrote, now or when fields had their old names.

    Of `BaseRun` it is a run of whichever kind the text says. Raises Mistake for unknown, missing
    or ill-typed fields.
    """
    name = NAMES[kind]
    try:
        tree = parse_json(text.removeprefix("\ufeff") if isinstance(text, str) else text)
    except json.JSONDecodeError as error:
        raise Mistake(f"{name}.json is no JSON: {error}") from error
    chosen: type = kind
    if issubclass(kind, BaseRun) and isinstance(tree, dict):
        _rename_fields(tree)
        chosen = _run_kind(tree) if kind is BaseRun else kind
    parsed: Kind = _parse_value(chosen, tree, name)
    return parsed


def _run_kind(tree: dict[str, Any]) -> type[BaseRun]:
    """The class of a parsed run.json, of which its kind is taken out."""
    if "kind" not in tree:
        return Run
    kind = tree.pop("kind")
    known = isinstance(kind, str) and kind in RUN_KINDS
    require("run.kind", repr(kind), known, f"must be one of {', '.join(RUN_KINDS)}, or left out")
    return RUN_KINDS[kind]


def _rename_fields(tree: dict[str, Any]) -> None:
    """Moves the fields of a parsed run.json that stand under old names, in place."""
    for old, new in RENAMED.items():
        part, field = old.split(".")
        group = tree.get(part)
        if isinstance(group, dict) and field in group:
            _set_field(tree, new, group.pop(field))
            if not group:
                del tree[part]


def identity(run: BaseRun) -> str:
    """Hash of what decides the run's result: 16 hexadecimal digits."""
    text = json.dumps(_identity_tree(run), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _identity_tree(value: Any) -> Any:
    """The fields that decide a run's result, as JSON has them."""
    if dataclasses.is_dataclass(value):
        decides = [f for f in dataclasses.fields(value) if f.metadata.get("identity", True)]
        tree = {f.name: _identity_tree(getattr(value, f.name)) for f in decides}
        later = [f for f in decides if "later" in f.metadata]
        as_before = {f.name for f in later if tree[f.name] == _identity_tree(f.default)}
        return {name: part for name, part in tree.items() if name not in as_before}
    return [_identity_tree(item) for item in value] if isinstance(value, tuple) else value


def _replace_fields(cfg: Any, changes: Mapping[str, Any], prefix: str) -> Any:
    """`cfg` with the fields of a tree of changes set."""
    hints = _type_hints(cfg.__class__)
    new = {}
    for name, value in changes.items():
        old = getattr(cfg, name)
        if dataclasses.is_dataclass(old) and isinstance(value, Mapping):
            new[name] = _replace_fields(old, value, f"{prefix}{name}.")
        else:
            new[name] = _parse_value(hints[name], value, prefix + name)
    return dataclasses.replace(cfg, **new)


@functools.cache
def _type_hints(kind: Any) -> Mapping[str, Any]:
    return types.MappingProxyType(typing.get_type_hints(kind))


def _parse_value(kind: Any, value: Any, name: str) -> Any:
    """`value`, as JSON or Python has it, as an instance of the annotation `kind`."""
    if dataclasses.is_dataclass(kind) and type(value) is not kind:
        return _parse_dataclass(kind, value, name)
    origin, options = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        require(
            name, repr(value), value in options, f"must be one of {', '.join(map(str, options))}"
        )
        return value
    if origin is tuple:
        require(name, repr(value), isinstance(value, list | tuple), "must be a list")
        return tuple(_parse_value(options[0], item, name) for item in value)
    if kind is float and type(value) is int:
        return float(value)
    require(name, repr(value), type(value) is kind, f"must be of type {kind.__name__}")
    return value


def _parse_dataclass(kind: Any, value: Any, name: str) -> Any:
    """`value`, an object of fields, as an instance of the dataclass `kind`."""
    require(name, repr(value)[:40], isinstance(value, Mapping), "must be an object of fields")
    hints = _type_hints(kind)
    for key in value:
        if key not in hints:
            near = difflib.get_close_matches(key, hints, n=1, cutoff=0.0)
            raise Mistake(f"{name}.{key}=…: is no field: did you mean {near[0]}?")
    missing = [
        f.name
        for f in dataclasses.fields(kind)
        if f.default is dataclasses.MISSING and f.name not in value
    ]
    require(name, repr(value)[:40], not missing, f"lacks {', '.join(missing)}")
    return kind(
        **{key: _parse_value(hints[key], item, f"{name}.{key}") for key, item in value.items()}
    )
