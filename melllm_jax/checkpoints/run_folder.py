"""Keeps a run's folder for one run alone, and reads the run or model that it belongs to.

run.json  checkpoints/  metrics.jsonl  tensorboard/  tokenizer/  eval/  samples/  claims/

An imported checkpoint is such a folder with `model.json` in place of `run.json`, and no metrics; an
imported Whisper one with `whisper.json`, its encoder alone one with `front.json`, a vocoder one
with `vocoder.json`.
"""

from collections.abc import Iterator
import dataclasses
from typing import Any

from etils import epath

from melllm_jax import files
from melllm_jax.config.model import FrontSpec, ModelSpec
from melllm_jax.config.overrides import from_json, identity, ordered_fields, to_json
from melllm_jax.config.run import BaseRun, Run
from melllm_jax.config.vocoder import VocoderSpec
from melllm_jax.config.vocoder_run import VocoderRun
from melllm_jax.config.whisper import WhisperSpec
from melllm_jax.errors import Mistake

RUN, SPEC, CHECKPOINTS, TOKENIZER = "run.json", "model.json", "checkpoints", "tokenizer"
FRONT, WHISPER, VOCODER = "front.json", "whisper.json", "vocoder.json"


def claim(workdir: str, run: BaseRun) -> None:
    """Make `workdir` this run's folder, or check that it already is.

    Raises Mistake where it belongs to a run of another identity, and touches nothing in it then, or
    is on no disk: metrics are appended to, which no bucket does.
    Raises Fault where it cannot be written.
    """
    check(workdir, run)
    files.write_text(epath.Path(workdir) / RUN, to_json(run))


def check(workdir: str, run: BaseRun) -> None:
    """Raises Mistake where `claim` would; writes nothing."""
    if "://" in workdir:
        raise Mistake(f"workdir={workdir}: a run writes to a disk: mount the bucket, and name that")
    if (epath.Path(workdir) / RUN).exists():
        _check_same_run(workdir, run)


def verify_claim(workdir: str, run: BaseRun) -> None:
    """Check that another host has made `workdir` this run's folder.

    Raises Mistake where that host trains another run, or in a folder that is not seen from here.
    """
    if not (files.place(workdir) / RUN).exists():
        raise Mistake(f"workdir={workdir}: not what process 0 writes to: all hosts must share it")
    _check_same_run(workdir, run)


def _check_same_run(workdir: str, run: BaseRun) -> None:
    """Raises Mistake for another run; its mixture may change, but not what a corpus holds."""
    other = read_any_run(workdir)
    own, there = dict(_unchangeable_fields(run, other)), dict(_unchangeable_fields(other, run))
    if own != there:
        names = [n for n in own | there if own.get(n) != there.get(n)]
        differ = [f"{n}={own.get(n)} (it has {there.get(n)})" for n in names]
        raise Mistake(
            f"workdir={workdir}: belongs to run {identity(other)}, not "
            f"{identity(run)}; they differ in {', '.join(differ)}"
        )


def read_run(workdir: str) -> Run:
    """The run of a decoder whose folder this is. Raises Mistake where it is none."""
    run = read_any_run(workdir)
    if not isinstance(run, Run):
        raise Mistake(
            f"run={workdir}: holds a vocoder, which makes sound of mel and has no decoder"
        )
    return run


def read_any_run(workdir: str) -> BaseRun:
    """The run whose folder this is, of whatever kind. Raises Mistake where it is none."""
    path = files.place(workdir) / RUN
    if not path.exists():
        raise Mistake(f"run={workdir}: holds no run.json")
    return from_json(path.read_bytes(), BaseRun)


def holds_run(folder: str) -> bool:
    """Whether the model in a folder was trained there, and not imported."""
    path = files.place(folder)
    return (path / RUN).exists() and not (path / SPEC).exists()


def holds_checkpoint(folder: str) -> bool:
    """Whether a folder is that of a run or of an import."""
    names = (RUN, SPEC, FRONT, WHISPER, VOCODER)
    return any((files.place(folder) / name).exists() for name in names)


def read_spec(folder: str) -> ModelSpec:
    """The model whose folder this is, of a run or imported; its tokenizer is a path or "bytes".

    Raises Mistake where it is neither.
    """
    path = files.place(folder) / SPEC
    if path.exists():
        found = from_json(path.read_bytes(), ModelSpec)
    elif (path.parent / RUN).exists():
        run = read_run(folder)
        found = ModelSpec(run.model, run.mel, run.text, run.lora)
    elif (path.parent / FRONT).exists():
        raise Mistake(f"checkpoint={folder}: holds a front end alone: --init.front takes it")
    elif (path.parent / WHISPER).exists():
        raise Mistake(whisper_alone(folder))
    elif (path.parent / VOCODER).exists():
        raise Mistake(f"checkpoint={folder}: holds a vocoder, which makes sound of mel, and no LLM")
    else:
        raise Mistake(f"checkpoint={folder}: holds neither {SPEC} nor {RUN}")
    if found.text.tokenizer == "bytes":
        return found
    text = dataclasses.replace(found.text, tokenizer=f"{folder}/{TOKENIZER}")
    return dataclasses.replace(found, text=text)


def whisper_alone(folder: str) -> str:
    """What to say where a Whisper is asked for what it cannot do."""
    return (
        f"checkpoint={folder}: holds a Whisper, which transcribes and does nothing else: "
        "transcribe and evaluate take it, and --init.front its encoder"
    )


def read_front(folder: str) -> FrontSpec | None:
    """The front end alone whose folder this is, or a Whisper's; None where it holds neither."""
    path = files.place(folder) / FRONT
    if path.exists():
        return from_json(path.read_bytes(), FrontSpec)
    whole = read_whisper(folder)
    return None if whole is None else whole.front


def read_whisper(folder: str) -> WhisperSpec | None:
    """The Whisper whose folder this is; None where it holds none."""
    path = files.place(folder) / WHISPER
    return from_json(path.read_bytes(), WhisperSpec) if path.exists() else None


def read_vocoder(folder: str) -> VocoderSpec | None:
    """The vocoder whose folder this is, imported or trained; None where it holds none."""
    path = files.place(folder) / VOCODER
    if path.exists():
        return from_json(path.read_bytes(), VocoderSpec)
    run = read_any_run(folder) if (path.parent / RUN).exists() else None
    return run.spec if isinstance(run, VocoderRun) else None


def _unchangeable_fields(run: BaseRun, other: BaseRun) -> Iterator[tuple[str, Any]]:
    """The fields that a resume of `run` or of `other` may not change, as (dotted name, value).

    Sources may come and go, but one at least stays, and none changes under its path.
    """
    fixed = dataclasses.replace(run.data, sources=(), temperature=0.0, epochs=0)
    yield from _identity_fields(dataclasses.replace(run, data=fixed))
    known, others = ({(x.digest, x.hours) for x in r.data.sources} for r in (run, other))
    paths = {source.path for source in other.data.sources}
    for source in run.data.sources:
        changed = source.path in paths and (source.digest, source.hours) not in others
        if changed or known.isdisjoint(others):
            hours = f"{source.hours:g} h of " if source.hours else ""
            yield f"data.sources.{source.path}", f"{hours}{source.digest}"


def _identity_fields(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """The fields of a run's identity, as (dotted name, value)."""
    if dataclasses.is_dataclass(value):
        for field in ordered_fields(value):
            if field.metadata.get("identity", True):
                yield from _identity_fields(getattr(value, field.name), f"{name}.{field.name}")
    elif isinstance(value, tuple) and any(map(dataclasses.is_dataclass, value)):
        for i, item in enumerate(value):
            yield from _identity_fields(item, f"{name}.{i}")
    else:
        yield name.removeprefix("."), value
