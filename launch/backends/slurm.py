"""Cells as the tasks of a Slurm array, and a job after them that writes the report.

    FOLDER/slurm/N.ids    cells of the N-th submission, an id a line: a task's number is a line's
    FOLDER/slurm/N.sh     the array's script as it was submitted, and N-report.sh
    FOLDER/logs/ID.log    what a cell says, all its attempts one after the other

What must hold: a task that is told to stop (preemption, its time limit, `scancel --signal=TERM
--batch`) lets its cell save and goes back into the queue; one that is cancelled does not. Jobs are
found by their names, which say folder and submission, so that a launcher killed at any time leaves
none that `cancel` cannot find. The folder must be on a disk that all nodes share.

Sources: sbatch(1), squeue(1) and scancel(1) of Slurm 22.05.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import hashlib
import itertools
import pathlib
import re
import shlex
import shutil
import subprocess
import sys
from typing import Any

from launch.backends.shell import WATCHED
from launch.ledger import Cell
from melllm_jax.errors import Fault, Mistake

PROGRAMS = ("sbatch", "squeue", "scancel", "scontrol")
MELLLM = (sys.executable, "-m", "launch")


@dataclasses.dataclass(frozen=True)
class Slurm:
    """What a cell asks of Slurm; where a field is empty or 0, the cluster's default holds."""

    partition: str = ""  # of the cluster's nodes
    account: str = ""  # who pays
    time: str = ""  # limit of a task, as sbatch takes it: 30, 12:00:00, 2-00; saved before it ends
    gpus: int = 0  # of one node
    cpus: int = 0  # of one node
    memory: str = ""  # of one node: 64G
    at_once: int = 0  # cells that run at the same time
    grace: int = 120  # seconds before the time limit at which a cell is told to save
    retries: int = 3  # starts of a task after which a cell that is killed (memory) stays so
    setup: tuple[str, ...] = ()  # lines of shell before a cell: "module load cuda/12.4"
    extra: tuple[str, ...] = ()  # further options of sbatch: qos=high constraint=a100
    melllm: str = ""  # how a node calls melllm, where not as here: "apptainer exec my.sif melllm"

    def __post_init__(self) -> None:
        for name in ("setup", "extra"):  # lists, where they are read from a ledger
            object.__setattr__(self, name, tuple(getattr(self, name)))
        for name in ("gpus", "cpus", "at_once", "grace", "retries"):
            if getattr(self, name) < 0:
                raise Mistake(f"slurm.{name}={getattr(self, name)}: must be 0 or more")
        for name in ("partition", "account", "time", "memory", "melllm"):
            if "\n" in getattr(self, name):
                raise Mistake(f"slurm.{name}={getattr(self, name)!r}: must be one line")
        for word in self.extra:
            if not word.strip("- ") or "\n" in word:
                raise Mistake(f"slurm.extra={word!r}: must be an option of sbatch: qos=high")
            if re.match(r"-*(nodes|ntasks|ntasks-per-node|array|N|n)\b", word.strip()):
                raise Mistake(f"slurm.extra={word!r}: a cell is one process of one node")


def check(options: Slurm, folder: str) -> None:
    """Raises Mistake where Slurm's programs are missing, or nodes cannot reach the folder."""
    _home(folder)
    missing = [program for program in PROGRAMS if shutil.which(program) is None]
    if missing:
        raise Mistake(f"backend=slurm: {', '.join(missing)} cannot be found on this machine")


def start(folder: str, ids: Sequence[str], options: Slurm) -> None:
    """Submit the cells as one array, and the report after it; what is in the queue stays there.

    Raises Mistake for a folder that is on no disk, Fault with sbatch's own words.
    """
    home = _home(folder)
    ids = [id for id in ids if id not in _queued(home)]
    if not ids:
        return
    for name in ("slurm", "logs"):
        (home / name).mkdir(exist_ok=True)
    number, listed = _listed(home, ids)
    written = _written(home, str(number), script(home, number, len(ids), options))
    try:
        array = _said("sbatch", "--parsable", str(written)).partition(";")[0]
    except Fault:
        written.unlink()
        listed.unlink()
        raise
    print(f"melllm sweep: {len(ids)} cells are Slurm's job {array}", file=sys.stderr)
    report = _written(home, f"{number}-report", reporting(home, number, options))
    try:
        _said("sbatch", f"--dependency=afterany:{array}", str(report))
    except Fault as fault:
        raise Fault(f"the cells are job {array}, without a report after them: {fault}") from fault


def cancel(folder: str, cells: Sequence[Cell]) -> None:
    """Take the cells out of the queue; those at work are told to stop, and save."""
    queued = _queued(_home(folder))
    tasks = [queued[cell.id] for cell in cells if cell.id in queued]
    if tasks:
        _said("scancel", *tasks)


def alive(owner: Mapping[str, Any]) -> bool:
    """Whether the task that owns a cell is at work; one that waits for its next start is not."""
    task = owner["job"].removeprefix("slurm:")
    try:
        states = _said("squeue", "-h", "-r", "-j", task, "-o", "%T").split()
    except Fault as fault:
        if "Invalid job id" in str(fault):  # it ended so long ago that Slurm has forgotten it
            return False
        raise
    return any(state != "PENDING" for state in states)


def script(home: pathlib.Path, number: int, cells: int, options: Slurm) -> str:
    """The array's script, for that many cells whose ids are in FOLDER/slurm/NUMBER.ids."""
    most = f"%{options.at_once}" if options.at_once else ""
    wanted = [
        f"--job-name={_name(home, number)}",
        f"--array=0-{cells - 1}{most}",
        f"--output={_literal(home)}/slurm/%A_%a.log",  # Slurm's own words; the cell's are elsewhere
        "--open-mode=append",
        "--requeue",
        f"--signal=B:TERM@{options.grace}",
        *_wanted(options),
    ]
    for name, value in (
        ("time", options.time),
        ("gres", f"gpu:{options.gpus}" if options.gpus else ""),
        ("cpus-per-task", options.cpus),
        ("mem", options.memory),
    ):
        if value:
            wanted.append(f"--{name}={value}")
    cell = shlex.join([*_melllm(options), "sweep", "cell", str(home)])
    folder = shlex.quote(str(home))
    lines = [
        f'id=$(sed -n "$((SLURM_ARRAY_TASK_ID + 1))p" {folder}/slurm/{number}.ids)',
        f'exec >>{folder}/logs/"$id".log 2>&1',
        "unset SLURM_STEP_NODELIST",  # of a launcher in a step: JAX would take the cell for a part
        *options.setup,
        f'set -- {cell} "$id"; retries={options.retries}',
        WATCHED + _AGAIN,
    ]
    return _script(wanted, lines)


def reporting(home: pathlib.Path, number: int, options: Slurm) -> str:
    """The script of the job that writes the report."""
    wanted = [
        f"--job-name={_name(home, number)}-report",
        f"--output={_literal(home)}/logs/report.log",
        *_wanted(options),
    ]
    report = shlex.join([*_melllm(options), "sweep", "report", str(home)])
    return _script(wanted, [*options.setup, f"exec {report}"])


# A task that was only told to stop is RUNNING to Slurm. One that scancel ends is not, nor one that
# Slurm itself has put back: those must not be requeued by us.
_AGAIN = """\
task=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID
again=
if [ -n "$told" ]; then
  [ "$status" -eq 0 ] || [ "$status" -gt 128 ] && again=1
elif [ "$status" -gt 128 ] && [ "${SLURM_RESTART_COUNT:-0}" -lt "$retries" ]; then
  again=1
fi
if [ -n "$again" ] && [ -n "$(squeue -h -r -t RUNNING -j "$task" -o %i)" ]; then
  scontrol requeue "$task"
fi
exit "$status"
"""


def _wanted(options: Slurm) -> list[str]:
    """Options of sbatch that cells and the report have in common."""
    named = {"partition": options.partition, "account": options.account}
    return [
        *(f"--{name}={value}" for name, value in named.items() if value),
        *(f"--{word.strip().lstrip('-')}" for word in options.extra),
    ]


def _script(wanted: Sequence[str], lines: Sequence[str]) -> str:
    asked = (f"#SBATCH {shlex.quote(word)}" for word in wanted)
    return "\n".join(["#!/bin/bash", *asked, *lines, ""])


def _written(home: pathlib.Path, name: str, text: str) -> pathlib.Path:
    path = home / f"slurm/{name}.sh"
    path.write_text(text)
    return path


def _melllm(options: Slurm) -> list[str]:
    return shlex.split(options.melllm) if options.melllm else list(MELLLM)


def _home(folder: str) -> pathlib.Path:
    if "://" in folder:
        raise Mistake(f"workdir={folder}: must be a folder that all of Slurm's nodes share")
    return pathlib.Path(folder).absolute()


def _name(home: pathlib.Path, number: int) -> str:
    """The job's name: of this folder and submission alone."""
    return f"melllm-{hashlib.sha256(str(home).encode()).hexdigest()[:10]}-{number}"


def _literal(home: pathlib.Path) -> str:
    """The folder in a file name that Slurm fills in: a percent sign is written twice."""
    return str(home).replace("%", "%%")


def _listed(home: pathlib.Path, ids: Sequence[str]) -> tuple[int, pathlib.Path]:
    """A number for this submission that no other has, and the file of its ids."""
    for number in itertools.count(1):
        path = home / f"slurm/{number}.ids"
        try:
            with path.open("x") as file:
                file.write("".join(f"{id}\n" for id in ids))
        except FileExistsError:
            continue
        return number, path
    raise AssertionError("numbers do not end")


def _queued(home: pathlib.Path) -> dict[str, str]:
    """The tasks that wait or run, by the id of their cell."""
    listed = {
        _name(home, int(path.stem)): path.read_text().split() for path in home.glob("slurm/*.ids")
    }
    if not listed:
        return {}
    words = ["-h", "-r", "-n", ",".join(listed), "-o", "%j %F %K %T"]
    rows = [line.split() for line in _said("squeue", *words).splitlines()]
    return {
        listed[name][int(index)]: f"{job}_{index}"
        for name, job, index, state in rows
        if state != "COMPLETING"
    }


def _said(*words: str) -> str:
    """What a program of Slurm's answers. Raises Fault with its own words."""
    try:
        done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    except OSError as error:
        raise Fault(f"{words[0]}: cannot be run: {error.strerror}") from error
    if done.returncode:
        lines = done.stderr.replace(f"{words[0]}: error: ", "").splitlines()
        said = "; ".join(line.strip() for line in lines if line.strip())
        raise Fault(f"{words[0]}: {said or f'ended with status {done.returncode}'}")
    return done.stdout.strip()
