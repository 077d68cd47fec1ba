"""The options of a Slurm sweep, and the two sbatch scripts made of them.

One script is the array's, a task a cell; the other is the report's. What must hold: a task that is
told to stop (preemption, its time limit, `scancel --signal=TERM --batch`) lets its cell save and
goes back into the queue; one that is cancelled does not. The job's name says folder and submission.

Sources: sbatch(1), squeue(1) and scancel(1) of Slurm 22.05."""

from collections.abc import Sequence
import dataclasses
import hashlib
import pathlib
import re
import shlex
import sys

from launch.sweep.backends.signal_forwarding import RUN_FORWARDING_SIGTERM
from melllm_jax.errors import Mistake

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


def array_script(home: pathlib.Path, number: int, cells: int, options: Slurm) -> str:
    """The array's script, for that many cells whose ids are in FOLDER/slurm/NUMBER.ids."""
    most = f"%{options.at_once}" if options.at_once else ""
    flags = [
        f"--job-name={job_name(home, number)}",
        f"--array=0-{cells - 1}{most}",
        f"--output={_escape_percent(home)}/slurm/%A_%a.log",  # Slurm's own words
        "--open-mode=append",
        "--requeue",
        f"--signal=B:TERM@{options.grace}",
        *_sbatch_options(options),
    ]
    for name, value in (
        ("time", options.time),
        ("gres", f"gpu:{options.gpus}" if options.gpus else ""),
        ("cpus-per-task", options.cpus),
        ("mem", options.memory),
    ):
        if value:
            flags.append(f"--{name}={value}")
    cell = shlex.join([*_melllm(options), "sweep", "cell", str(home)])
    folder = shlex.quote(str(home))
    lines = [
        f'id=$(sed -n "$((SLURM_ARRAY_TASK_ID + 1))p" {folder}/slurm/{number}.ids)',
        f'exec >>{folder}/logs/"$id".log 2>&1',
        "unset SLURM_STEP_NODELIST",  # of a launcher in a step: JAX would take the cell for a part
        *options.setup,
        f'set -- {cell} "$id"; retries={options.retries}',
        RUN_FORWARDING_SIGTERM + _REQUEUE,
    ]
    return _render(flags, lines)


def report_script(home: pathlib.Path, number: int, options: Slurm) -> str:
    """The script of the job that writes the report."""
    flags = [
        f"--job-name={job_name(home, number)}-report",
        f"--output={_escape_percent(home)}/logs/report.log",
        *_sbatch_options(options),
    ]
    report = shlex.join([*_melllm(options), "sweep", "report", str(home)])
    return _render(flags, [*options.setup, f"exec {report}"])


# A task that only got SIGTERM is RUNNING to Slurm. One that scancel ends is not, nor one that
# Slurm itself has put back: those must not be requeued by us.
_REQUEUE = """\
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


def _sbatch_options(options: Slurm) -> list[str]:
    """Options of sbatch that cells and the report have in common."""
    named = {"partition": options.partition, "account": options.account}
    return [
        *(f"--{name}={value}" for name, value in named.items() if value),
        *(f"--{word.strip().lstrip('-')}" for word in options.extra),
    ]


def _render(flags: Sequence[str], lines: Sequence[str]) -> str:
    directives = (f"#SBATCH {shlex.quote(flag)}" for flag in flags)
    return "\n".join(["#!/bin/bash", *directives, *lines, ""])


def _melllm(options: Slurm) -> list[str]:
    return shlex.split(options.melllm) if options.melllm else list(MELLLM)


def job_name(home: pathlib.Path, number: int) -> str:
    """The job's name: of this folder and submission alone."""
    return f"melllm-{hashlib.sha256(str(home).encode()).hexdigest()[:10]}-{number}"


def _escape_percent(home: pathlib.Path) -> str:
    """The folder in a file name that Slurm fills in: a percent sign is written twice."""
    return str(home).replace("%", "%%")
