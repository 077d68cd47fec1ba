"""Cells on a real Slurm of one node, and what is refused where there is none.

A stand-in for `melllm` counts to a target, keeps its place in a file and stops at SIGTERM: what is
tested here is which process is started, told to stop, and started again.
"""

import dataclasses
import pathlib
import shutil
import subprocess
import sys

import pytest

from launch.sweep.backends import slurm, slurm_script
from launch.sweep.backends.slurm_script import Slurm
from launch.sweep.ledger import Cell
from melllm_jax.errors import Fault, Mistake
from tests.support import sweeps
from tests.support.runs import corpus
from tests.support.slurmd import cluster, until

STAND_IN = """\
import os, pathlib, signal, sys, time
what, folder = sys.argv[2], pathlib.Path(sys.argv[3])
if what == "report":
    done = [path.name for path in sorted((folder / "done").iterdir())]
    (folder / "report.part").write_text(" ".join(done))
    (folder / "report.part").rename(folder / "report.html")
    sys.exit()
name = sys.argv[4]
told = []
signal.signal(signal.SIGTERM, lambda *_: told.append(1))
place = folder / "at" / name
at = int(place.read_text()) if place.exists() else 0
task = os.environ["SLURM_ARRAY_JOB_ID"] + "_" + os.environ["SLURM_ARRAY_TASK_ID"]
(folder / "owners" / name).write_text(f"{os.getpid()} {task}")
print("from", at, flush=True)
while at < int((folder / "target").read_text()):
    if told:
        print("saved", at, flush=True)
        sys.exit()
    time.sleep(0.02)
    at += 1
    place.with_suffix(".new").write_text(str(at))
    place.with_suffix(".new").replace(place)
(folder / "done" / name).write_text("")
print("done", at, flush=True)
if name[0] == "f":
    sys.exit(2)
"""
ENDLESS = 10**9


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    folder = tmp_path_factory.mktemp("slurm")
    with cluster(folder):
        yield folder


@pytest.fixture
def sweep(running, tmp_path):
    """A folder whose name Slurm and the shell must be kept from reading."""
    folder = tmp_path / "a %j's sweep"
    for name in ("at", "owners", "done"):
        (folder / name).mkdir(parents=True)
    (folder / "stand_in.py").write_text(STAND_IN)
    yield folder
    (folder / "target").write_text("0")
    slurm.cancel(str(folder), [cell(id) for ids in _ids(folder) for id in ids])
    until(lambda: asked("squeue", "-h") == "")


def _ids(folder):
    return [path.read_text().split() for path in folder.glob("slurm/*.ids")]


def cell(id):
    return Cell(id, 0, {}, 1, {}, 0.0)


def options(folder, **more):
    return Slurm(melllm=f'{sys.executable} -S "{folder}/stand_in.py"', **more)


def started(folder, ids, target, **more):
    (folder / "target").write_text(str(target))
    slurm.start(str(folder), ids, options(folder, **more))


def said(folder, id):
    path = folder / f"logs/{id}.log"
    lines = path.read_text().splitlines() if path.exists() else []
    return [line for line in lines if line.split()[0] in ("from", "saved", "done")]


def owner(folder, id):
    """Process and task of whoever is at the cell."""
    path = folder / "owners" / id
    until(lambda: path.exists() and " " in path.read_text())
    pid, task = path.read_text().split()
    return int(pid), task


def at(folder, id):
    path = folder / "at" / id
    return int(path.read_text()) if path.exists() else 0


def finished(folder):
    return {path.name for path in (folder / "done").iterdir()}


def asked(*words):
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout


def state(task):
    done = subprocess.run(
        ["squeue", "-h", "-r", "-j", task, "-o", "%T"], capture_output=True, text=True
    )
    return done.stdout.strip()


def test_cells_all_run_and_the_report_comes_last(sweep):
    started(sweep, ["a1", "b2", "f3"], 3, partition="all", cpus=1, at_once=2, setup=("umask 77",))
    until((sweep / "report.html").exists)
    assert (sweep / "report.html").read_text() == "a1 b2 f3"  # one that fails holds nothing up
    assert [said(sweep, id) for id in ("a1", "b2", "f3")] == [["from 0", "done 3"]] * 3
    assert (sweep / "done/a1").stat().st_mode & 0o77 == 0


def test_cells_in_the_queue_are_not_submitted_twice(sweep):
    started(sweep, ["a1"], ENDLESS)
    owner(sweep, "a1")
    slurm.start(str(sweep), ["a1"], options(sweep))
    slurm.start(str(sweep), ["a1", "b2"], options(sweep))
    assert sorted(_ids(sweep)) == [["a1"], ["b2"]]


def test_words_of_sbatch_are_told_and_nothing_stays(sweep):
    rule = (
        "^slurm: the options .* refused: sbatch: invalid partition specified: none; Batch job .*$"
    )
    with pytest.raises(Mistake, match=rule):
        started(sweep, ["a1"], 1, partition="none")
    with pytest.raises(Mistake, match="refused: sbatch: Invalid --time specification"):
        started(sweep, ["a1"], 1, time="soon")
    assert list((sweep / "slurm").iterdir()) == []


def test_cluster_that_does_not_answer_is_a_fault(sweep, monkeypatch):
    def run(words, **_):
        return subprocess.CompletedProcess(words, 1, "", "sbatch: error: Unable to contact it\n")

    with monkeypatch.context() as patched:
        patched.setattr(slurm.subprocess, "run", run)
        with pytest.raises(Fault, match="^sbatch: Unable to contact it$"):
            started(sweep, ["a1"], 1)
    assert list((sweep / "slurm").iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("how", ["--signal=TERM --batch", "--signal=TERM --full"])
def test_task_told_to_stop_saves_and_goes_on_where_it_was(sweep, how):
    started(sweep, ["a1"], ENDLESS)
    _, task = owner(sweep, "a1")
    until(lambda: at(sweep, "a1") > 5)
    asked("scancel", *how.split(), task)
    until(lambda: state(task) == "PENDING")
    saved = at(sweep, "a1")
    assert not (sweep / "report.html").exists()
    assert not slurm.is_alive({"job": f"slurm:{task}"})
    (sweep / "target").write_text(str(saved + 5))
    until(lambda: finished(sweep) == {"a1"})
    assert said(sweep, "a1") == ["from 0", f"saved {saved}", f"from {saved}", f"done {saved + 5}"]
    until((sweep / "report.html").exists)


@pytest.mark.slow
def test_task_requeued_by_slurm_goes_on_where_it_was(sweep):
    started(sweep, ["a1"], ENDLESS)
    _, task = owner(sweep, "a1")
    until(lambda: at(sweep, "a1") > 5)
    asked("scontrol", "requeue", task)  # as a preemption does
    until(lambda: "saved" in " ".join(said(sweep, "a1")))
    saved = at(sweep, "a1")
    (sweep / "target").write_text(str(saved + 5))
    until(lambda: finished(sweep) == {"a1"})
    assert said(sweep, "a1") == ["from 0", f"saved {saved}", f"from {saved}", f"done {saved + 5}"]


@pytest.mark.slow
def test_task_at_its_time_limit_saves_and_goes_on(sweep):
    started(sweep, ["a1"], ENDLESS, time="1", grace=60)  # so it is told as soon as it begins
    _, task = owner(sweep, "a1")
    until(lambda: state(task) == "PENDING")
    saved = at(sweep, "a1")
    (sweep / "target").write_text(str(saved + 1))
    until(lambda: finished(sweep) == {"a1"})
    assert said(sweep, "a1")[:3] == ["from 0", f"saved {saved}", f"from {saved}"]


@pytest.mark.slow
def test_cell_that_is_killed_is_started_again_a_few_times(sweep):
    started(sweep, ["a1", "b2"], ENDLESS, retries=1)
    first, task = owner(sweep, "a1")
    until(lambda: at(sweep, "a1") > 5)
    asked("kill", "-9", str(first))
    until(lambda: state(task) == "PENDING")
    second = until(lambda: (pid := owner(sweep, "a1")[0]) != first and pid)
    asked("kill", "-9", str(second))
    until(lambda: state(task) in ("", "COMPLETING"))
    assert [line.split()[0] for line in said(sweep, "a1")] == ["from", "from"]
    assert int(said(sweep, "a1")[1].split()[1]) > 0
    assert slurm.is_alive({"job": f"slurm:{owner(sweep, 'b2')[1]}"})
    assert not slurm.is_alive({"job": f"slurm:{task}"})
    assert not slurm.is_alive({"job": "slurm:999999_0"})


@pytest.mark.slow
def test_machine_that_dies_gives_its_cell_back_to_the_queue(sweep, running):
    started(sweep, ["a1"], ENDLESS)
    pid, task = owner(sweep, "a1")
    until(lambda: at(sweep, "a1") > 5)
    step = parent(parent(pid))
    daemon = int((running / "slurmd.pid").read_text())
    asked("kill", "-9", *map(str, (daemon, step, parent(pid), pid)))
    reached = at(sweep, "a1")
    until(lambda: state(task) == "PENDING")
    asked("slurmd")  # the machine is back
    (sweep / "target").write_text(str(reached + 5))
    until(lambda: finished(sweep) == {"a1"})
    assert said(sweep, "a1") == ["from 0", f"from {reached}", f"done {reached + 5}"]


@pytest.mark.slow
def test_job_step_killed_with_its_shell_is_resumed(sweep):
    started(sweep, ["a1", "b2"], ENDLESS)
    pid, task = owner(sweep, "a1")
    until(lambda: at(sweep, "a1") > 5)
    asked("kill", "-9", str(parent(pid)), str(pid))
    until(lambda: state(task) == "")
    reached = at(sweep, "a1")
    started(sweep, ["a1", "b2"], ENDLESS)
    until(lambda: len(said(sweep, "a1")) == 2)
    (sweep / "target").write_text("0")
    until(lambda: finished(sweep) == {"a1", "b2"})
    assert said(sweep, "a1")[:2] == ["from 0", f"from {reached}"]
    assert len(said(sweep, "b2")) == 2  # it was at work all the time, and is left to it


def parent(pid):
    return int(pathlib.Path("/proc", str(pid), "stat").read_text().rpartition(")")[2].split()[1])


@pytest.mark.slow
def test_sweep_whose_cells_are_stopped_and_killed_ends_as_one_that_nothing_interrupts(
    running, tmp_path
):
    data = corpus(tmp_path / "data", 100)
    path = sweeps.spec(tmp_path, sweeps.grid(120, 20))
    sweeps.finished(sweeps.sweep(path, data, tmp_path / "plain", "--local.at-once", "2"))
    folder = tmp_path / "sweep"
    sweeps.finished(sweeps.sweep(path, data, folder, "--backend", "slurm", "--slurm.at-once", "2"))
    names = [cell.id for cell in sweeps.cells(folder)]
    until(lambda: sweeps.held(folder, 25))
    stopped, killed = (cell.owner for cell in sweeps.cells(folder))
    asked("scancel", "--signal=TERM", "--batch", stopped["job"].removeprefix("slurm:"))
    sweeps.let_go([stopped["pid"]])
    sweeps.killed(killed["pid"])
    until(lambda: len(sweeps.losses(folder)) == 2)
    assert sweeps.losses(folder) == sweeps.losses(tmp_path / "plain")
    assert [cell.attempt for cell in sweeps.cells(folder)] == [2, 2]
    for name in names:
        assert "resuming after update" in (folder / f"logs/{name}.log").read_text()
    until(lambda: asked("squeue", "-h") == "")
    assert (folder / "report.html").stat().st_size > 5000


def test_cancelled_cells_leave_the_queue_and_others_stay(sweep):
    started(sweep, ["a1", "b2", "c3"], ENDLESS, at_once=2)
    _, task = owner(sweep, "a1")
    _, other = owner(sweep, "b2")
    until(lambda: at(sweep, "a1") > 5)
    slurm.cancel(str(sweep), [cell("a1"), cell("c3"), cell("none")])
    until(lambda: state(task) == "")
    assert said(sweep, "a1") == ["from 0", f"saved {at(sweep, 'a1')}"]
    assert state(other) == "RUNNING"
    assert state(other.replace("_1", "_2")) == "" and said(sweep, "c3") == []


def test_missing_programs_are_a_mistake_in_one_line(monkeypatch, tmp_path):
    (tmp_path / "sbatch").symlink_to(shutil.which("true"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Mistake, match=r"^backend=slurm: squeue, scancel, scontrol cannot be found"):
        slurm.check(Slurm(), str(tmp_path))
    with pytest.raises(Mistake, match="must be a folder that all of Slurm's nodes share"):
        slurm.check(Slurm(), "gs://bucket/sweep")


@pytest.mark.parametrize(
    ("field", "value", "rule"),
    [
        ("gpus", -1, "must be 0 or more"),
        ("time", "1\n2", "must be one line"),
        ("extra", ("--",), "must be an option of sbatch"),
        ("extra", ("qos=high", "--nodes=2"), "a cell is one process of one node"),
    ],
)
def test_options_that_no_script_can_hold_are_refused(field, value, rule):
    with pytest.raises(Mistake, match=rf"^slurm\.{field}=.*{rule}"):
        Slurm(**{field: value})


def test_options_read_from_a_ledger_are_the_same():
    made = Slurm(extra=("qos=high",), setup=("true",))
    assert Slurm(**{**dataclasses.asdict(made), "extra": ["qos=high"], "setup": ["true"]}) == made


def test_folder_in_a_bucket_is_refused():
    with pytest.raises(Mistake, match=r"^workdir=gs://b/s: must be a folder"):
        slurm.start("gs://b/s", ["a1"], Slurm())


def test_script_asks_for_what_the_options_say():
    asked = Slurm("gpu", "lab", "2:00:00", 8, 16, "64G", 3, extra=("qos=high", "--nice=5"))
    text = slurm_script.array_script(pathlib.Path("/s"), 2, 5, asked)
    lines = {line.removeprefix("#SBATCH ") for line in text.splitlines() if "#SBATCH" in line}
    assert lines >= {
        "--array=0-4%3",
        "--partition=gpu",
        "--account=lab",
        "--time=2:00:00",
        "--gres=gpu:8",
        "--cpus-per-task=16",
        "--mem=64G",
        "--qos=high",
        "--nice=5",
        "--requeue",
        "--signal=B:TERM@120",
        "--open-mode=append",
    }
    assert "sweep cell /s" in text and "/s/slurm/2.ids" in text
    assert "SBATCH --gres" not in slurm_script.report_script(pathlib.Path("/s"), 2, asked)
