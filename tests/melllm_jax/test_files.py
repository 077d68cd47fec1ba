"""Files are whole or absent, on a disk and in a store that knows no rename."""

import concurrent.futures
import errno
import os
import pathlib
import sys

from etils import epath
import pytest

from melllm_jax import files
from melllm_jax.errors import Fault, Mistake
from tests.support.buckets import bucket


@pytest.fixture(params=["disk", "bucket"])
def folder(request, tmp_path, monkeypatch):
    """A folder on a disk, and one of a store that answers to s3://."""
    if request.param == "disk":
        return epath.Path(tmp_path)
    return bucket(monkeypatch)


@pytest.mark.parametrize(
    ("word", "found"),
    [
        ("file:///a%20b/c=2", "/a b/c=2"),
        ("FILE://localhost/a", "/a"),
        ("--data=file:///a", "--data=/a"),
        ("--data=s3://b/x", "--data=s3://b/x"),
        ("temp=x://y", "temp=x://y"),
        ("a/b", "a/b"),
    ],
)
def test_word_with_a_file_uri_is_that_path(word, found):
    assert files.resolve_word(word) == found


@pytest.mark.parametrize(
    ("path", "rule"),
    [("hdfs://a/b", "hdfs://a/b: nothing reads hdfs://: must be"), ("az://b", "cannot be read")],
)
def test_place_that_nothing_reads_is_refused(monkeypatch, path, rule):
    monkeypatch.setitem(sys.modules, "adlfs", None)
    with pytest.raises(Mistake, match=rule):
        files.place(path)
    assert files.place("file:///a") == epath.Path("/a")
    assert files.place("a") == epath.Path("a")


def test_path_that_must_be_on_a_disk_is_no_buckets():
    assert files.local_path("out", "file:///a") == pathlib.Path("/a")
    for path in ("s3://b/a", pathlib.Path("s3://b/a")):
        with pytest.raises(Mistake, match="out=s3:/+b/a: must be on a disk"):
            files.local_path("out", path)


def test_list_of_a_folder_leaves_out_what_macos_put_there(folder):
    for name in ("b", "a", "._a", ".DS_Store", "__MACOSX/c", ".work"):
        files.write_text(folder / name, "x")
    assert [path.name for path in files.list_folder(folder)] == [".work", "a", "b"]


def test_write_puts_in_place_and_leaves_nothing_beside(folder):
    path = folder / "cells" / "one.json"
    files.write_text(path, "first")
    files.write_text(path, "second")
    assert path.read_text() == "second"
    assert [one.name for one in path.parent.iterdir()] == ["one.json"]


def test_create_of_many_at_once_is_one_alone(folder):
    path = folder / "claims" / "one.1"
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        made = list(pool.map(lambda n: (files.create_text(path, f"{n}" * 1000), n), range(64)))
    (winner,) = [number for won, number in made if won]
    assert path.read_text() == f"{winner}" * 1000
    assert [one.name for one in path.parent.iterdir()] == ["one.1"]


def test_write_to_a_full_or_closed_place_is_a_fault_that_keeps_the_old(tmp_path):
    path = epath.Path(tmp_path) / "one.json"
    files.write_text(path, "before")
    (tmp_path / "file").write_text("")
    with pytest.raises(Fault, match=r"file/one: cannot be written: File exists"):
        files.write_text(epath.Path(tmp_path) / "file" / "one", "x")
    with pytest.raises(Fault, match=r"file/one: cannot be written: File exists"):
        files.create_text(epath.Path(tmp_path) / "file" / "one", "x")
    assert path.read_text() == "before"


def test_write_that_is_cut_off_leaves_the_old(tmp_path, monkeypatch):
    path = epath.Path(tmp_path) / "one.json"
    files.write_text(path, "before")

    def cut(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", cut)
    with pytest.raises(Fault, match="No space left"):
        files.write_text(path, "after")
    assert path.read_text() == "before"
    assert [one.name for one in path.parent.iterdir()] == ["one.json"]


def test_new_file_appears_when_its_block_ends_well(folder):
    path = folder / "large"
    with files.new_file(path) as scratch:
        scratch.write_bytes(b"1234")
        assert not path.exists()
    assert path.read_bytes() == b"1234"
    assert not scratch.exists()


def test_new_file_after_an_error_leaves_the_old_and_nothing_beside(tmp_path):
    path = epath.Path(tmp_path) / "large"
    files.write_bytes(path, b"before")
    with pytest.raises(ValueError, match="bad row"), files.new_file(path) as scratch:
        scratch.write_bytes(b"af")
        raise ValueError("bad row")
    with pytest.raises(Fault, match="large: cannot be written: gone"), files.new_file(path):
        raise OSError("gone")
    assert path.read_bytes() == b"before"
    assert [one.name for one in path.parent.iterdir()] == ["large"]


@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP])
def test_create_without_links_is_one_callers_too(tmp_path, monkeypatch, number):
    def refuse(*_):
        raise OSError(number, "no links here")

    monkeypatch.setattr(os, "link", refuse)
    path = epath.Path(tmp_path) / "one.1"
    assert [files.create_text(path, text) for text in ("first", "second")] == [True, False]
    assert path.read_text() == "first"


def test_create_whose_answer_was_lost_and_that_is_sent_again_is_won(tmp_path, monkeypatch):
    link = os.link

    def sent_twice(*names):
        link(*names)
        link(*names)

    monkeypatch.setattr(os, "link", sent_twice)
    path = epath.Path(tmp_path) / "one.1"
    assert [files.create_text(path, text) for text in ("first", "second")] == [True, False]
