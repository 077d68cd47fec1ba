"""Runs cells as the tasks of a Slurm array, and a job after them that writes the report.

    FOLDER/slurm/N.ids    cells of the N-th submission, an id a line: a task's number is a line's
    FOLDER/slurm/N.sh     the array's script as it was submitted, and N-report.sh
    FOLDER/logs/ID.log    the output of a cell, all its attempts one after the other

What must hold: a task that is told to stop (preemption, its time limit, `scancel --signal=TERM
--batch`) lets its cell save and goes back into the queue; one that is cancelled does not. Jobs are
found by their names, which hold folder and submission, so that a launcher killed at any time leaves
none that `cancel` cannot find. The folder must be on a disk that all nodes share.

Sources: sbatch(1), squeue(1) and scancel(1) of Slurm 22.05.
"""

from collections.abc import Mapping, Sequence
import itertools
import pathlib
import re
import shutil
import subprocess
import sys
from typing import Any

from launch.sweep.backends.slurm_script import Slurm, array_script, job_name, report_script
from launch.sweep.ledger import Cell
from melllm_jax.errors import Fault, Mistake

PROGRAMS = ("sbatch", "squeue", "scancel", "scontrol")
# Words of sbatch about what it was asked for; its others are of a cluster that is not well.
_REFUSED = re.compile(
    r"\binvalid\b|unrecognized option|not available|not permitted|violates", re.IGNORECASE
)


def check(options: Slurm, folder: str) -> None:
    """Raises Mistake where Slurm's programs are missing, or nodes cannot reach the folder."""
    _sweep_folder(folder)
    missing = [program for program in PROGRAMS if shutil.which(program) is None]
    if missing:
        raise Mistake(f"backend=slurm: {', '.join(missing)} cannot be found on this machine")


def start(folder: str, ids: Sequence[str], options: Slurm) -> int:
    """Submit the cells that are not queued as one array, and the report after it: how many.

    Raises Mistake for a folder that is on no disk and for options that sbatch refuses, Fault with
    sbatch's message where it fails otherwise.
    """
    home = _sweep_folder(folder)
    queued = _queued_tasks(home)
    ids = [id for id in ids if id not in queued]
    if not ids:
        return 0
    for name in ("slurm", "logs"):
        (home / name).mkdir(exist_ok=True)
    number, listed = _write_ids(home, ids)
    written = _write_script(home, str(number), array_script(home, number, len(ids), options))
    try:
        array = _run_program("sbatch", "--parsable", str(written)).partition(";")[0]
    except Fault as fault:
        written.unlink()
        listed.unlink()
        if _REFUSED.search(str(fault)):
            raise Mistake(f"slurm: the options of this sweep are refused: {fault}") from fault
        raise
    print(f"melllm sweep: {len(ids)} cells are Slurm's job {array}", file=sys.stderr)
    report = _write_script(home, f"{number}-report", report_script(home, number, options))
    try:
        _run_program("sbatch", f"--dependency=afterany:{array}", str(report))
    except Fault as fault:
        raise Fault(f"the cells are job {array}, without a report after them: {fault}") from fault
    return len(ids)


def cancel(folder: str, cells: Sequence[Cell]) -> None:
    """Take the cells out of the queue; running ones are signalled to save and stop."""
    queued = _queued_tasks(_sweep_folder(folder))
    tasks = [queued[cell.id] for cell in cells if cell.id in queued]
    if tasks:
        _run_program("scancel", *tasks)


def is_alive(owner: Mapping[str, Any]) -> bool:
    """Whether the task that owns a cell runs; one that waits for its next start does not."""
    task = owner["job"].removeprefix("slurm:")
    try:
        states = _run_program("squeue", "-h", "-r", "-j", task, "-o", "%T").split()
    except Fault as fault:
        if "Invalid job id" in str(fault):  # it ended so long ago that Slurm has forgotten it
            return False
        raise
    return any(state != "PENDING" for state in states)


def _write_script(home: pathlib.Path, name: str, text: str) -> pathlib.Path:
    path = home / f"slurm/{name}.sh"
    path.write_text(text)
    return path


def _sweep_folder(folder: str) -> pathlib.Path:
    if "://" in folder:
        raise Mistake(f"workdir={folder}: must be a folder that all of Slurm's nodes share")
    return pathlib.Path(folder).absolute()


def _write_ids(home: pathlib.Path, ids: Sequence[str]) -> tuple[int, pathlib.Path]:
    """The number of this submission, which no other has, and the file of its ids."""
    for number in itertools.count(1):
        path = home / f"slurm/{number}.ids"
        try:
            with path.open("x") as file:
                file.write("".join(f"{id}\n" for id in ids))
        except FileExistsError:
            continue
        return number, path
    raise AssertionError("numbers do not end")


def _queued_tasks(home: pathlib.Path) -> dict[str, str]:
    """The tasks that wait or run, by the id of their cell."""
    listed = {
        job_name(home, int(path.stem)): path.read_text().split()
        for path in home.glob("slurm/*.ids")
    }
    if not listed:
        return {}
    words = ["-h", "-r", "-n", ",".join(listed), "-o", "%j %F %K %T"]
    rows = [line.split() for line in _run_program("squeue", *words).splitlines()]
    return {
        listed[name][int(index)]: f"{job}_{index}"
        for name, job, index, state in rows
        if state != "COMPLETING"
    }


def _run_program(*words: str) -> str:
    """Standard output of one of Slurm's programs. Raises Fault with its message."""
    try:
        done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    except OSError as error:
        raise Fault(f"{words[0]}: cannot be run: {error.strerror}") from error
    if done.returncode:
        lines = done.stderr.replace(f"{words[0]}: error: ", "").splitlines()
        said = "; ".join(line.strip() for line in lines if line.strip())
        raise Fault(f"{words[0]}: {said or f'ended with status {done.returncode}'}")
    return done.stdout.strip()
