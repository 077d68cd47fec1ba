"""A sweep's specification: a Python file of cells, put together by `grid`, `zipped` and `chain`.

A cell is a dict of dotted fields of `config.Run`, as `--model.d 512` or an override has them, and
"preset", the name of the run that they change. "init", a folder, first gives the run the model in
it, sizes, tokenizer and weights, as `melllm train --init` does, "front" the front end in it, as
--init.front, and "teacher" its encoder to learn from, as --teacher; "" leaves the preset's. SPEC.py
has a function `cells()` that returns a list of them:

    from launch.sweep import spec
    def cells():
        return spec.grid({"preset": ["ladder_1m", "ladder_2m"], "optim.lr": [1e-3, 2e-3]})

`launch.sweep.budgets` sets how long each cell trains.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import difflib
import hashlib
import itertools
import json
import pathlib
import traceback
from typing import Any

from melllm_jax.config.overrides import override, with_new_names, with_old_names
from melllm_jax.config.run import BaseRun
from melllm_jax.errors import Mistake
from melllm_jax.presets import catalog
from melllm_jax.training.run_start import run_from

Cell = dict[str, Any]  # dotted fields of config.Run, "preset", and those of STARTS
STARTS = ("init", "front", "teacher")  # folders of a model, a front end, an encoder that teaches
GridAxis = Mapping[str, Sequence[Any]] | Sequence[Cell]  # values by field, or cells as they are
SPECS = pathlib.Path(__file__).parent / "specs"


@dataclasses.dataclass(frozen=True)
class SweepCell:
    """One cell of a spec."""

    id: str  # 10 hexadecimal digits of its own overrides
    overrides: Mapping[str, Any]  # its own, as JSON values; "preset" is one
    run: BaseRun  # with those of the whole sweep as well


@dataclasses.dataclass(frozen=True)
class SweepSpec:
    """A sweep as its file specifies it."""

    name: str  # the file's stem
    digest: str  # of all ids in order, 10 hexadecimal digits
    cells: tuple[SweepCell, ...]


def grid(*axes: GridAxis) -> list[Cell]:
    """Every combination of the axes, the last one fastest.

    An axis is {field: values}, of which each field is an axis of its own, or a list of cells, such
    as `zipped` and `chain` make: fields that go together. Raises Mistake for a field of two axes.
    """
    lists: list[Sequence[Cell]] = []
    for axis in axes:
        if isinstance(axis, Mapping):
            lists += [[{field: value} for value in values] for field, values in axis.items()]
        else:
            lists.append(axis)
    return [_merge(parts) for parts in itertools.product(*lists)]


def zipped(values: Mapping[str, Sequence[Any]]) -> list[Cell]:
    """The first values of all fields, then the second ones, … Raises Mistake for other lengths."""
    sizes = {field: len(each) for field, each in values.items()}
    if len(set(sizes.values())) > 1:
        counts = ", ".join(f"{field} {size}" for field, size in sizes.items())
        raise Mistake(f"zipped: fields have different numbers of values: {counts}")
    return [dict(zip(values, each, strict=True)) for each in zip(*values.values(), strict=True)]


def chain(*parts: Sequence[Cell]) -> list[Cell]:
    """The cells of all lists, one list after the other."""
    return [cell for part in parts for cell in part]


def _merge(parts: Sequence[Cell]) -> Cell:
    merged: Cell = {}
    for part in parts:
        for field in part:
            if field in merged:
                raise Mistake(f"grid: {field} is set by two axes")
        merged |= part
    return merged


def run(cell: Mapping[str, Any], common: Mapping[str, Any]) -> BaseRun:
    """The run of a cell; `common` sets the fields that the cell does not.

    Raises Mistake for an unknown preset or field, and for a value that does not fit.
    """
    if "preset" not in cell:
        raise Mistake("names no preset")
    own = {field: value for field, value in cell.items() if field != "preset"}
    changes = {**with_new_names(common), **with_new_names(own)}
    folders = {name: changes.pop(name, "") for name in STARTS}
    for name, folder in folders.items():
        if type(folder) is not str:
            raise Mistake(f"{name}={folder!r}: must be a folder, or empty")
    return override(run_from(catalog.any_preset(cell["preset"]), **folders), changes)


def differing_fields(cells: Sequence[Mapping[str, Any]]) -> list[str]:
    """Fields that are not the same in all cells, in the order of their first appearance."""
    fields = dict.fromkeys(field for cell in cells for field in cell)
    values = lambda field: {json.dumps(cell.get(field)) for cell in cells}
    return [field for field in fields if len(values(field)) > 1]


def load(path: str, common: Mapping[str, Any]) -> SweepSpec:
    """The sweep that the file at `path` specifies, or the ready one of that name ("scaling").

    `common` are overrides of every cell that does not set them itself. Raises Mistake, in one
    line, for a file that is missing, raises or has no `cells`, for an unknown field or preset, for
    no cells, and for two whose runs are equal.
    """
    file = _find_file(path)
    given = _call_cells(file)
    if not isinstance(given, list) or not all(isinstance(cell, Mapping) for cell in given):
        raise Mistake(f"{file}: cells() must return a list of dicts, not {given!r:.60}")
    if not given:
        raise Mistake(f"{file}: cells() returns no cells")
    cells: list[SweepCell] = []
    indices: dict[BaseRun, int] = {}
    for index, cell in enumerate(given):
        where = f"{file}: cell {index}"
        try:
            one = _sweep_cell(cell, common)
        except Mistake as mistake:
            raise Mistake(f"{where}: {mistake}") from mistake
        nameless = dataclasses.replace(one.run, name="")
        if nameless in indices:
            raise Mistake(
                f"{where}: is the same run as cell {indices[nameless]}: {_describe(cell)}"
            )
        indices[nameless] = index
        cells.append(one)
    return SweepSpec(file.stem, _digest([one.id for one in cells]), tuple(cells))


def _sweep_cell(cell: Mapping[str, Any], common: Mapping[str, Any]) -> SweepCell:
    try:
        own = json.loads(json.dumps(dict(cell), sort_keys=True, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise Mistake(f"{_describe(cell)}: cannot be written as JSON: {error}") from error
    # The id of a cell stays what it was when some fields had other names.
    return SweepCell(_digest(with_old_names(own)), with_new_names(own), run(own, common))


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:10]


def _describe(cell: Mapping[str, Any]) -> str:
    return ", ".join(f"{field}={value!r}" for field, value in cell.items())


def _find_file(path: str) -> pathlib.Path:
    ready = {one.stem: one for one in sorted(SPECS.rglob("*.py")) if one.stem != "__init__"}
    file = pathlib.Path(path)
    if file.is_file():
        return file
    if path in ready:
        return ready[path]
    near = difflib.get_close_matches(path, ready, n=1, cutoff=0.6)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise Mistake(f"spec={path}: is no file, and none of the ready {', '.join(ready)}{hint}")


def _call_cells(file: pathlib.Path) -> Any:
    """The return value of the file's `cells()`."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise Mistake(f"{file}: cannot be read: {error}") from error
    space: dict[str, Any] = {"__name__": file.stem, "__file__": str(file)}
    try:
        exec(compile(text, str(file), "exec"), space)  # a spec is a program
    except SyntaxError as error:
        raise Mistake(f"{file}, line {error.lineno}: {error.msg}") from error
    except (Exception, SystemExit) as error:  # whatever a user's program raises is the user's
        raise _user_error(file, error) from error
    if not callable(space.get("cells")):
        raise Mistake(f"{file}: has no function cells()")
    try:
        return space["cells"]()
    except (Exception, SystemExit) as error:
        raise _user_error(file, error) from error


def _user_error(file: pathlib.Path, error: BaseException) -> Mistake:
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == str(file)]
    line = f", line {lines[-1]}" if lines else ""
    kind = "" if isinstance(error, Mistake) else f"{type(error).__name__}: "
    return Mistake(f"{file}{line}: {kind}{' '.join(str(error).split())}")
