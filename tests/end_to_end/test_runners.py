"""The same corpus by every runner, killed at any moment, with a file that crashes its decoder."""

import json
import signal
import time

import pytest

from data_pipelines.corpora.corpus import open_corpus
from data_pipelines.prepare import crash_isolation
from data_pipelines.prepare.prepare_corpus import prepare
from launch import cli
from melllm_jax.errors import Fault
from tests.support.corpora import write_corpus
from tests.support.runs import done, everything, refused, started

pytest.importorskip("apache_beam")

CRASHING = """
import os, soundfile
whole = soundfile.SoundFile.__init__
def opened(self, file, *args, **named):
    read = getattr(file, "read_at", None)
    if read is not None and read(0, 7) == b"hostile":
        os.kill(os.getpid(), {signal})
    if read is not None:
        file.seek(0)
    whole(self, file, *args, **named)
soundfile.SoundFile.__init__ = opened
"""


def words(raw, out, *more):
    return ["prepare", str(raw), "--out", str(out), "--per-shard", "2", *more]


def files(folder):
    return {path.name: content for path, content in everything(folder).items()}


@pytest.fixture
def seven(tmp_path):
    """Seven utterances of one split, one of them twice."""
    again = {"audio_filepath": "audio/1.flac", "text": "one", "duration": 0.0}
    return write_corpus(tmp_path / "raw", 7, changes={6: again})


@pytest.fixture
def raw(seven):
    """Nine utterances in two splits, one of them twice."""
    return write_corpus(seven, 2, split="test", first=50)


def test_prepare_by_two_workers_gives_the_files_of_one_process(raw, tmp_path, capsys):
    prepare(raw, tmp_path / "inline", per_shard=4)
    flags = ["--workers", "2", "--json", "--per-shard", "4"]
    assert cli.main(["prepare", str(raw), "--out", str(tmp_path / "direct"), *flags]) == 0
    assert json.loads(capsys.readouterr().out)["splits"]["train"]["utterances"] == 6
    assert files(tmp_path / "direct") == files(tmp_path / "inline")


def test_a_share_of_rejects_that_is_too_large_is_one_line(seven, tmp_path, capsys):
    with (seven / "train.jsonl").open("a") as file:
        file.write("[]\n")
    said = refused(["prepare", seven, "--out", tmp_path / "out"], capsys)
    assert said.startswith("bad=0.01: 1 of 8 utterances (12.5%) are unusable: 1 malformed row.")


def test_an_unknown_runner_is_refused(raw, tmp_path, capsys):
    said = refused(words(raw, tmp_path / "out", "--runner", "horse"), capsys)
    assert said.startswith("runner=horse: Unexpected pipeline runner: horse.")


@pytest.mark.slow
@pytest.mark.parametrize(
    "flags",
    [
        ["--runner", "dask", "--workers", "2"],
        ["--workers", "1"],
        ["--beam", "direct_running_mode=multi_processing"],
    ],
    ids=lambda flags: flags[1].strip("-"),
)
def test_prepare_by_other_runners_gives_the_files_of_one_process(raw, tmp_path, flags):
    if "dask" in flags:
        pytest.importorskip("distributed")
    prepare(raw, tmp_path / "inline", per_shard=2)
    status, _, said = done(words(raw, tmp_path / "out", *flags))
    assert status == 0, said
    assert files(tmp_path / "out") == files(tmp_path / "inline")


@pytest.mark.slow
@pytest.mark.parametrize("staged", [0, 1, 3, 5])
def test_prepare_killed_at_any_moment_ends_with_the_same_files(raw, tmp_path, staged):
    prepare(raw, tmp_path / "inline", per_shard=2)
    out = tmp_path / "out"
    process = started(words(raw, out, "--workers", "2"))
    while len(list(out.glob(".work/*.npy"))) < staged or not (out / ".work").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (out / "index.json").exists()
    assert not list(out.glob("*.array_record"))
    assert cli.main(words(raw, out, "--workers", "1")) == 0
    assert files(out) == files(tmp_path / "inline")


def hostile(raw, tmp_path, monkeypatch, number):
    """A file whose decoding sends its process a signal."""
    (raw / "audio/2.flac").write_bytes(b"hostile" * 100)
    (tmp_path / "site").mkdir()
    (tmp_path / "site/sitecustomize.py").write_text(CRASHING.format(signal=int(number)))
    monkeypatch.syspath_prepend(tmp_path / "site")  # the worker's process starts with it


def test_a_file_that_crashes_its_decoder_costs_one_line(seven, tmp_path, monkeypatch):
    hostile(seven, tmp_path, monkeypatch, signal.SIGSEGV)
    prepare(seven, tmp_path / "out", runner="direct", bad=0.2)
    lines = [json.loads(line) for line in (tmp_path / "out/rejects.jsonl").read_text().splitlines()]
    assert [(line["id"], line["reason"]) for line in lines] == [
        ("id2", "undecodable"),
        ("id6", "duplicate"),
    ]
    assert lines[0]["detail"] == "id2: crashes its decoder (SIGSEGV)"
    assert [one.id for one in open_corpus(tmp_path / "out", "train")] == [
        f"id{n}" for n in (0, 1, 3, 4, 5)
    ]


@pytest.mark.slow
def test_a_file_that_holds_its_decoder_up_costs_one_line(raw, tmp_path, monkeypatch):
    hostile(raw, tmp_path, monkeypatch, signal.SIGSTOP)
    monkeypatch.setattr(crash_isolation, "STALL_SECONDS", 3.0)
    prepare(raw, tmp_path / "out", per_shard=4, runner="direct", bad=0.2)
    line = json.loads((tmp_path / "out/rejects.jsonl").read_text().splitlines()[0])
    assert line["detail"] == "id2: kept its decoder busy for 3 s"


@pytest.mark.slow
def test_a_worker_killed_from_outside_blames_no_file(raw, tmp_path, monkeypatch):
    hostile(raw, tmp_path, monkeypatch, signal.SIGKILL)
    with pytest.raises(Fault, match="its process ended with -9"):
        prepare(raw, tmp_path / "out", per_shard=4, runner="direct", bad=0.2)
    assert not (tmp_path / "out/index.json").exists()
