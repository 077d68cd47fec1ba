"""Starting what is missing of a sweep, by whichever backend."""

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


def submit(made: Ledger, backend: str, options: Any) -> int:
    """Start all that is missing: the exit status, 1 where cells run here and some did not end well.

    What runs here is waited for; clusters are handed it.
    """
    made.resume()
    missing = [cell.id for cell in made.cells() if cell.state != "done"]
    folder = str(made.folder)
    if backend != "local":
        if missing:
            BACKENDS[backend].start(folder, missing, options)
        print(
            f"{len(missing)} of {len(made.sweep.cells)} cells handed to {backend}; "
            f"next: melllm sweep status {folder}"
        )
        return 0
    start(folder, missing, options, told=ChangeReporter())
    cells = made.cells()
    text_table.show(status.table(cells))
    print(f"report: {page.write_report(folder)}")
    return 0 if all(cell.state == "done" for cell in cells) else 1


class ChangeReporter:
    """Says on standard error, a line each, which cells have changed."""

    def __init__(self) -> None:
        self._known: dict[str, str] = {}
        self._looked = 0.0

    def __call__(self, made: Ledger) -> None:
        if time.monotonic() - self._looked < LOOK:
            return
        self._looked = time.monotonic()
        cells = made.cells()
        ends = number_format.format_seconds(status.eta(cells, status.remaining_seconds(cells)))
        done = sum(cell.state == "done" for cell in cells)
        for cell in cells:
            now = status.state(cell)
            if now == self._known.get(cell.id, "pending"):
                continue
            self._known[cell.id] = now
            what = f"loss {cell.result['loss']:.3f}" if cell.result else cell.error
            line = f"[{done}/{len(cells)} done, {ends} left] {cell.id} {now} {what}".rstrip()
            print(line, file=sys.stderr, flush=True)
