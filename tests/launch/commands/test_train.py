"""`melllm train` through its command line: what it refuses, in one line, and what it survives."""

import contextlib
import os
import shutil

import numpy as np
import pytest
import soundfile
import tokenizers
from tokenizers import models, pre_tokenizers

from launch import cli
from launch.runs.run_inputs import complete_run
from launch.runtime import folder_claim
from launch.runtime.folder_claim import FolderClaim
from melllm_jax.checkpoints import run_folder
from melllm_jax.config.overrides import identity, override
from tests.support.corpora import WORDS
from tests.support.runs import (
    arguments,
    compiled_once,
    corpus,
    done,
    everything,
    lines,
    losses,
    one_device,
    refused,
    small_disk,
    steps_on_disk,
    tiny,
    traced_once,
)

once = pytest.fixture(scope="module", autouse=True)(compiled_once)
traced = pytest.fixture(scope="module", autouse=True)(traced_once)
alone = pytest.fixture(one_device)


# For trainings on one device: fewer rows, and a program that is traced faster.
LIGHT = ("--data.b", "2", "--model.scan", "False", "--model.remat", "none")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return corpus(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """The folder of a run of six updates that nothing stopped; tests copy it."""
    workdir = tmp_path_factory.mktemp("whole")
    with contextlib.contextmanager(one_device)():
        assert cli.main(arguments(data, workdir, *LIGHT)) == 0
    return workdir


def words_file(folder, *words):
    """A tokenizer.json that knows these words and no others."""
    table = tokenizers.Tokenizer(
        models.WordLevel({word: i for i, word in enumerate(["<unk>", *words])}, unk_token="<unk>")
    )
    table.pre_tokenizer = pre_tokenizers.Whitespace()
    table.add_special_tokens(["<|end|>", "<|assistant|>", "<|placeholder1|>"])
    folder.mkdir()
    table.save(str(folder / "tokenizer.json"))
    return folder


@pytest.mark.parametrize(
    ("flags", "rule"),
    [
        (["--data", "nowhere"], "data=nowhere: is no folder"),
        (["--model.dd", "3"], "unknown flag --model.dd: did you mean --model.d?"),
        (["--model.d", "0"], "model.d=0: must be positive"),
        (["--model.d", "many"], "--model.d: invalid literal for int() with base 10: 'many'"),
        (["--model.k", "3"], "model.n=2: query heads cannot share k=3 KV heads evenly"),
        (["--mel.r", "3"], "mel.r=3: must be 1, 2, 4, 8 or 16"),
        (["--data.b", "12"], "mesh replica=1 × fsdp=8: does not divide the 12 rows"),
        (["--mesh.tp", "3"], "mesh replica=1 fsdp=0 seq=1 tp=3: the product must be the 8 devices"),
        (["--mesh.fsdp", "4"], "the product must be the 8 devices here"),
        (["--mesh.tp", "4"], "mesh.tp=4: does not divide model.n=2"),
        (["--mesh.seq", "8", "--data.t", "60"], "mesh.seq=8: does not divide data.t=60"),
        (["--mesh.fsdp", "8", "--model.d", "12"], "mesh.fsdp=8: does not divide model.d=12"),
        (["--model.v", "200"], "model.v=200: the tokenizer has "),
        (["--text.tokenizer", "nowhere"], "nowhere"),
        (["--seed", "-1"], "seed=-1: must be 0 or more"),
        (["--optim.train", "lora"], 'lora.r=0: optim.train="lora" needs a rank'),
        (["--scoring.every", "2"], "split=dev: "),
    ],
    ids=lambda x: " ".join(x) if isinstance(x, list) else "",
)
def test_train_refuses_what_does_not_fit_and_writes_nothing(data, tmp_path, capsys, flags, rule):
    words = arguments(data, tmp_path / "run", *flags)
    assert rule in refused(words, capsys)
    assert not (tmp_path / "run").exists()


def test_train_of_an_unknown_preset_names_the_nearest(data, tmp_path, capsys):
    words = arguments(data, tmp_path / "run")
    words[1] = "digit"
    said = refused(words, capsys)
    assert said.startswith("preset=digit: is none of ")
    assert said.endswith("; did you mean digits?")
    assert not (tmp_path / "run").exists()


def test_train_without_data_asks_for_it(tmp_path, capsys):
    words = ["train", "digits", "--workdir", str(tmp_path / "run")]
    assert "--data DIR" in refused(words, capsys)
    assert not (tmp_path / "run").exists()


def test_train_on_a_folder_without_its_split_names_those_it_has(tmp_path, capsys):
    folder = corpus(tmp_path / "data", 2, split="test")
    words = arguments(folder, tmp_path / "run")
    assert refused(words, capsys).startswith(f"split=train: {folder} has test: `melllm data import")


@pytest.mark.usefixtures("alone")
def test_train_on_a_manifest_line_that_is_no_json_counts_it_and_names_the_line(tmp_path, capsys):
    folder = corpus(tmp_path / "data", 3)
    with (folder / "train.jsonl").open("a") as file:
        file.write('{"audio_filepath": \n')
    said = refused(arguments(folder, tmp_path / "run", *LIGHT), capsys)
    assert said.startswith("data.max_reject_share=0.01: ")
    assert "malformed row" in said
    assert f"First: {folder / 'train.jsonl'}:4 (malformed row)" in said


@pytest.mark.usefixtures("alone")
def test_train_stops_where_too_much_is_unusable_and_counts_why(tmp_path, capsys):
    audio = tmp_path / "data/audio"
    audio.mkdir(parents=True)
    (audio / "noise.flac").write_bytes(b"no sound at all")
    soundfile.write(audio / "slow.wav", np.zeros(4000, np.float32), 4000)
    soundfile.write(audio / "long.wav", np.zeros(16_000 * 8, np.float32), 16_000)
    changes = {
        0: {"audio_filepath": "audio/none.flac"},
        1: {"audio_filepath": "audio/noise.flac"},
        2: {"audio_filepath": "audio/slow.wav"},
        3: {"audio_filepath": "audio/long.wav", "duration": 8.0},
        4: {"text": " "},
        5: {"text": "один"},
    }
    folder = corpus(tmp_path / "data", 12, changes=changes)
    tokenizer = words_file(tmp_path / "tokenizer", *WORDS)
    flags = ["--text.tokenizer", tokenizer, "--data.max_reject_share", "0.2"]
    said = refused(arguments(folder, tmp_path / "run", *flags), capsys)
    assert said.startswith("data.max_reject_share=0.2: ")
    reasons = ["missing", "undecodable", "rate", "empty transcript", "unknown characters"]
    for reason in [*reasons, "longer than the row of t=64"]:
        assert f" {reason}" in said
    assert all(f"id{number} (" in said for number in range(5)) or "First: id" in said
    assert not (tmp_path / "run/checkpoints").exists()


def test_train_in_the_folder_of_another_run_is_refused_and_touches_nothing(data, tmp_path, capsys):
    run_folder.claim(str(tmp_path), tiny(data))
    before = everything(tmp_path)
    said = refused(arguments(data, tmp_path), capsys)
    assert said.startswith(f"workdir={tmp_path}: belongs to run ")
    assert "model.d=16 (it has 8)" in said
    assert everything(tmp_path) == before


def test_train_where_another_process_trains_is_refused_and_touches_nothing(
    data, tmp_path, capsys, monkeypatch
):
    with FolderClaim(str(tmp_path)):
        before = everything(tmp_path)
        said = refused(arguments(data, tmp_path), capsys)
        # Both have seen a free folder, and this process comes second to the claim.
        monkeypatch.setattr(folder_claim, "refuse_if_held", lambda *_: None)
        assert refused(arguments(data, tmp_path), capsys) == said
        assert everything(tmp_path) == before
    assert said.startswith(f"workdir={tmp_path}: is in use by process {os.getpid()} on ")


@pytest.mark.usefixtures("alone")
def test_train_that_lost_its_folder_writes_nothing_more(data, tmp_path, capsys, monkeypatch):
    found = []

    def lose(claim):
        if (tmp_path / "metrics.jsonl").read_text():
            (tmp_path / "claims/2").write_text("{}")  # between two updates
            found.append(everything(tmp_path))
        return is_newest(claim)

    is_newest = FolderClaim._is_newest
    monkeypatch.setattr(FolderClaim, "_is_newest", lose)
    monkeypatch.setattr(folder_claim, "end_process", lambda line: None)
    said = refused(arguments(data, tmp_path, *LIGHT, every=100), capsys, status=1)
    assert said.startswith(f"workdir={tmp_path}: taken over by a process that just began, ")
    assert everything(tmp_path) == found[0]


def test_train_on_data_that_fills_no_batch_is_refused_and_writes_nothing(tmp_path, capsys):
    words = arguments(corpus(tmp_path / "data", 2), tmp_path / "run", "--data.epochs", 1)
    said = refused(words, capsys)
    assert said.startswith(
        "data.epochs=1: the data ends before the first batch is full, of data.b=8"
    )
    assert "2 examples in all" in said
    assert not (tmp_path / "run").exists()


def test_run_among_noises_knows_them_by_their_content(data, tmp_path):
    found = []
    for name, count in (("here", 2), ("moved", 2), ("grown", 3)):
        noises = {"noise": 1.0, "noises.path": str(corpus(tmp_path / name, count))}
        changes = {f"data.augment.{field}": value for field, value in noises.items()}
        found.append(identity(complete_run(override(tiny(data), changes)).run))
    assert found[0] == found[1] != found[2]


@pytest.mark.usefixtures("alone")
def test_train_that_is_no_longer_finite_ends_in_one_line_and_status_1(data, tmp_path, capsys):
    flags = [*LIGHT, "--optim.lr", "1e30", "--optim.warmup", "0"]
    said = refused(arguments(data, tmp_path, *flags), capsys, status=1)
    assert said.startswith("update 2: loss=")
    assert " is not finite; the batch and the state before it are in " in said
    assert said.endswith(str(tmp_path / "halted/2"))
    assert (tmp_path / "halted/2/batch.npz").exists()
    assert (tmp_path / "halted/2/state").is_dir()


@pytest.mark.usefixtures("alone")
# What Orbax leaves behind of a failed save is collected after its event loop is gone.
@pytest.mark.filterwarnings(
    "ignore:Exception ignored in. None:pytest.PytestUnraisableExceptionWarning"
)
def test_train_is_stopped_by_a_full_disk_and_goes_on_when_there_is_space(
    data, whole, tmp_path, capsys
):
    with small_disk(tmp_path / "disk", 2048) as disk:
        workdir, filler = disk / "run", disk / "filler"
        # No metrics between checkpoints: they would come to a disk that one of these is filling.
        words = arguments(data, workdir, *LIGHT, "--metrics.every", 100)
        filler.write_bytes(bytes(1_980_000))  # what is left takes no checkpoint
        said = refused(words, capsys, status=1)
        assert "checkpoint" in said
        assert "could not be written to" in said
        assert steps_on_disk(workdir) == []
        filler.unlink()
        assert cli.main(words) == 0
        assert losses(workdir) == {6: losses(whole)[6]}
        assert steps_on_disk(workdir) == [4, 6]


@pytest.mark.usefixtures("alone")
def test_train_with_all_checkpoints_damaged_ends_in_one_line_and_status_1(
    data, whole, tmp_path, capsys
):
    words = arguments(data, tmp_path, *LIGHT)
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    for step in steps_on_disk(tmp_path):
        os.truncate(tmp_path / f"checkpoints/{step}/sums.json", 5)
    before = losses(tmp_path)
    said = refused(words, capsys, status=1)
    assert said == f"{tmp_path / 'checkpoints'}: none of the checkpoints [4, 6] is whole"
    assert losses(tmp_path) == before


@pytest.mark.usefixtures("alone")
def test_train_with_its_newest_checkpoint_damaged_says_so_and_trains_on(
    data, whole, tmp_path, capsys
):
    words = arguments(data, tmp_path, *LIGHT)
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    before = lines(tmp_path)
    os.truncate(tmp_path / "checkpoints/6/sums.json", 5)
    capsys.readouterr()
    assert cli.main(words) == 0
    said = capsys.readouterr().err
    assert "checkpoint 6 is damaged (sums.json is no JSON): passing it over\n" in said
    assert "resuming after update 4\n" in said
    assert steps_on_disk(tmp_path) == [4, 6]
    assert losses(tmp_path) == {row["step"]: row["loss"] for row in before}


@pytest.mark.slow
def test_train_on_two_devices_of_another_process_refuses_what_they_cannot_share(data, tmp_path):
    words = arguments(data, tmp_path / "run", "--mesh.tp", 4)
    status, out, err = done(words, JAX_NUM_CPU_DEVICES="2")
    assert (status, out) == (2, "")
    assert err.count("\n") == 1
    assert "tp=4: the product must be the 2 devices here" in err
