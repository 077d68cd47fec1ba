"""Reads the points that laws are fitted to, one a run, from a CSV or a sweep's folder."""

from collections import Counter
from collections.abc import Iterator, Mapping
import csv
import dataclasses
import io
from typing import Any

from launch.sweep.ledger import SWEEP, Cell, Ledger
from melllm_jax import files
from melllm_jax.errors import Mistake

PER = 6.0  # FLOPs of training a parameter and token: Kaplan et al. 2020, arXiv 2001.08361, §2.1
COLUMNS = ("params", "tokens", "flops")  # two of them determine the third
LEAST, MOST = 1e-40, 1e40  # of a number: what a law raises to powers must not overflow
NAMES = ("name", "id", "run")  # columns that name a run


@dataclasses.dataclass(frozen=True)
class Point:
    """Size, data, compute and loss of one run at its end."""

    params: float  # weights that multiply at every position
    tokens: float  # positions trained on
    loss: float  # held-out, nats a token
    flops: float  # of all training
    name: str
    hours: float | None = None  # of sound trained on, where that is known


def load_points(path: str) -> list[Point]:
    """The runs of a CSV, or those of a sweep that are done.

    A CSV has a line of names, among them loss and two of params, tokens and flops; what is missing
    of the three follows from flops = 6 · params · tokens. Of a sweep over several token rates only
    the runs of the commonest count, for losses at other rates follow another law. Raises Mistake,
    which names file, line and column, for what is no such file.
    """
    if (files.place(path) / SWEEP).exists():
        return _read_sweep(path)
    return list(_read_csv(path))


def _read_csv(path: str) -> Iterator[Point]:
    try:
        text = files.place(path).read_text(encoding="utf-8").removeprefix("\ufeff")
    except FileNotFoundError as error:
        raise Mistake(f"{path}: is no file") from error
    except IsADirectoryError as error:
        raise Mistake(f"{path}: is neither a CSV nor a sweep's folder: no {SWEEP}") from error
    except UnicodeDecodeError as error:
        raise Mistake(f"{path}: is no UTF-8 text: {error.reason} at byte {error.start}") from error
    reader = csv.reader(io.StringIO(text, newline=""))
    try:
        lines = [(reader.line_num, cells) for cells in reader]
    except csv.Error as error:
        raise Mistake(f"{path} line {reader.line_num}: is no CSV: {error}") from error
    names = [name.strip() for name in lines[0][1]] if lines else []
    columns = _columns(path, names)
    for number, cells in lines[1:]:
        if not any(cell.strip() for cell in cells):
            continue
        where = f"{path} line {number}"
        if len(cells) != len(names):
            raise Mistake(f"{where}: has {len(cells)} values, the first line {len(names)} names")
        row = dict(zip(names, (cell.strip() for cell in cells), strict=True))
        values = {name: _parse_number(where, name, row[name]) for name in columns}
        called = next((row[name] for name in NAMES if row.get(name)), f"line {number}")
        yield _point(values, called)


def _columns(path: str, names: list[str]) -> list[str]:
    """The columns that are read. Raises Mistake where they are too few."""
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise Mistake(f"{path} line 1: column {twice[0]!r} comes twice")
    listed = ", ".join(filter(None, names)) or "nothing"
    if "loss" not in names:
        raise Mistake(f"{path} line 1: has no column loss, but {listed}")
    found = [name for name in COLUMNS if name in names]
    if len(found) < 2:
        raise Mistake(f"{path} line 1: needs two of {', '.join(COLUMNS)}, but has {listed}")
    return [*found, "loss"]


def _parse_number(where: str, name: str, text: str) -> float:
    """The number in `text`. Raises Mistake, beginning with `where`, for any other text."""
    try:
        value = float(text)
    except ValueError as error:
        raise Mistake(f"{where}: {name}={text!r}: must be a number") from error
    if not LEAST <= value <= MOST:
        raise Mistake(f"{where}: {name}={text}: must be from {LEAST:g} to {MOST:g}")
    return value


def _point(values: Mapping[str, float], name: str) -> Point:
    """A point of two or all three of params, tokens and flops."""
    fields = dict(values)
    if "flops" not in fields:
        fields["flops"] = PER * fields["params"] * fields["tokens"]
    for missing, other in (("params", "tokens"), ("tokens", "params")):
        if missing not in fields:
            fields[missing] = fields["flops"] / (PER * fields[other])
    return Point(**fields, name=name)


def _read_sweep(folder: str) -> list[Point]:
    done = [cell for cell in Ledger(folder).cells() if cell.state == "done"]
    if not done:
        raise Mistake(f"{folder}: no run of the sweep is done")
    rates = Counter(_result(cell).get("r") for cell in done)
    rate, _ = rates.most_common(1)[0]
    points = []
    for cell in done:
        result = _result(cell)
        if result.get("r") != rate:
            continue
        where = f"{folder} cell {cell.id}"
        values = {
            name: _parse_number(where, name, str(result.get(name))) for name in (*COLUMNS, "loss")
        }
        point = _point(values, cell.id)
        points.append(dataclasses.replace(point, hours=result.get("audio_hours")))
    return points


def _result(cell: Cell) -> Mapping[str, Any]:
    return cell.result or {}
