"""`melllm sweep` as a user runs it: all cells end done, whatever is killed on the way."""

import dataclasses
import json
import os
import re
import shutil
import signal
import time

import pytest

from launch import cli
from launch.commands.sweep import run as sweep_run
from launch.sweep import cell as working
from launch.sweep import claim_owner, ledger
from launch.sweep.ledger import Ledger
from tests.support import sweeps
from tests.support.runs import corpus, done, everything, reached, refused
from tests.support.sweeps import finished, grid, resumed, spec, sweep, words

STEPS, EVERY = 120, 20


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return corpus(tmp_path_factory.mktemp("data"), 100)


@pytest.fixture(scope="module")
def plain(tmp_path_factory, data):
    """Losses of the cells of a sweep that nothing interrupts."""
    folder = tmp_path_factory.mktemp("plain")
    path = spec(folder, grid(STEPS, EVERY))
    out, _ = finished(sweep(path, data, folder / "sweep", "--local.at-once", "2"))
    assert "2 done" in out
    assert (folder / "sweep/report.html").stat().st_size > 5000
    return sweeps.losses(folder / "sweep")


def held(path, data, workdir, after=EVERY + 6):
    """A sweep whose cells all stopped after that update, past a checkpoint; their processes."""
    process = sweeps.paused(path, data, workdir, after, "--local.at-once", "2")
    reached(process, lambda: sweeps.all_paused(workdir))
    return process, sweeps.at_work(workdir)


def assert_saved(workdir, after):
    """Every cell was stopped past that update, and lost none."""
    for cell in sweeps.cells(workdir):
        assert cell.state == "preempted"
        assert sweeps.saved(workdir, cell.id)[-1] == cell.step
        assert after <= cell.step < STEPS


@pytest.mark.slow
def test_cells_killed_and_stopped_in_every_way_go_on_and_end_as_if_they_had_not(
    tmp_path, data, plain
):
    """Killed alone, killed with the machine, told to end by their launcher, and cancelled."""
    path, workdir = spec(tmp_path, grid(STEPS, EVERY)), tmp_path / "sweep"
    process, pids = held(path, data, workdir)
    names = [cell.id for cell in sweeps.cells(workdir)]
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    _, err = finished(process, status=1)
    assert "killed by SIGKILL: `melllm sweep resume` goes on with it" in err

    process, pids = held(path, data, workdir, after=2 * EVERY + 6)  # the same command goes on
    for pid in [process.pid, *pids]:
        os.kill(pid, signal.SIGKILL)
    process.communicate()

    process, pids = held(path, data, workdir, after=3 * EVERY + 6)
    process.send_signal(signal.SIGTERM)
    reached(process, lambda: sweeps.told_to_end(pids))  # before they could end by themselves
    sweeps.let_go(pids)
    finished(process, status=130)
    assert_saved(workdir, 3 * EVERY + 6)

    process, pids = held(path, data, workdir, after=4 * EVERY + 6)
    assert done(["sweep", "cancel", str(workdir)])[0] == 0
    assert sweeps.told_to_end(pids)
    sweeps.let_go(pids)
    finished(process, status=1)
    assert_saved(workdir, 4 * EVERY + 6)

    finished(resumed(workdir))
    for cell in sweeps.cells(workdir):
        assert (cell.state, cell.attempt) == ("done", 5)
        log = (workdir / f"logs/{cell.id}.log").read_text()
        first, second, third, fourth = map(int, re.findall(r"resuming after update (\d+)", log))
        assert first == EVERY
        assert second in (EVERY, 2 * EVERY)  # the second may not have been whole yet
        assert third >= 3 * EVERY + 6
        assert fourth >= 4 * EVERY + 6
    assert [cell.id for cell in sweeps.cells(workdir)] == names
    assert sweeps.losses(workdir) == plain


@pytest.mark.slow
def test_launcher_killed_takes_no_cell_with_it_and_the_next_waits_for_them(tmp_path, data, plain):
    path, workdir = spec(tmp_path, grid(STEPS, EVERY)), tmp_path / "sweep"
    process, pids = held(path, data, workdir)
    process.kill()
    process.communicate()
    sweeps.let_go(pids)
    finished(resumed(workdir))
    assert [cell.attempt for cell in sweeps.cells(workdir)] == [1, 1]
    assert sweeps.losses(workdir) == plain


@pytest.mark.slow
def test_cell_killed_after_its_evaluation_is_recorded_without_training(tmp_path, data):
    path, workdir = spec(tmp_path, grid(4, 2, count=1)), tmp_path / "sweep"
    finished(sweep(path, data, workdir))
    made = Ledger(str(workdir))
    (cell,) = made.cells()
    gone = claim_owner.current_owner() | {"born": "another boot"}
    lost = dataclasses.replace(cell, state="running", owner=gone, result=None, ended=None)
    (workdir / f"cells/{cell.id}.json").write_text(json.dumps(dataclasses.asdict(lost)))
    (workdir / f"claims/{cell.id}.1").write_text(json.dumps(gone | {"claimed": 0.0}))
    before = sweeps.updates(workdir, cell.id)
    finished(resumed(workdir))
    again = made.read(cell.id)
    assert (again.state, again.attempt, again.result) == ("done", 2, cell.result)
    assert sweeps.updates(workdir, cell.id) == before
    assert (workdir / f"logs/{cell.id}.log").read_text().count("step 4/4") == 1


@pytest.mark.slow
def test_failed_cell_says_why_and_stops_no_other(tmp_path, data):
    both = 'spec.zipped({"preset": ["digits"] * 2, "model.v": [320, 64], "optim.steps": [3, 3]})'
    workdir = tmp_path / "sweep"
    out, _ = finished(sweep(spec(tmp_path, both), data, workdir), status=1)
    good, bad = sweeps.cells(workdir)
    assert (good.state, bad.state) == ("done", "failed")
    assert bad.error == "model.v=64: the tokenizer has 261 ids"
    assert bad.error in out
    figures = json.loads(refuse_none(["sweep", "status", str(workdir), "--json"]))
    assert figures["states"] == {"done": 1, "failed": 1}


def refuse_none(given):
    status, out, err = done(given)
    assert status == 0, err
    return out


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("1 / 0", "line 4: ZeroDivisionError: division by zero"),
        ('[{"preset": "digits", "model.dd": 3}]', "cell 0: unknown field model.dd=3: did you mean"),
        ('[{"preset": "digits"}] * 2', "cell 1: is the same run as cell 0"),
        ("[]", "returns no cells"),
    ],
)
def test_spec_that_is_wrong_is_one_line_and_starts_nothing(tmp_path, capsys, data, body, said):
    path = spec(tmp_path, body)
    assert said in refused(words(path, data, tmp_path / "sweep"), capsys)
    assert not (tmp_path / "sweep").exists()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["nowhere.py", "--workdir", "w"], "spec=nowhere.py: is no file"),
        (["SPEC", "--workdir", "w", "--set", "optim.lr"], "set=optim.lr: must be FIELD=VALUE"),
        (["SPEC", "--workdir", "w", "--set", "optim.x=1"], "unknown field optim.x=1"),
        (["SPEC", "--workdir", "w", "--local.at-once", "999"], "local.at_once=999: there are"),
        (["SPEC", "--workdir", "w", "--local.at-once", "-1"], "local.at_once=-1: must be 0 or"),
        (["SPEC", "--workdir", "w", "--eval.most", "-1"], "eval.most=-1: must be 0 or more"),
        (["SPEC", "--workdir", "w", "--topology", "v5p:9"], "v5p:9"),
        (["SPEC", "--workdir", "w"], "data: give at least one corpus with --data DIR"),
        (["SPEC", "--workdir", "w", "--data", "nowhere"], "data=nowhere: is no folder"),
        ([], "no SPEC.py given"),
    ],
)
def test_flags_that_are_wrong_are_one_line_and_start_nothing(
    tmp_path, capsys, monkeypatch, given, said
):
    monkeypatch.chdir(tmp_path)
    path = spec(tmp_path, grid(2, 2))
    given = [str(path) if word == "SPEC" else word for word in given]
    assert said in refused(["sweep", "run", *given], capsys)
    assert [one.name for one in tmp_path.iterdir()] == [path.name]


def test_split_that_a_corpus_lacks_is_told_before_anything_is_trained(
    tmp_path, capsys, monkeypatch, data
):
    monkeypatch.setattr(sweep_run, "measure_matmul_rate", {"float32": 1e9, "bfloat16": 1e9}.get)
    path, workdir = spec(tmp_path, grid(2, 2)), tmp_path / "sweep"
    given = ["sweep", "run", str(path), "--workdir", str(workdir), "--data", str(data)]
    line = refused([*given, "--eval.split", "dev"], capsys)
    assert f"eval.split=dev: {data} has train" in line
    (tmp_path / "other").mkdir()
    shutil.copy(data / "train.jsonl", tmp_path / "other/train_5.jsonl")
    line = refused([*given[:-1], str(tmp_path / "other"), "--eval.split", "train_5"], capsys)
    assert f"split=train: {tmp_path / 'other'} has train_5" in line
    assert not workdir.exists()


def test_sweep_goes_on_where_it_was_started_last(tmp_path):
    sweep = ledger.Sweep("s", "1234", (), {}, "local", {"at_once": 1}, {})
    made = ledger.create(str(tmp_path / "sweep"), sweep, ())
    made.keep_backend("slurm", {"partition": "all", "setup": ()})
    again = ledger.create(str(tmp_path / "sweep"), sweep, ()).sweep
    assert (again.backend, again.options) == ("slurm", {"partition": "all", "setup": []})


@pytest.mark.parametrize("what", ["resume", "status", "cancel", "report"])
def test_folder_without_a_sweep_is_refused(tmp_path, capsys, what):
    assert "holds no sweep.json" in refused(["sweep", what, str(tmp_path)], capsys)
    assert list(tmp_path.iterdir()) == []


def test_missing_program_of_a_cluster_is_one_line_and_nothing_is_written(
    tmp_path, capsys, monkeypatch, data
):
    path = spec(tmp_path, grid(2, 2))
    monkeypatch.setenv("PATH", str(tmp_path))
    for backend, program in (("slurm", "sbatch"), ("gke", "kubectl")):
        line = refused(words(path, data, tmp_path / "sweep", "--backend", backend), capsys)
        assert program in line
    assert not (tmp_path / "sweep").exists()


def test_folder_of_another_spec_is_refused_and_left_alone(tmp_path, capsys, data):
    sweep = ledger.Sweep("other", "1234", (), {}, "local", {}, {})
    ledger.create(str(tmp_path / "sweep"), sweep, ())
    before = everything(tmp_path / "sweep")
    line = refused(words(spec(tmp_path, grid(2, 2)), data, tmp_path / "sweep"), capsys)
    assert "holds the sweep other with another list of cells" in line
    assert everything(tmp_path / "sweep") == before


def test_dry_run_prints_every_cell_and_writes_nothing(tmp_path, capsys, data):
    path = spec(tmp_path, grid(20, 2, count=3))
    given = words(path, data, tmp_path / "sweep", "--dry-run", "--topology", "v5e:1x1")
    assert cli.main([*given, "--price", "1.2"]) == 0
    out = capsys.readouterr().out
    assert len(out.strip().split("\n")) == 5  # heads, three cells, all
    assert not (tmp_path / "sweep").exists()


def test_beat_of_a_lost_attempt_stops_it(tmp_path, monkeypatch):
    monkeypatch.setattr(claim_owner, "BEAT", 0.05)
    one = ledger.Cell("aa", 0, {"preset": "digits"}, 10, {}, 0.0)
    made = ledger.create(str(tmp_path), ledger.Sweep("x", "1", ("aa",), {}, "local", {}, {}), [one])
    first = made.claim("aa", claim_owner.current_owner(), lambda _: False)
    stopped = []
    before = signal.signal(signal.SIGTERM, lambda *_: stopped.append(True))
    try:
        with working.Attempt(made, first):
            while made.read("aa").beat == first.beat:
                time.sleep(0.01)
            assert made.read("aa").beat > first.beat
            assert not stopped
            made.claim("aa", claim_owner.current_owner(), lambda _: False)
            while not stopped:
                time.sleep(0.01)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert made.read("aa").attempt == 2


def test_cell_of_a_cancelled_sweep_is_not_begun(tmp_path, capsys):
    made = ledger.create(
        str(tmp_path),
        ledger.Sweep("x", "1", ("aa",), {}, "local", {}, {}),
        [ledger.Cell("aa", 0, {"preset": "digits"}, 10, {}, 0.0)],
    )
    made.cancel()
    assert cli.main(["sweep", "cell", str(tmp_path), "aa"]) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert made.read("aa").attempt == 0
