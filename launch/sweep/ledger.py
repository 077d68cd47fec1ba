"""A sweep's ledger: the state of each cell in a file, which any number of processes may write.

    sweep.json       the sweep's definition; written last: a folder without it is no sweep yet
    cells/ID.json    a cell: its state and, once it is done, its final evaluation
    claims/ID.N      the owner of the N-th attempt at it; created by one process alone

An attempt begins with its claim, and only the owner of the newest claim writes the cell. A cell
whose owner is gone is free for the next attempt; an owner that was only silent for long learns from
the next claim that it has been replaced. Nothing here knows how cells are run.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
import contextlib
import dataclasses
import json
import time
import types
import typing
from typing import Any, Literal, TypeVar

from etils import epath

from melllm_jax import files
from melllm_jax.config.overrides import with_new_names
from melllm_jax.errors import Fault, Mistake
from melllm_jax.json_text import parse_json

State = Literal["pending", "running", "preempted", "failed", "done"]
ENDED = ("preempted", "failed", "done")  # of an attempt
VERSION = 1
LARGEST = 1e18  # of a number that a ledger keeps of times, prices and rates
SWEEP, CANCELLED = "sweep.json", "cancelled"


@dataclasses.dataclass(frozen=True)
class Cell:
    """One run of a sweep: `cells/ID.json`."""

    id: str
    number: int  # its index in the spec
    overrides: Mapping[str, Any]  # its own, with "preset"
    steps: int  # updates in all
    plan: Mapping[str, Any]  # params, params_total, flops, tokens, hours, cost
    created: float  # this and all times: seconds since 1970
    state: State = "pending"
    attempt: int = 0  # the newest; 0 is none yet
    owner: Mapping[str, Any] | None = None  # host, pid, born, job of the newest attempt
    step: int = 0  # updates made, at `beat`
    rate: float | None = None  # updates a second lately
    started: float | None = None  # the newest attempt
    beat: float | None = None  # its last sign of life
    ended: float | None = None
    error: str = ""  # the message of a failed one, in one line
    result: Mapping[str, Any] | None = None  # of a done one: eval/final.json


@dataclasses.dataclass(frozen=True)
class Eval:
    """The data that every run of a sweep is scored on at its end."""

    data: str = ""  # folder of the corpus; "" is the first one that is trained on
    split: str = "test"  # which of its splits
    most: int = 2000  # utterances that the loss is taken over; 0 takes all
    wer: int = 200  # utterances that are transcribed for WER; 0 transcribes none

    def __post_init__(self) -> None:
        for name in ("most", "wer"):
            if getattr(self, name) < 0:
                raise Mistake(f"eval.{name}={getattr(self, name)}: must be 0 or more")


@dataclasses.dataclass(frozen=True)
class Sweep:
    """The definition of a sweep: `sweep.json`."""

    name: str
    digest: str  # of its cells
    cells: tuple[str, ...]  # ids, in order
    common: Mapping[str, Any]  # overrides of all cells
    backend: str
    options: Mapping[str, Any]  # of the backend
    eval: Mapping[str, Any]  # the fields of Eval
    topology: str = ""  # the pod that the plan is for
    price: float = 0.0  # of a chip for an hour
    version: int = VERSION


class Ledger:
    """The ledger of the sweep in `folder`, on a disk or in a bucket."""

    def __init__(self, folder: str) -> None:
        """Raises Mistake where `folder` holds no sweep."""
        self.folder = files.place(folder)
        tree = _read(self.folder / SWEEP)
        if tree is None:
            raise Mistake(f"workdir={folder}: holds no {SWEEP}: `melllm sweep run` makes one")
        if tree.get("version") != VERSION:
            raise Mistake(f"{self.folder / SWEEP}: version={tree.get('version')}: must be 1")
        with _damage_as_fault(self.folder / SWEEP):
            common = with_new_names(tree["common"])
            sweep = Sweep(**{**tree, "cells": tuple(tree["cells"]), "common": common})
            self.sweep = _checked(sweep)

    def cells(self) -> list[Cell]:
        """All cells, in the order of the spec. Raises Fault for one that is missing or damaged."""
        return [self.read(name) for name in self.sweep.cells]

    def read(self, name: str) -> Cell:
        """The cell of an id. Raises Mistake for an unknown one, Fault for a damaged one."""
        if name not in self.sweep.cells:
            raise Mistake(f"cell={name}: is none of the sweep in {self.folder}")
        if (tree := _read(self._cell(name))) is None:
            raise Fault(f"{self._cell(name)}: is missing: the same `melllm sweep run` remakes it")
        with _damage_as_fault(self._cell(name)):
            cell = _checked(Cell(**{**tree, "overrides": with_new_names(tree["overrides"])}))
            if cell.id != name:
                raise TypeError(f"id={repr(cell.id)[:40]}")
            return cell

    def claim(
        self, name: str, owner: Mapping[str, Any], is_alive: Callable[[Mapping[str, Any]], bool]
    ) -> Cell | None:
        """Begin an attempt at a cell for `owner`; None where it is done or another works on it.

        `is_alive` tells whether an owner may still be at work.
        """
        cell = self.read(name)
        newest, claim = self._newest(name)
        if cell.state == "done":
            return None
        ended = not newest or (cell.attempt == newest and cell.state in ENDED)
        beat = cell.beat if cell.attempt == newest else None
        if not ended and is_alive({"beat": beat, **claim}):
            return None
        now = time.time()
        if not files.create_text(
            self._claim(name, newest + 1), json.dumps({**owner, "claimed": now})
        ):
            return None
        cell = dataclasses.replace(
            cell,
            state="running",
            attempt=newest + 1,
            owner=dict(owner),
            started=now,
            beat=now,
            rate=None,
            ended=None,
            error="",
        )
        self._write(cell)
        return cell

    def is_newest(self, cell: Cell) -> bool:
        """Whether the attempt of `cell` is still the newest."""
        return self._newest(cell.id, cell.attempt)[0] == cell.attempt

    def write(self, cell: Cell) -> bool:
        """Record an attempt as `cell`; False, with nothing written, where a newer one has begun."""
        if not self.is_newest(cell):
            return False
        self._write(cell)
        return True

    def cancel(self) -> None:
        """Ask all cells at work to save and stop; no cell begins until `resume`."""
        files.write_text(self.folder / CANCELLED, json.dumps({"at": time.time()}))

    @property
    def cancelled(self) -> bool:
        """Whether the sweep is to stop."""
        return bool((self.folder / CANCELLED).exists())

    def resume(self) -> None:
        """Take back `cancel`."""
        (self.folder / CANCELLED).unlink(missing_ok=True)

    def keep_backend(self, name: str, options: Mapping[str, Any]) -> None:
        """Record where the cells were started last: what `resume` and `cancel` go by."""
        sweep = dataclasses.replace(self.sweep, backend=name, options=dict(options))
        if sweep != self.sweep:
            files.write_text(self.folder / SWEEP, _sweep_text(sweep))
            self.sweep = sweep

    def _write(self, cell: Cell) -> None:
        files.write_text(self._cell(cell.id), json.dumps(dataclasses.asdict(cell), indent=1) + "\n")

    def _newest(self, name: str, known: int = 0) -> tuple[int, dict[str, Any]]:
        """Number of the newest attempt and its claim, looked for from attempt `known` on."""
        number, newest = known, dict[str, Any]()
        while (claim := _read(self._claim(name, number + 1))) is not None:
            number, newest = number + 1, claim
        return number, newest

    def _cell(self, name: str) -> epath.Path:
        return self.folder / "cells" / f"{name}.json"

    def _claim(self, name: str, number: int) -> epath.Path:
        return self.folder / "claims" / f"{name}.{number}"


def create(folder: str, sweep: Sweep, cells: Iterable[Cell]) -> Ledger:
    """The ledger of `sweep` in `folder`: a new one, or the one that is there already.

    Raises Mistake, and changes nothing, where the folder is that of another sweep.
    """
    path = files.place(folder) / SWEEP
    found = _read(path)
    if found is not None:
        ledger = Ledger(folder)
        for field in ("digest", "common", "eval"):
            old, new = found[field], json.loads(json.dumps(getattr(sweep, field)))
            if field == "common":
                old, new = with_new_names(old), with_new_names(new)
            if old != new:
                raise Mistake(
                    f"workdir={folder}: holds the sweep {found['name']} with another "
                    f"{_FIELD_NAMES[field]}: {_difference(old, new)}"
                )
    for cell in cells:
        file = epath.Path(folder) / "cells" / f"{cell.id}.json"
        if not file.exists():
            files.create_text(file, json.dumps(dataclasses.asdict(cell), indent=1) + "\n")
    if found is None:
        files.create_text(path, _sweep_text(sweep))
        return create(folder, sweep, ())  # another process may have been first, with another sweep
    return ledger


def _sweep_text(sweep: Sweep) -> str:
    return json.dumps(dataclasses.asdict(sweep), indent=1) + "\n"


_FIELD_NAMES = {"digest": "list of cells", "common": "data or flags", "eval": "final evaluation"}


def _difference(old: Any, new: Any) -> str:
    if not isinstance(old, dict):
        return f"{old}, not {new}"
    names = sorted(name for name in {*old, *new} if old.get(name) != new.get(name))
    return ", ".join(f"{name}={new.get(name)} (it has {old.get(name)})" for name in names)


@contextlib.contextmanager
def _damage_as_fault(path: epath.Path) -> Iterator[None]:
    """A context in which fields that the object in a file lacks, or has too many, raise Fault."""
    try:
        yield
    except (KeyError, TypeError, AttributeError) as error:
        raise Fault(f"{path}: is damaged: {error!r}; remove it to have it made anew") from error


_WORDS = ("chip", "preset")  # in a plan and a result, which else hold figures
Kept = TypeVar("Kept", Cell, Sweep)


def _checked(kept: Kept) -> Kept:
    """What was read. Raises TypeError for a field of another type than its own, or below 0.

    A cell's plan and result hold figures and words, but for the counts of what was rejected.
    """
    for name, kind in typing.get_type_hints(type(kept)).items():
        if not _is_of(kind, getattr(kept, name)):
            raise TypeError(f"{name}={repr(getattr(kept, name))[:40]}")
    figures = [*kept.plan.items(), *(kept.result or {}).items()] if isinstance(kept, Cell) else []
    for name, value in figures:
        odd = isinstance(value, list) or (isinstance(value, dict) and name != "rejected")
        word = isinstance(value, str) and name not in _WORDS
        if odd or word or (isinstance(value, int | float) and value < 0):
            raise TypeError(f"{name}={repr(value)[:40]}")
    return kept


def _is_of(kind: Any, value: Any) -> bool:
    """Whether a value is of the type that an annotation of a cell or a sweep says."""
    origin, options = typing.get_origin(kind), typing.get_args(kind)
    if origin is types.UnionType:
        return any(_is_of(option, value) for option in options)
    if origin is Literal:
        return value in options
    if origin is tuple:
        return isinstance(value, tuple) and all(_is_of(options[0], item) for item in value)
    if kind in (int, float):
        return type(value) in (int, kind) and 0 <= value < LARGEST
    return isinstance(value, dict) if origin is not None else type(value) is kind


def _read(path: epath.Path) -> dict[str, Any] | None:
    """The JSON object in a file; None where there is none. Raises Fault for a damaged one."""
    try:
        tree = parse_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise Fault(f"{path}: cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise Fault(f"{path}: is damaged: {error}; remove it to have it made anew") from error
    if not isinstance(tree, dict):
        raise Fault(f"{path}: is damaged: holds no object; remove it to have it made anew")
    return tree
