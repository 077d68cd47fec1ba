"""A folder is one process's: who is refused, who takes over, and how the loser learns of it."""

import concurrent.futures
import errno
import json
import os
import re
import signal

import pytest

from launch.runtime import folder_claim, peer_watch, process_identity
from launch.runtime.folder_claim import FolderClaim, refuse_if_held
from melllm_jax.errors import Fault, Mistake
from tests.support.runs import everything

ELSEWHERE = {"host": "elsewhere", "pid": 17, "born": "5.00"}


def held(folder, number=1, age=0.0, **record):
    """A claim on `folder` as another process left it, whose last sign of life is so old."""
    path = folder / f"claims/{number}"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(ELSEWHERE | {"since": 1e9} | record))
    os.utime(path, (path.stat().st_mtime - age,) * 2)
    return path


def numbers(folder):
    return sorted(path.name for path in (folder / "claims").iterdir())


def lost(line):
    pytest.fail(f"lost: {line}")


def claim(folder, work="", end=lost):
    return FolderClaim(str(folder), work, end)


def test_nothing_is_left_of_a_folder_in_which_nothing_came_to_be(tmp_path):
    (tmp_path / "made").mkdir()
    for folder in (tmp_path / "made", tmp_path / "new/deeper"):
        with claim(folder):
            pass
    assert [*tmp_path.rglob("*")] == [tmp_path / "made"]


def test_folder_is_refused_while_it_is_held_and_given_afterwards(tmp_path):
    with claim(tmp_path) as first:
        (tmp_path / "work").write_text("")
        before = everything(tmp_path)
        with pytest.raises(Mistake) as mistake, claim(tmp_path):
            pass
        with pytest.raises(Mistake):
            refuse_if_held(str(tmp_path))
        assert everything(tmp_path) == before
        first.check()
        assert first.beat()
    said = str(mistake.value)
    assert said.startswith(f"workdir={tmp_path}: is in use by process {os.getpid()} on ")
    assert " since 20" in said
    assert " last sign of life at 20" in said
    refuse_if_held(str(tmp_path))
    with claim(tmp_path):
        assert numbers(tmp_path) == ["2"]


@pytest.mark.parametrize("trouble", [Mistake, Fault, KeyboardInterrupt])
def test_folder_is_released_however_it_ends(tmp_path, trouble):
    with pytest.raises(trouble), claim(tmp_path):
        raise trouble
    refuse_if_held(str(tmp_path))


def test_folder_is_released_at_sigterm_and_where_a_process_ends_at_once(tmp_path, monkeypatch):
    before, killed = signal.signal(signal.SIGTERM, signal.SIG_DFL), []
    monkeypatch.setattr(os, "kill", lambda *given: killed.append(given))
    try:
        with claim(tmp_path / "a"):
            signal.getsignal(signal.SIGTERM)(signal.SIGTERM, None)
            refuse_if_held(str(tmp_path / "a"))
        assert killed == [(os.getpid(), signal.SIGTERM)]
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    finally:
        signal.signal(signal.SIGTERM, before)
    with claim(tmp_path / "b"):
        for release in peer_watch.BEFORE_EXIT:
            release()
        refuse_if_held(str(tmp_path / "b"))
    assert peer_watch.BEFORE_EXIT == []


def test_claim_of_a_dead_process_of_this_host_is_taken_over_at_once(tmp_path):
    me = process_identity.current_process()
    for number, dead in enumerate([{"pid": 2**22 + 1}, {"born": "another start"}], 1):
        held(tmp_path / f"{number}", **(me | dead))
        with claim(tmp_path / f"{number}"):
            assert numbers(tmp_path / f"{number}") == ["2"]


@pytest.mark.parametrize(
    "record",
    [
        {},
        {"space": "another boot", **{k: process_identity.current_process()[k] for k in ("host",)}},
    ],
)
def test_claim_from_elsewhere_holds_until_it_was_silent_too_long(tmp_path, record):
    path = held(tmp_path, age=100, **record)
    before = everything(tmp_path)
    with pytest.raises(Mistake) as mistake, claim(tmp_path):
        pass
    assert everything(tmp_path) == before
    said = str(mistake.value)
    assert said.startswith(f"workdir={tmp_path}: is in use by process 17 on ")
    assert re.search(r"last sign of life 1\d\d s ago", said)
    assert f"180 s after its last sign of life; if you know that it is gone, remove {path}" in said
    held(tmp_path, age=181, **record)
    with claim(tmp_path):
        assert numbers(tmp_path) == ["2"]


def test_age_of_a_claim_is_by_the_file_servers_clock(tmp_path, monkeypatch):
    path = held(tmp_path)
    now = path.stat().st_mtime + 3600  # the server is an hour ahead of this host, as is the file
    os.utime(path, (now - 10, now - 10))
    monkeypatch.setattr(folder_claim, "_server_time", lambda folder: now)
    with pytest.raises(Mistake, match="last sign of life 10 s ago"):
        refuse_if_held(str(tmp_path))
    monkeypatch.setattr(folder_claim, "_server_time", lambda folder: now + 200)
    refuse_if_held(str(tmp_path))


@pytest.mark.parametrize("text", ["", '{"host": "elsew', "[1]", '{"pid": 3}'])
def test_claim_that_is_not_written_yet_counts_by_its_age(tmp_path, text):
    path = held(tmp_path)
    path.write_text(text)
    with pytest.raises(Mistake, match="is in use by a process that just began, last sign"):
        refuse_if_held(str(tmp_path))
    os.utime(path, (0, 0))
    refuse_if_held(str(tmp_path))


def test_earlier_claim_for_the_same_work_or_of_a_requeued_job_is_over(tmp_path, monkeypatch):
    held(tmp_path, work="cell a", job="7", requeued=0)
    for work in ("", "cell b"):
        with pytest.raises(Mistake):
            refuse_if_held(str(tmp_path), work)
    refuse_if_held(str(tmp_path), "cell a")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    with pytest.raises(Mistake):  # another step of the job, beside this one
        refuse_if_held(str(tmp_path))
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    refuse_if_held(str(tmp_path))
    monkeypatch.setenv("SLURM_JOB_ID", "8")
    with pytest.raises(Mistake):
        refuse_if_held(str(tmp_path))


def test_of_many_that_take_over_one_dead_claim_one_wins(tmp_path):
    held(tmp_path, number=4, age=500)

    def attempt(_):
        found = claim(tmp_path)
        try:
            found._take()
        except Mistake:
            return None
        return found

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        (winner,) = [found for found in pool.map(attempt, range(16)) if found is not None]
    assert winner.beat()
    assert numbers(tmp_path) == ["5"]


@pytest.mark.parametrize("how", ["taken over", "half taken over", "removed"])
def test_holder_that_lost_its_folder_ends_and_writes_nothing(tmp_path, monkeypatch, how):
    said = []
    with claim(tmp_path, end=said.append) as first:
        if how != "half taken over":
            (tmp_path / "claims/1").unlink()
        if how != "removed":
            held(tmp_path, number=2)
        before = everything(tmp_path)
        with pytest.raises(Fault, match="it stops here, and writes nothing more"):
            first.check()
    assert everything(tmp_path) == before
    who = "somebody who removed its claim" if how == "removed" else "process 17 on elsewhere"
    assert said[0].startswith(f"workdir={tmp_path}: taken over by {who}, because ")


def test_heartbeat_ends_the_process_that_lost_its_folder(tmp_path):
    said = []
    first = claim(tmp_path, end=said.append)
    first._take()
    held(tmp_path, number=2)
    first._over.wait = lambda seconds: False  # a beat at once
    first._beat_until_over()
    assert "taken over by process 17 on elsewhere" in said[0]


def test_heartbeat_survives_a_disk_that_is_full_for_a_while(tmp_path, monkeypatch):
    with claim(tmp_path) as first:
        found = os.fspath(first._path)

        def full(path, *_, **__):
            raise OSError(errno.ENOSPC, "No space left on device", found)

        with monkeypatch.context() as patch:
            patch.setattr(type(first._path), "open", full)
            assert first.beat()
        assert first.beat()


def test_bucket_gets_no_claim_and_no_folder_of_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refuse_if_held("gs://b/run")
    with claim("gs://b/run") as first:
        first.check()
    assert list(tmp_path.iterdir()) == []


def test_folder_that_cannot_be_written_or_read_is_a_fault(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(Fault, match="file/claims/1: cannot be written: "), claim(tmp_path / "file"):
        pass
    (tmp_path / "claims/1").mkdir(parents=True)
    with pytest.raises(Fault, match="claims: cannot be read: Is a directory"):
        refuse_if_held(str(tmp_path))


def test_process_that_the_system_hides_or_of_another_boot_is_not_seen(monkeypatch):
    me = process_identity.current_process()
    assert process_identity.runs_here(me) is True
    assert process_identity.runs_here(me | {"born": "another start"}) is False
    assert process_identity.runs_here(me | {"space": "another boot"}) is None
    assert process_identity.runs_here({k: me[k] for k in ("host", "pid", "born")}) is True
    assert process_identity.runs_here(me | {"host": "elsewhere"}) is None

    def refuse(*_):
        raise PermissionError

    monkeypatch.setattr(process_identity, "process_start", lambda pid: None)
    monkeypatch.setattr(process_identity.psutil, "pid_exists", lambda pid: False)
    monkeypatch.setattr(os, "kill", refuse)
    assert process_identity.runs_here(me) is None
