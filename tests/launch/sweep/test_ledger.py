"""The ledger: claims are one process's, and nobody who was replaced writes."""

import concurrent.futures
import dataclasses
import json
import os
import pathlib
import re
import subprocess
import sys
import time

import pytest

from launch.runtime import process_identity
from launch.sweep import claim_owner, ledger
from launch.sweep.ledger import Cell, Ledger, Sweep
from melllm_jax.errors import Fault, Mistake
from tests.support.buckets import bucket
from tests.support.patience import HANG

NAMES = ("aa", "bb", "cc")


def sweep(**changes):
    known = {
        "name": "scaling",
        "digest": "1234",
        "cells": NAMES,
        "common": {"data.sources": [{"path": "corpus"}]},
        "backend": "local",
        "options": {},
        "eval": {"split": "test"},
    }
    return Sweep(**(known | changes))


def made(folder, **changes):
    plan = {"params": 1000, "flops": 1e9}
    cells = [
        Cell(name, i, {"preset": "digits", "seed": i}, 100, plan, 0.0)
        for i, name in enumerate(NAMES)
    ]
    return ledger.create(str(folder), sweep(**changes), cells)


def at_work(owner):
    return True


def gone(owner):
    return False


def test_create_writes_a_file_a_cell_and_the_same_again_changes_nothing(tmp_path):
    first = made(tmp_path)
    assert [cell.id for cell in first.cells()] == list(NAMES)
    assert {cell.state for cell in first.cells()} == {"pending"}
    claimed = first.claim("bb", claim_owner.current_owner(), at_work)
    assert made(tmp_path).read("bb") == claimed
    assert Ledger(str(tmp_path)).sweep == sweep()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"digest": "99"}, "holds the sweep scaling with another list of cells: 1234, not 99"),
        (
            {"common": {}},
            "with another data or flags: data.sources=None (it has [{'path': 'corpus'",
        ),
        ({"eval": {"split": "dev"}}, "with another final evaluation: split=dev (it has test)"),
    ],
)
def test_folder_of_another_sweep_is_refused_and_left_alone(tmp_path, changes, said):
    made(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(Mistake, match=re.escape(said)):
        made(tmp_path, **changes)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_creation_that_was_cut_off_is_no_sweep_and_is_finished_later(tmp_path):
    made(tmp_path)
    (tmp_path / "sweep.json").unlink()
    (tmp_path / "cells/cc.json").unlink()
    with pytest.raises(Mistake, match=r"holds no sweep\.json"):
        Ledger(str(tmp_path))
    assert len(made(tmp_path).cells()) == 3


def test_claim_of_many_processes_is_won_by_one(tmp_path):
    made(tmp_path)
    program = (
        "import sys; from launch.sweep import claim_owner; from launch.sweep.ledger import Ledger\n"
        "me, is_alive = claim_owner.current_owner(), claim_owner.is_alive\n"
        f"print(Ledger({str(tmp_path)!r}).claim('aa', me, is_alive) is not None)\n"
        "sys.stdin.read()\n"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    found = [process.stdout.readline().strip() for process in processes]
    for process in processes:
        process.communicate()
    assert sorted(found) == ["False", "False", "False", "True"]
    assert Ledger(str(tmp_path)).read("aa").attempt == 1


def test_claim_in_many_threads_is_won_by_one_each_time(tmp_path):
    one = made(tmp_path)
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        for attempt in range(1, 6):
            claimed = list(
                pool.map(lambda _: one.claim("aa", claim_owner.current_owner(), at_work), range(16))
            )
            (won,) = [cell for cell in claimed if cell is not None]
            assert won.attempt == attempt
            assert one.write(dataclasses.replace(won, state="preempted"))


def test_cell_of_an_owner_who_is_gone_is_free_and_of_one_at_work_is_not(tmp_path):
    one = made(tmp_path)
    first = one.claim("aa", claim_owner.current_owner(), at_work)
    assert one.claim("aa", claim_owner.current_owner(), at_work) is None
    second = one.claim("aa", claim_owner.current_owner(), gone)
    assert (second.attempt, second.state) == (2, "running")
    assert not one.write(dataclasses.replace(first, step=7))  # it was silent, and comes back
    assert one.read("aa") == second
    assert not one.is_newest(first)
    assert one.is_newest(second)


def test_claim_whose_maker_died_before_it_wrote_the_cell_is_no_dead_end(tmp_path):
    one = made(tmp_path)
    one.claim("aa", claim_owner.current_owner(), at_work)
    (tmp_path / "cells/aa.json").write_text(json.dumps(dataclasses.asdict(made_cell())))
    assert one.read("aa").state == "pending"
    assert one.claim("aa", claim_owner.current_owner(), at_work) is None
    assert one.claim("aa", claim_owner.current_owner(), gone).attempt == 2


def test_heartbeat_of_an_older_attempt_is_no_sign_of_life_of_the_newest(tmp_path):
    one = made(tmp_path)
    elsewhere = claim_owner.current_owner() | {"host": "elsewhere"}
    first = one.claim("aa", elsewhere, gone)
    # The second owner claimed long ago and was heard no more: the cell is still the first's.
    (tmp_path / "claims/aa.2").write_text(json.dumps(elsewhere | {"claimed": 5.0}))
    assert first.beat > 5.0
    asked = []
    third = one.claim("aa", elsewhere, lambda owner: asked.append(owner) or gone(owner))
    assert [(owner["beat"], owner["claimed"]) for owner in asked] == [(None, 5.0)]
    assert third.attempt == 3
    # Its own beat counts.
    one.claim("aa", elsewhere, lambda owner: asked.append(owner) or at_work(owner))
    assert asked[-1]["beat"] == third.beat


def made_cell():
    return Cell("aa", 0, {"preset": "digits", "seed": 0}, 100, {"params": 1000}, 0.0)


def test_done_is_never_claimed_and_failed_is(tmp_path):
    one = made(tmp_path)
    cell = one.claim("aa", claim_owner.current_owner(), at_work)
    one.write(dataclasses.replace(cell, state="failed", error="no space"))
    again = one.claim("aa", claim_owner.current_owner(), at_work)
    assert (again.attempt, again.error) == (2, "")
    one.write(dataclasses.replace(again, state="done", result={"loss": 1.5}))
    assert one.claim("aa", claim_owner.current_owner(), gone) is None
    assert one.read("aa").result == {"loss": 1.5}


def test_ledger_in_a_bucket_is_the_same(monkeypatch):
    folder = bucket(monkeypatch)
    one = made(folder)
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        claimed = list(
            pool.map(lambda _: one.claim("aa", claim_owner.current_owner(), at_work), range(16))
        )
    (won,) = [cell for cell in claimed if cell is not None]
    assert one.write(dataclasses.replace(won, state="done", result={"loss": 2.0}))
    assert [cell.state for cell in Ledger(str(folder)).cells()] == ["done", "pending", "pending"]
    one.cancel()
    assert made(folder).cancelled
    one.resume()
    assert not one.cancelled
    with pytest.raises(Mistake, match="another list of cells"):
        made(folder, digest="other")


def test_damaged_or_missing_cell_is_named(tmp_path):
    one = made(tmp_path)
    (tmp_path / "cells/aa.json").write_text('{"id": "aa", ')
    with pytest.raises(Fault, match=r"cells/aa\.json: is damaged: .*remove it"):
        one.cells()
    (tmp_path / "cells/aa.json").unlink()
    with pytest.raises(Fault, match=r"cells/aa\.json: is missing"):
        one.cells()
    assert made(tmp_path).read("aa").state == "pending"
    with pytest.raises(Mistake, match=r"cell=zz: is none of the sweep"):
        one.read("zz")


def test_ledger_or_cell_without_its_fields_is_a_fault_that_names_the_file(tmp_path):
    one = made(tmp_path)
    (tmp_path / "cells/aa.json").write_text('{"id": "aa", "overrides": {}}')
    with pytest.raises(Fault, match=r"cells/aa.json: is damaged: TypeError"):
        one.read("aa")
    (tmp_path / "cells/aa.json").unlink()
    made(tmp_path)
    tree = json.loads((tmp_path / "cells/aa.json").read_text())
    (tmp_path / "cells/aa.json").write_text(json.dumps(tree | {"steps": -1}))
    with pytest.raises(Fault, match=r"cells/aa.json: is damaged: TypeError\('steps=-1'\)"):
        one.read("aa")
    (tmp_path / "cells/aa.json").write_text(json.dumps(tree | {"id": "a\0"}))
    with pytest.raises(Fault, match=r"cells/aa.json: is damaged: TypeError\(.*id="):
        one.read("aa")
    (tmp_path / "sweep.json").write_text('{"version": 1}')
    with pytest.raises(Fault, match=r"sweep.json: is damaged: KeyError\('common'\)"):
        Ledger(str(tmp_path))


def test_cancel_is_seen_by_all_until_resume(tmp_path):
    one, other = made(tmp_path), made(tmp_path)
    assert not other.cancelled
    one.cancel()
    assert other.cancelled
    one.resume()
    assert not other.cancelled


def test_owner_is_alive_while_its_process_is_and_not_as_a_later_one_of_its_number():
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    owner = claim_owner.current_owner() | {
        "pid": process.pid,
        "born": process_identity.process_start(process.pid),
    }
    assert claim_owner.is_alive(owner)
    assert not claim_owner.is_alive(owner | {"born": "another boot"})
    process.kill()
    end = time.monotonic() + HANG
    while claim_owner.is_alive(owner):  # a zombie until it is waited for
        assert time.monotonic() < end
    process.communicate()
    assert not claim_owner.is_alive(owner)
    assert claim_owner.is_alive(claim_owner.current_owner())


def test_owner_recorded_by_an_older_ledger_is_known_again():
    stat = pathlib.Path("/proc/self/stat")
    if not stat.exists():
        pytest.skip("records of systems with /proc")
    ticks = int(stat.read_text().rpartition(")")[2].split()[19])
    boot = "0a1b2c3d-0000-4000-8000-0123456789ab"
    owner = claim_owner.current_owner()
    assert claim_owner.is_alive(owner | {"born": f"{boot}:{ticks}"})
    assert not claim_owner.is_alive(owner | {"born": f"{boot}:{ticks - 1}"})
    assert claim_owner.is_alive(owner | {"born": "alive"})
    assert not claim_owner.is_alive(owner | {"born": None})


def test_owner_elsewhere_is_alive_as_long_as_it_was_heard(monkeypatch):
    owner = claim_owner.current_owner() | {"host": "elsewhere"}
    assert claim_owner.is_alive(owner | {"beat": time.time() - 60})
    assert claim_owner.is_alive(owner | {"claimed": time.time() - 60, "beat": None})
    assert not claim_owner.is_alive(owner | {"beat": time.time() - claim_owner.STALE - 1})
    monkeypatch.setitem(os.environ, "SLURM_ARRAY_JOB_ID", "7")
    monkeypatch.setitem(os.environ, "SLURM_ARRAY_TASK_ID", "2")
    # The same task of the same job: this process is a later start of it.
    assert not claim_owner.is_alive(owner | {"job": "slurm:7_2", "beat": time.time()})
    assert claim_owner.is_alive(owner | {"job": "slurm:7_3", "beat": time.time()})


def test_ledger_written_under_old_names_of_fields_is_the_same_sweep(tmp_path):
    made(tmp_path, common={"data.bad": 0.5})
    file = tmp_path / "sweep.json"
    file.write_text(file.read_text().replace("max_reject_share", "bad"))
    assert "data.bad" in file.read_text()
    cell = tmp_path / "cells/aa.json"
    tree = json.loads(cell.read_text())
    cell.write_text(json.dumps(tree | {"overrides": {"preset": "digits", "keep.every": 5}}))
    again = made(tmp_path, common={"data.max_reject_share": 0.5})
    assert again.sweep.common == {"data.max_reject_share": 0.5}
    assert again.read("aa").overrides == {"preset": "digits", "checkpoints.every": 5}
    with pytest.raises(Mistake, match=r"data.max_reject_share=0.4 \(it has 0.5\)"):
        made(tmp_path, common={"data.max_reject_share": 0.4})
