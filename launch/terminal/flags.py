"""Reads command lines into frozen dataclasses by tyro, and keeps each error to one line.

The flags of a run are the dotted fields of `Run`, so that `--model.d 512`, an override
{"model.d": 512} and run.json are one language. FLAGS lists the few fields that differ on the
command line: the corpora are given by --data, two fields have a shorter second name, and what a run
fills in by itself is no flag.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
import contextlib
import dataclasses
import difflib
import functools
import io
import itertools
import os
import pathlib
import re
from typing import Annotated, Any, TypeVar, cast, get_args

import tyro
from tyro.conf import FlagConversionOff, FlagCreatePairsOff, Suppress, UseAppendAction, arg
from tyro.constructors import (
    ConstructorRegistry,
    PrimitiveConstructorSpec,
    StructConstructorSpec,
    StructTypeInfo,
)

from melllm_jax import files
from melllm_jax.config.data import Data, Sounds, Source, SourceUse
from melllm_jax.config.distillation import Distill
from melllm_jax.config.features import Mel, Text
from melllm_jax.config.overrides import RENAMED
from melllm_jax.config.run import BaseRun, CheckpointIntervals, Init, Mesh, Optim, Run
from melllm_jax.config.vocoder import HifiGan
from melllm_jax.config.vocoder_run import VocoderRun
from melllm_jax.errors import Mistake

Kind = TypeVar("Kind")


def parse_source(text: str) -> Source:
    """The corpus that `DIR`, `DIR=WEIGHT` or `DIR=WEIGHT[:HOURSh][:USE]` names.

    A folder's name may hold "=" as well: the longest folder that exists is meant. Raises Mistake
    for a weight, hours or a use that are none.
    """
    path, equals, share = text.rpartition("=")
    if not equals or os.path.isdir(text.removeprefix("file://")):
        return Source(text)
    weight, *more = share.split(":")
    use: SourceUse = cast(SourceUse, more.pop()) if more and more[-1] in USES else "auto"
    if len(more) > 1 or more and not more[0].endswith("h"):
        wanted = f"hours, such as 10h, or {', '.join(USES[1:])}"
        raise Mistake(f"{text}: what follows : must be {wanted}, not {':'.join(more)!r}")
    try:
        return Source(path, float(weight), hours=float(more[0][:-1]) if more else 0.0, use=use)
    except ValueError as error:
        raise Mistake(
            f"{text}: what follows = must be a positive weight, then :HOURSh or nothing, not "
            f"{share!r}; a folder with = in its name is given as DIR=1: {text}=1"
        ) from error


def format_source(source: Source) -> str:
    """The text that `parse_source` reads back."""
    hours = f":{source.hours:g}h" if source.hours else ""
    use = "" if source.use == "auto" else f":{source.use}"
    return f"{source.path}={source.weight:g}{hours}{use}"


USES = get_args(SourceUse)
SOURCE_FLAG = PrimitiveConstructorSpec(
    nargs=1,
    metavar="DIR[=WEIGHT[:HOURSh][:USE]]",
    instance_from_str=lambda words: parse_source(words[0]),
    is_instance=lambda value: isinstance(value, Source),
    str_from_instance=lambda value: [format_source(value)],
)
FLAGS: Mapping[type, Mapping[str, Any]] = {
    Run: {"name": Annotated[str, Suppress]},
    VocoderRun: {"name": Annotated[str, Suppress]},
    HifiGan: {"dilations": Annotated[tuple[tuple[int, ...], ...], Suppress]},
    Mel: {
        "mean": Annotated[tuple[float, ...], Suppress],
        "invstd": Annotated[tuple[float, ...], Suppress],
    },
    Text: {"digest": Annotated[str, Suppress]},
    Init: {
        "path": Annotated[str, arg(aliases=("--init",), metavar="DIR")],
        "digest": Annotated[str, Suppress],
        "front": Annotated[str, arg(metavar="DIR")],
        "front_digest": Annotated[str, Suppress],
    },
    Distill: {
        "path": Annotated[str, arg(aliases=("--teacher",), metavar="DIR")],
        "digest": Annotated[str, Suppress],
    },
    Data: {
        "sources": Annotated[
            tuple[Annotated[Source, SOURCE_FLAG], ...],
            UseAppendAction,
            arg(
                name="data",
                prefix_name=False,
                metavar="DIR[=WEIGHT[:HOURSh][:USE]]",
                help="folder of shards or of SPLIT.jsonl manifests, its share of the examples "
                "drawn, relative to the others (1 if not said), and how many hours of it to draw "
                "from (all if not said): speech=2:100h; a folder named lang=en is lang=en=1; "
                "then whether it is heard (asr), spoken (tts) or read (text): speech=1:tts",
            ),
        ]
    },
    Sounds: {"digest": Annotated[str, Suppress]},
    Mesh: {
        "topology": Annotated[str, arg(aliases=("--topology",))],
        "slices": Annotated[int, arg(aliases=("--slices",))],
    },
    Optim: {"steps": Annotated[int, arg(aliases=("--steps",))]},
    CheckpointIntervals: {"every": Annotated[int, arg(aliases=("--save-every",))]},
}
REGISTRY = ConstructorRegistry()
FLAGS_APPLIED = object()  # marks a type of which tyro gives the fields, so that FLAGS applies once


@REGISTRY.struct_rule
def run_fields(info: StructTypeInfo) -> StructConstructorSpec | None:
    """The flags of a part of `Run`: tyro's own, except those that FLAGS changes."""
    changes = FLAGS.get(info.type)
    if changes is None or FLAGS_APPLIED in info.markers:
        return None
    plain = dataclasses.replace(info, markers=(*info.markers, FLAGS_APPLIED))
    spec = ConstructorRegistry.get_struct_spec(plain)
    assert isinstance(spec, StructConstructorSpec), f"tyro cannot read {info.type}"
    fields = [dataclasses.replace(f, type=changes.get(f.name, f.type)) for f in spec.fields]
    if order := getattr(info.type, "ORDER", ()):
        fields.sort(key=lambda field: order.index(field.name))
    return dataclasses.replace(spec, fields=tuple(fields))


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunArguments:
    """Base of the arguments of commands on a preset; a command adds its own fields."""

    # --model.scan False, as an override says. The preset says of which kind the run is.
    run: Annotated[Any, arg(name=""), FlagConversionOff]


def parse(
    kind: type[Kind],
    argv: Sequence[str],
    *,
    prog: str,
    default: Kind | None = None,
    description: str | None = None,
) -> Kind:
    """`argv` as an instance of the frozen dataclass `kind`, whose defaults are `default`'s.

    Help comes from the comments on the fields and the docstring of `kind`. `--help` prints it and
    raises SystemExit(0). Raises Mistake, in one line, for anything that cannot be read.
    """
    read = functools.partial(
        tyro.cli,
        kind,
        prog=prog,
        default=tyro.MISSING_NONPROP if default is None else default,
        description=description,
        config=(FlagCreatePairsOff,),
        registry=REGISTRY,
    )
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            return _check_paths(read(args=list(argv)))
    except SystemExit as end:
        if not end.code:
            raise
    sections = _sections(complaint.getvalue())
    unknown = re.search(r"Unrecognized options:\s+(\S+)", " ".join(sections))
    if unknown is None:
        raise Mistake(_reword(sections[0]))
    word = unknown[1].rstrip(",")
    if not word.startswith("-"):
        raise Mistake(f"unexpected argument {word!r}")
    usage = io.StringIO()
    with contextlib.redirect_stdout(usage), contextlib.suppress(SystemExit):
        read(args=["--help"])
    raise Mistake(f"unknown flag {word}: did you mean {_nearest(word, usage.getvalue())}?")


def _check_paths(arguments: Kind) -> Kind:
    """The arguments. Raises Mistake where one that must be on a disk is in a bucket."""
    for name, value in vars(arguments).items():
        if isinstance(value, pathlib.Path):
            files.local_path(name, value)
    return arguments


Runs = TypeVar("Runs", bound=RunArguments)


def run_arguments(
    kind: type[Runs],
    argv: Sequence[str],
    preset: Callable[[str], BaseRun],
    *,
    prog: str,
    presets: Iterable[str],
) -> Runs:
    """`argv` as PRESET and flags: an instance of `kind` whose `run` is the preset, overridden.

    `preset` finds the run of a name and raises Mistake for an unknown one; `presets` are the names
    that help lists. A flag of a field's old name (see RENAMED) is read as the new one. Raises
    Mistake, in one line, for anything that cannot be read.
    """
    if not argv or argv[0] in ("-h", "--help"):
        names = ", ".join(presets)
        if not argv:
            raise Mistake(f"no PRESET given: one of {names}")
        print(
            f"usage: {prog} PRESET [flags]\n\n{kind.__doc__}\n\npresets: {names}\n\n"
            f"`{prog} PRESET --help` lists the flags, with the preset's values."
        )
        raise SystemExit(0)
    if argv[0].startswith("-"):
        raise Mistake(f"PRESET must come first, before {argv[0]}")
    fields = [field for field in dataclasses.fields(kind) if field.name != "run"]
    required = [
        field.name
        for field in fields
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    ]
    run = preset(argv[0])
    default = kind(run=run, **dict.fromkeys(required, tyro.MISSING_NONPROP))
    words = [_with_new_flag(word) for word in argv[1:]]
    return parse(kind, words, prog=f"{prog} {argv[0]}", default=default)


def _with_new_flag(word: str) -> str:
    """A word of a command line; a flag named after a field's old name has its new one."""
    flag, equals, value = word.partition("=")
    new = RENAMED.get(flag.removeprefix("--")) if flag.startswith("--") else None
    return word if new is None else f"--{new}{equals}{value}"


def _sections(box: str) -> list[str]:
    """tyro's complaint without title, frame and line breaks: its sections, the first the error.

    Sections are parted by a rule; where the terminal has no Unicode the frame is hyphens.
    """
    lines = [line.strip("│ ") for line in box.splitlines()[1:]]
    rule = lambda line: not line.strip("─-╰╯")
    return [" ".join(part) for ruled, part in itertools.groupby(lines, rule) if not ruled]


def _nearest(word: str, usage: str) -> str:
    """The flag named in the help `usage` whose spelling comes nearest to `word`."""
    flags = re.findall(r"(?<![\w.-])--[a-z][\w.-]*", usage)
    return difflib.get_close_matches(word.replace("_", "-"), flags, n=1, cutoff=0.0)[0]


def _reword(complaint: str) -> str:
    """tyro's complaint without the words that a message of ours does not need."""
    text = re.sub(r"^Missing from .*?: (?=\S)", "missing ", " ".join(complaint.split()))
    # A rule of the config names its field itself: only a flag's name adds to it.
    return re.sub(r"^Error parsing (?:(?!-)\S+: )?", "", text)
