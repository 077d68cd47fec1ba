"""Sweeps of training runs that are as small as they get, started as a user does."""

import json
import os
import pathlib
import re
import signal

import psutil

from launch.sweep.ledger import Ledger
from tests.support.paths import ROOT
from tests.support.patience import HANG
from tests.support.runs import SMALL, started

PAUSE = pathlib.Path(__file__).parent / "pause"
HERE = {"JAX_NUM_CPU_DEVICES": "1"}
ONE_ROW = SMALL | {"data.b": "1"}  # for one device
COMMON = [word for name, value in ONE_ROW.items() for word in ("--set", f"{name}={value}")]
EVAL = ["--eval.split", "train", "--eval.most", "4", "--eval.wer", "2"]


def spec(folder, body, name="little"):
    """A SPEC.py whose cells() returns the expression `body`."""
    path = folder / f"{name}.py"
    path.write_text(f"from launch.sweep import spec\n\ndef cells():\n    return {body}\n")
    return path


def grid(steps, every, count=2):
    """The expression of `count` cells that differ in their seeds."""
    return (
        f'spec.grid({{"preset": ["digits"], "seed": {list(range(count))}, '
        f'"optim.steps": [{steps}], "checkpoints.every": [{every}], "optim.compute": ["float32"]}})'
    )


def words(path, corpus, workdir, *more):
    """The words of `melllm sweep run`."""
    given = ["--data", str(corpus), "--workdir", str(workdir)]
    return ["sweep", "run", str(path), *given, *COMMON, *EVAL, *map(str, more)]


def sweep(path, corpus, workdir, *more):
    """`melllm sweep run` as a process."""
    return started(words(path, corpus, workdir, *more), **HERE)


def paused(path, corpus, workdir, after, *more):
    """`melllm sweep run` as a process whose cells stop, as by SIGSTOP, after that update."""
    pause = {"PYTHONPATH": f"{ROOT}:{PAUSE}", "MELLLM_TESTS_PAUSE_AFTER": str(after)}
    return started(words(path, corpus, workdir, *more), **HERE, **pause)


def resumed(workdir, *more):
    """`melllm sweep resume` as a process."""
    return started(["sweep", "resume", str(workdir), *map(str, more)], **HERE)


def finished(process, status=0):
    """What a process said, once it has ended with that status."""
    out, err = process.communicate(timeout=HANG)
    assert process.returncode == status, err
    return out, err


def cells(workdir):
    """The cells, none where there is no ledger yet."""
    return Ledger(str(workdir)).cells() if (workdir / "sweep.json").exists() else []


def losses(workdir):
    """Held-out losses of what is done, by cell."""
    return {cell.id: cell.result["loss"] for cell in cells(workdir) if cell.state == "done"}


def at_work(workdir):
    """Processes of cells that say they run."""
    return [cell.owner["pid"] for cell in cells(workdir) if cell.state == "running"]


def held(workdir, past, count=2):
    """Stops each cell once it is past that update, a checkpoint behind it; whether all are held.

    Called again and again: a cell is stopped wherever the others are, so that none ends before
    the last one comes to that update, on a machine of any load.
    """
    there = lambda cell: updates(workdir, cell.id) > past and saved(workdir, cell.id)
    for cell in cells(workdir):
        if cell.state == "running" and there(cell):
            os.kill(cell.owner["pid"], signal.SIGSTOP)
    found = cells(workdir)
    return len(found) == count and all(map(there, found))


def all_paused(workdir, count=2):
    """Whether the cells of a `paused` sweep have all stopped themselves.

    That they tell of the update is too early: one that is told to go on then stops after it.
    """
    pids = at_work(workdir)
    return len(pids) == count and all(map(_is_stopped, pids))


def _is_stopped(pid):
    try:
        return psutil.Process(pid).status() == psutil.STATUS_STOPPED
    except psutil.NoSuchProcess:  # one that was killed and is not yet followed by another
        return False


def told_to_end(pids):
    """Whether SIGTERM waits for each of these paused processes, which gets it as it goes on."""
    return all(map(_has_term, pids))


def _has_term(pid):
    status = pathlib.Path("/proc", str(pid), "status").read_text()
    (waiting,) = re.findall(r"^ShdPnd:\s*(\w+)$", status, re.MULTILINE)
    return bool(int(waiting, 16) >> signal.SIGTERM - 1 & 1)


def let_go(pids):
    """The cells of these processes go on; a signal that was sent meanwhile reaches them now."""
    for pid in pids:
        os.kill(pid, signal.SIGCONT)


def updates(workdir, name):
    """The last update of a cell that metrics tell of."""
    path = workdir / "runs" / name / "metrics.jsonl"
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return json.loads(lines[-1])["step"] if lines else 0


def saved(workdir, name):
    """Updates at which a cell has whole checkpoints."""
    folder = pathlib.Path(workdir, "runs", name, "checkpoints")
    return sorted(int(one.name) for one in folder.glob("*") if one.name.isdigit())


def killed(process):
    """A process is gone without a word."""
    os.kill(process.pid if hasattr(process, "pid") else process, signal.SIGKILL)
