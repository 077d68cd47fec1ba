"""Runs cells as processes of this machine, several at once; shares its cores or GPUs among them.

A cell is a process in a session of its own and outlives its launcher: one that is killed takes no
cell with it, and the next one waits for the cells that still run.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import contextlib
import dataclasses
import os
import pathlib
import re
import signal
import subprocess
import sys
import time
from typing import IO, Any

from launch.runtime import process_identity
from launch.sweep import claim_owner
from launch.sweep.ledger import ENDED, Cell, Ledger
from melllm_jax.errors import Fault, Mistake

LOOK = 0.5  # seconds between two looks at the processes
ROOT = pathlib.Path(__file__).parents[3]


@dataclasses.dataclass(frozen=True)
class Local:
    """Cells on this machine."""

    at_once: int = 0  # cells side by side; 0: one a GPU, or one where there is none


@dataclasses.dataclass(frozen=True)
class Slot:
    """The cores and devices that one cell at a time may use."""

    cores: tuple[int, ...]
    environment: Mapping[str, str]  # beside this process's own


def check(options: Local, folder: str) -> None:
    """Raises Mistake where so many cells cannot share this machine, or the folder is on no disk."""
    if "://" in folder:
        raise Mistake(f"workdir={folder}: must be a folder on a disk: runs here write to it")
    slots(options)


def slots(options: Local) -> list[Slot]:
    """A slot for each of the cells at once: cores and GPUs shared as evenly as they divide."""
    if options.at_once < 0:
        raise Mistake(f"local.at_once={options.at_once}: must be 0 or more")
    cores, gpus = sorted(os.sched_getaffinity(0)), _gpus()
    count = options.at_once or len(gpus) or 1
    if gpus and count > len(gpus):
        raise Mistake(f"local.at_once={count}: there are {len(gpus)} GPUs, and one holds one cell")
    if count > len(cores):
        raise Mistake(f"local.at_once={count}: there are {len(cores)} cores")
    if count > 1 and _tpus() and not gpus:
        raise Mistake(f"local.at_once={count}: the chips of a TPU host are one cell's: give 1")
    visible = [
        {"CUDA_VISIBLE_DEVICES": ",".join(gpus[i::count])} if gpus else {} for i in range(count)
    ]
    return [Slot(tuple(cores[i::count]), visible[i]) for i in range(count)]


def start(
    folder: str,
    names: Sequence[str],
    options: Local,
    command: Sequence[str] = (sys.executable, "-m", "launch", "sweep", "cell"),
    on_change: Callable[[Ledger], None] = lambda _: None,
) -> None:
    """Run the cells, in order; returns once none runs any more.

    Cells that another launcher runs are waited for, and run here where they die. `on_change` is
    called each time that something may have changed. Ctrl-C, or SIGTERM, is passed on to the cells
    as SIGTERM, waited for, and raised again as KeyboardInterrupt.
    """
    ledger = Ledger(folder)
    waiting, free = list(names), slots(options)
    running: dict[str, tuple[subprocess.Popen[bytes], Slot]] = {}
    tried = set[str]()  # started by this call: one that dies is left to the next resume
    with _term_interrupts():
        try:
            while waiting or running:
                for name, (process, slot) in list(running.items()):
                    if process.poll() is not None:
                        del running[name]
                        free.append(slot)
                        _note(ledger.read(name), process.returncode, _log_path(folder, name))
                others = 0
                for name in list(waiting):
                    if ledger.cancelled:
                        waiting.clear()
                        break
                    cell = ledger.read(name)
                    if cell.state == "done" or name in tried:
                        waiting.remove(name)
                    elif _run_by_another(cell):
                        others += cell.owner is not None and cell.owner["host"] == _host()
                    elif len(free) > others:
                        slot = free.pop(0)
                        running[name] = _start_process(folder, name, slot, command), slot
                        tried.add(name)
                        waiting.remove(name)
                on_change(ledger)
                time.sleep(LOOK)
        except KeyboardInterrupt:
            for process, _ in running.values():
                with contextlib.suppress(ProcessLookupError):
                    process.terminate()
            for process, _ in running.values():
                process.wait()
            on_change(ledger)
            raise


def cancel(folder: str, cells: Sequence[Cell]) -> None:
    """Send SIGTERM to the cells that run on this host; others see that the ledger is cancelled."""
    for cell in cells:
        owner = cell.owner
        if owner and cell.state == "running" and process_identity.runs_here(owner):
            with contextlib.suppress(ProcessLookupError):
                os.kill(owner["pid"], signal.SIGTERM)


def _run_by_another(cell: Cell) -> bool:
    """Whether a process that this launcher did not start works on the cell."""
    if cell.state in ENDED or cell.owner is None:
        return False
    return claim_owner.is_alive({**cell.owner, "beat": cell.beat})


def _host() -> str:
    return str(claim_owner.current_owner()["host"])


def _start_process(
    folder: str, name: str, slot: Slot, command: Sequence[str]
) -> "subprocess.Popen[bytes]":
    known = os.environ.get("PYTHONPATH")
    path = {"PYTHONPATH": os.pathsep.join([str(ROOT), *([known] if known else [])])}
    with _log(folder, name) as log:
        process = subprocess.Popen(
            [*command, folder, name],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={**os.environ, **path, **slot.environment},
            start_new_session=True,  # a Ctrl-C is the launcher's to pass on
        )
    os.sched_setaffinity(process.pid, slot.cores)  # before it has started a thread
    return process


@contextlib.contextmanager
def _log(folder: str, name: str) -> Iterator[IO[bytes]]:
    path = _log_path(folder, name)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as file:
            yield file
    except OSError as error:
        raise Fault(f"{path}: cannot be written: {error.strerror}") from error


def _log_path(folder: str, name: str) -> pathlib.Path:
    return pathlib.Path(folder) / "logs" / f"{name}.log"


def _note(cell: Cell, status: int, log: pathlib.Path) -> None:
    """Report how a process ended that did not record its end in the ledger."""
    if status < 0:
        text = f"killed by {signal.Signals(-status).name}: `melllm sweep resume` goes on with it"
    elif cell.state not in ENDED:
        text = f"ended with status {status} and recorded nothing: see {log}"
    else:
        return
    print(f"cell {cell.id}: {text}", file=sys.stderr, flush=True)


def _gpus() -> list[str]:
    """The GPUs that JAX would use, as CUDA_VISIBLE_DEVICES names them."""
    platforms = os.environ.get("JAX_PLATFORMS", "")
    if platforms and not {"cuda", "gpu"} & set(platforms.split(",")):
        return []
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [word for word in visible.split(",") if word]
    numbers = (re.fullmatch(r"nvidia(\d+)", path.name) for path in pathlib.Path("/dev").iterdir())
    return sorted(match[1] for match in numbers if match)


def _tpus() -> bool:
    platforms = os.environ.get("JAX_PLATFORMS", "")
    if platforms and "tpu" not in platforms.split(","):
        return False
    return any(path.name.startswith("accel") for path in pathlib.Path("/dev").iterdir())


@contextlib.contextmanager
def _term_interrupts() -> Iterator[None]:
    """A context in which SIGTERM does what a Ctrl-C does."""

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
