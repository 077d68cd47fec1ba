"""Starts the cells that are missing of a sweep on its backend."""

from collections.abc import Mapping
import dataclasses
import sys
import time
import types
from typing import Any, Literal

from launch.sweep import status
from launch.sweep.backends import gke as gke_module
from launch.sweep.backends import local as local_module
from launch.sweep.backends import slurm as slurm_module
from launch.sweep.backends.jobset_manifest import Gke
from launch.sweep.backends.local import Local, start
from launch.sweep.backends.slurm_script import Slurm
from launch.sweep.ledger import Ledger
from launch.sweep_report import page
from launch.terminal import number_format, text_table

BackendName = Literal["local", "slurm", "gke"]
BACKENDS: Mapping[str, types.ModuleType] = types.MappingProxyType(
    {"local": local_module, "slurm": slurm_module, "gke": gke_module}
)
LOOK = 2.0  # seconds between two looks at the ledger


@dataclasses.dataclass(frozen=True, kw_only=True)
class BackendOptions:
    """How each backend runs cells."""

    local: Local = Local()
    slurm: Slurm = Slurm()
    gke: Gke = Gke()


def submit(ledger: Ledger, backend: str, options: Any) -> int:
    """Start all cells that are not done: the exit status, 1 where cells here did not all end well.

    Cells on this machine are waited for; clusters are handed theirs.
    """
    ledger.resume()
    ledger.keep_backend(backend, dataclasses.asdict(options))
    missing = [cell.id for cell in ledger.cells() if cell.state != "done"]
    folder = str(ledger.folder)
    if backend != "local":
        handed = BACKENDS[backend].start(folder, missing, options) if missing else 0
        there = f", {len(missing) - handed} there already" if handed < len(missing) else ""
        print(
            f"{handed} of {len(ledger.sweep.cells)} cells handed to {backend}{there}; "
            f"next: melllm sweep status {folder}"
        )
        return 0
    start(folder, missing, options, on_change=ChangeReporter())
    cells = ledger.cells()
    text_table.show(status.table(cells))
    print(f"report: {page.write_report(folder)}")
    return 0 if all(cell.state == "done" for cell in cells) else 1


class ChangeReporter:
    """Prints a line on standard error for each cell whose state has changed."""

    def __init__(self) -> None:
        self._known: dict[str, str] = {}
        self._last_look = 0.0

    def __call__(self, ledger: Ledger) -> None:
        if time.monotonic() - self._last_look < LOOK:
            return
        self._last_look = time.monotonic()
        cells = ledger.cells()
        ends = number_format.format_seconds(status.eta(cells, status.remaining_seconds(cells)))
        done = sum(cell.state == "done" for cell in cells)
        for cell in cells:
            state = status.state(cell)
            if state == self._known.get(cell.id, "pending"):
                continue
            self._known[cell.id] = state
            outcome = f"loss {cell.result['loss']:.3f}" if cell.result else cell.error
            line = f"[{done}/{len(cells)} done, {ends} left] {cell.id} {state} {outcome}".rstrip()
            print(line, file=sys.stderr, flush=True)
