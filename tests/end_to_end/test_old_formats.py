"""Corpora, runs, checkpoints and sweeps that an older release wrote are read as it read them.

`old_formats/old.tar.xz` holds what it wrote, when some fields of a run had other names and modules
lay elsewhere; `old_formats/expected.json` what it made of that. All paths in both are relative to
the unpacked folder, which is the working directory of these tests and is left as it is.
"""

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import json
import os
import pathlib
import platform
import shutil
import subprocess
import sys
import tarfile

import jax
import numpy as np
import pytest
import soundfile

from data_pipelines.corpora.corpus import open_corpus, split_digest
from data_pipelines.loader import pipeline
from data_pipelines.loader.reject_counts import stream_counts
from data_pipelines.prepare.prepare_corpus import prepare
from data_pipelines.prepare.validate import Limits
from launch import cli
from launch.runs.fit import fit
from launch.runs.run_inputs import complete_run
from launch.runtime.processes import Hosts
from launch.scaling.points import load_points
from launch.sweep import claim_owner, cost, spec, status
from launch.sweep.cell import work
from launch.sweep.ledger import Ledger
from melllm_jax import sharding
from melllm_jax.checkpoints import run_folder
from melllm_jax.config.features import Mel
from melllm_jax.config.overrides import from_json, override, to_json
from melllm_jax.config.run import CheckpointIntervals, MetricInterval, Run, ScoreInterval
from melllm_jax.errors import Mistake
from melllm_jax.models.parameters import init_model, init_weights
from melllm_jax.objectives.run_objective import objective_of
from melllm_jax.training import train_step
from melllm_jax.training.loop import train
from melllm_jax.training.train_step import Update
from tests.support import phi_files
from tests.support.corpora import heard_once
from tests.support.paths import ROOT
from tests.support.runs import (
    compiled_once,
    everything,
    find_one_device,
    lines,
    steps_on_disk,
)

once = pytest.fixture(scope="module", autouse=True)(compiled_once)
heard = pytest.fixture(scope="module", autouse=True)(heard_once)
HERE = pathlib.Path(__file__).parent / "old_formats"
EXPECTED = json.loads((HERE / "expected.json").read_text(encoding="utf-8"))
SPLITS = [(corpus, split) for corpus in EXPECTED["digests"] for split in ("train", "dev")]
TIMED = {  # metrics that a clock has a part in
    "tokens_per_second",
    "audio_seconds_per_second",
    "seconds",
    "mfu",
    "data_wait",
    "time",
    "goodput",
    "spent",
}
LIBRARIES = (
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "grain",
    "array_record",
    "numpy",
    "soundfile",
)
DATED = {"_CHECKPOINT_METADATA", "commit_success.txt", "sums.json"}  # files that hold the time
SECOND = EXPECTED["sweep"]["ids"][1]  # the cell that was still to be done


def versions():
    """The libraries and the CPU, as far as last bits depend on them."""
    found = {name: importlib.metadata.version(name) for name in LIBRARIES}
    cpu = pathlib.Path("/proc/cpuinfo")
    return found | {
        "libsndfile": soundfile.__libsndfile_version__,
        "python": platform.python_version(),
        "avx512f": cpu.exists() and "avx512f" in cpu.read_text(),
        "machine": platform.machine(),
    }


QUICK = "xla_backend_optimization_level" in os.environ.get("XLA_FLAGS", "")
# Every bit is the same where the libraries, the CPU and the flags are; otherwise nearly.
SAME = versions() == EXPECTED["versions"] and not QUICK


@pytest.fixture(scope="module", autouse=True)
def first_weights(once):
    """Where results are compared to the bit, runs start from the weights that users' start from."""
    if not QUICK:
        train_step.init_model, train_step.init_weights = init_model, init_weights


@pytest.fixture(scope="module", autouse=True)
def devices(once):
    """How many a run finds: of eight a program costs twice as much where it is only to be near."""
    with pytest.MonkeyPatch.context() as patch:
        if QUICK:
            find_one_device(patch)
        yield "one device" if QUICK else "8 devices"


# The process of the last test runs these.
as_users = pytest.mark.skipif(QUICK, reason="runs where programs are compiled as users have them")


def sha256(content):
    return hashlib.sha256(content).hexdigest()


def files_of(folder):
    """Every file below a folder by its path in it."""
    folder = pathlib.Path(folder)
    return {str(path.relative_to(folder)): content for path, content in everything(folder).items()}


def near(value):
    """`value`, its floats within 1e-5 where libraries or CPU are not those it was made with."""
    if SAME:
        return value
    if isinstance(value, dict):
        return {name: near(item) for name, item in value.items()}
    return pytest.approx(value, rel=1e-5) if isinstance(value, float) else value


@pytest.fixture(scope="module", autouse=True)
def unpacked(tmp_path_factory):
    """The working directory: what the older release wrote."""
    folder = tmp_path_factory.mktemp("old")
    with tarfile.open(HERE / "old.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        before = everything(folder)
        yield folder
        assert everything(folder) == before


@pytest.fixture
def again(unpacked):
    """A function that copies a folder to "again", which is gone after the test."""
    yield lambda name: pathlib.Path(shutil.copytree(name, "again"))
    shutil.rmtree("again", ignore_errors=True)


# Corpora ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "asked"),
    [
        ("corpus", {"store": "flac", "mel": Mel(kind="plain", m=8), "per_shard": 6}),
        (
            "corpus_mel",
            {
                "store": "mel",
                "mel": Mel(kind="plain", m=8, normalize="global"),
                "tokenizer": "bytes",
                "per_shard": 20,
            },
        ),
    ],
)
def test_corpus_prepared_anew_is_the_same_bytes(name, asked):
    prepare("source", "anew", bad=0.3, limits=Limits(silence=-60.0), **asked)
    try:
        anew, old = files_of("anew"), files_of(name)
    finally:
        shutil.rmtree("anew")
    assert list(anew) == list(old)
    if SAME:
        assert [file for file in old if anew[file] != old[file]] == []


@pytest.mark.parametrize(("name", "split"), SPLITS)
def test_split_has_the_digest_and_the_records_it_had(name, split):
    assert split_digest(name, split) == EXPECTED["digests"][name][split]
    corpus = open_corpus(name, split)
    found = [record_of(corpus[index]) for index in range(len(corpus))]
    assert found == EXPECTED["records"][name][split]


def record_of(utterance):
    """What a record says, and sha256 of its sound or mel as it is stored."""
    held = utterance.mel if utterance.mel is not None else utterance.audio
    if isinstance(held, np.ndarray):
        held = np.ascontiguousarray(held).tobytes()
    tokens = utterance.tokens
    return {
        "id": utterance.id,
        "text": utterance.text,
        "duration": utterance.duration,
        "speaker": utterance.speaker,
        "language": utterance.language,
        "source": utterance.source,
        "offset": utterance.offset,
        "tokens": None if tokens is None else list(map(int, tokens)),
        "held": sha256(held) if isinstance(held, bytes) else str(held),
    }


@pytest.mark.parametrize("name", EXPECTED["batches"])
def test_first_batches_are_the_same(name):
    run = run_folder.read_run("run")
    if name == "corpus_mel":  # ready mel takes no augmentation of the sound
        run = from_json(json.dumps(EXPECTED["run over corpus_mel"]), Run)
    inputs = complete_run(override(run, {"data.sources": [{"path": name, "weight": 2.0}]}))
    expected = EXPECTED["batches"][name]
    with contextlib.closing(iter(pipeline.train_batches(inputs.run, inputs.tokenizer))) as stream:
        for index, arrays in enumerate(expected["arrays"]):
            batch = next(stream)._asdict()
            found = {name: array_of(batch[name]) for name in arrays}
            if not SAME:
                found, arrays = map(without_bits, (found, arrays))
            assert found == near(arrays), f"batch {index}"
        assert stream_counts(stream)["bad"] == expected["rejected"]


def array_of(x):
    return {
        "dtype": x.dtype.name,
        "shape": list(x.shape),
        "sha256": sha256(np.ascontiguousarray(x).tobytes()),
        "sum": float(np.asarray(x, np.float64).sum()),
    }


def without_bits(arrays):
    return {name: x | {"sha256": ""} for name, x in arrays.items()}


# A run --------------------------------------------------------------------------------------------


def test_run_json_with_old_names_is_read():
    tree = json.loads(pathlib.Path("run/run.json").read_text())
    assert tree["data"]["bad"] == 0.25
    assert tree["keep"]
    run = run_folder.read_run("run")
    assert run.data.max_reject_share == 0.25
    assert run.checkpoints == CheckpointIntervals(every=2, last=3, milestone=4)
    assert (run.metrics, run.scoring) == (MetricInterval(every=1), ScoreInterval(every=100))
    assert (run.data.wire, run.data.ahead, run.data.corrupt) == ("float32", 3, "skip")
    assert (run.data.threads, run.data.longest, run.optim.kind) == (1, 10.0, "muon")


def metrics_after(folder, step):
    """The lines of metrics past an update, without what a clock says."""
    rows = [{k: v for k, v in row.items() if k not in TIMED} for row in lines(folder)]
    return [row for row in rows if row["step"] > step]


def expected_metrics(how, step):
    return [near(row) for row in EXPECTED["metrics"][how] if row["step"] > step]


def checkpoint_layout(folder):
    """The files of a checkpoint, but for OCDBT's, which are named by chance."""
    return sorted(name for name in files_of(folder) if "/d/" not in name)


def test_run_resumes_to_the_same_metrics(again, devices):
    workdir = again("run")
    run = run_folder.read_run("again")
    fit(run, "again")
    assert metrics_after(workdir, 4) == expected_metrics(devices, 4)
    assert steps_on_disk(workdir) == [2, 4, 6]
    layouts = {step: checkpoint_layout(workdir / f"checkpoints/{step}") for step in (4, 6)}
    assert layouts[6] == layouts[4]
    assert run_folder.read_run("again") == run
    assert "keep" not in json.loads((workdir / "run.json").read_text())


@as_users
def test_run_resumes_from_the_checkpoint_before_a_damaged_one(again):
    workdir = again("run")
    os.truncate(workdir / "checkpoints/4/sums.json", 5)
    fit(run_folder.read_run("again"), "again")
    assert metrics_after(workdir, 2) == expected_metrics("8 devices", 2)
    assert sorted(path.name for path in (workdir / "checkpoints").iterdir()) == [
        "2",
        "4",
        "4.damaged",
        "6",
    ]


@as_users
def test_run_is_scored_where_it_resumes_and_its_metrics_are_the_same(again):
    pytest.importorskip("jiwer", reason="the extra eval brings the scorer")
    workdir = again("run")
    fit(override(run_folder.read_run("again"), {"keep.score": 6}), "again")
    found = metrics_after(workdir, 4)
    assert found[1].pop("wer") >= 0
    assert found == expected_metrics("8 devices", 4)


@as_users
def test_run_of_eight_devices_resumes_on_one(again):
    workdir = again("run")
    inputs = complete_run(run_folder.read_run("again"))
    run = override(inputs.run, {"scoring.every": 0})
    stream = iter(pipeline.train_batches(run, inputs.tokenizer))
    mesh = sharding.make_mesh(run.mesh, jax.devices()[:1])
    with contextlib.closing(stream), jax.set_mesh(mesh):
        train(Update(objective_of(run)), stream, workdir)
    assert metrics_after(workdir, 4) == expected_metrics("one device", 4)


def test_resume_may_change_intervals_and_paths_but_no_share_of_rejects(again, unpacked):
    workdir = again("run")
    run = run_folder.read_run("again")
    before = everything(workdir)
    other = r"data\.max_reject_share=0\.01 \(it has 0\.25\)"
    for name in ("data.max_reject_share", "data.bad"):
        with pytest.raises(Mistake, match=f"belongs to run .*; they differ in {other}$"):
            fit(override(run, {name: 0.01}), "again")
    assert everything(workdir) == before
    changes = {"keep.every": 7, "checkpoints.last": 1, "checkpoints.milestone": 0}
    changes |= {"metrics.every": 2, "scoring.every": 0, "data.ahead": 1, "data.corrupt": "stop"}
    moved = {"data.sources": [{"path": str(unpacked / "corpus")}]}
    changed = complete_run(override(run, changes | moved)).run
    run_folder.claim("again", changed)
    assert run_folder.read_run("again") == changed


def test_evaluation_of_a_run_is_the_same(again, capsys):
    pytest.importorskip("jiwer", reason="the extra eval brings the scorer")
    workdir = again("run")
    words = ["--run", "again", "--data", "corpus", "--split", "dev", "--json"]
    assert cli.main(["evaluate", *words, "--decoding.extra", "4"]) == 0
    found = json.loads(capsys.readouterr().out)
    expected = dict(EXPECTED["evaluate"])
    heard = [json.loads(x) for x in (workdir / "eval/corpus-dev.jsonl").read_text().splitlines()]
    references = lambda rows: [(row["id"], row["reference"]) for row in rows]
    assert references(heard) == references(expected["heard"])
    for name in ("utterances", "step", "audio_seconds", "rejected"):
        assert found[name] == expected[name]
    if SAME:  # the model knows nothing, and a last bit decides what it says
        assert heard == expected.pop("heard")
        del expected["wer"]  # by a normaliser that has been mended since
        assert {name: found[name] for name in expected} == expected


# An imported checkpoint ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "more"), [("", []), ("_sound", ["--audio", "source/audio/t04.wav"])]
)
def test_imported_checkpoint_gives_the_same_logits(name, more, tmp_path):
    out = tmp_path / "logits.npy"
    asked = ["--checkpoint", "imported/ckpt", "--tokens", f"imported/tokens{name}.npy"]
    assert cli.main(["logits", *asked, "--out", str(out), *more]) == 0
    found, expected = np.load(out), np.load(f"imported/logits{name}.npy")
    if SAME:
        np.testing.assert_array_equal(found, expected)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_import_and_export_anew_are_the_same_bytes(tmp_path):
    anew, exported = tmp_path / "anew", tmp_path / "exported"
    phi_files.told("import", "imported/hf", anew)
    phi_files.told("export", anew, exported)
    found, old = files_of(anew), files_of("imported/ckpt")
    assert list(found) == list(old)
    undated = [file for file in old if pathlib.Path(file).name not in DATED]
    # What imports of Phi-4-MM have written since: how they take telephone speech.
    assert [file for file in undated if found[file] != old[file]] == ["model.json"]
    spec = json.loads(found["model.json"])
    assert spec["mel"].pop("telephone") == "native"
    assert spec == json.loads(old["model.json"])
    adapter = exported / "speech-lora/adapter_config.json"
    tree = json.loads(adapter.read_text())
    assert tree.pop("base_model_name_or_path") == str(exported)  # the older release said none
    adapter.write_text(json.dumps(tree, indent=2) + "\n")
    assert {name: sha256(x) for name, x in files_of(exported).items()} == EXPECTED["export"]


def test_model_json_is_read():
    found = run_folder.read_spec("imported/ckpt")
    assert json.loads(to_json(found)) == EXPECTED["spec"]


# A sweep ------------------------------------------------------------------------------------------


def test_ledger_of_a_sweep_is_read():
    expected = EXPECTED["sweep"]
    cells = Ledger("sweep").cells()
    assert [cell.id for cell in cells] == expected["ids"]
    assert [cell.state for cell in cells] == expected["states"]
    assert cells[0].result == expected["result"]
    assert status.lines(cells)[:-1] == expected["status"]  # the last line has the time of day
    assert [dataclasses.asdict(point) for point in load_points("sweep")] == expected["points"]


def test_spec_in_old_names_asks_for_the_sweep_it_did():
    expected = EXPECTED["sweep"]
    asked = spec.load("sweep/little.py", expected["common"])
    assert asked.digest == expected["digest"]
    assert [cell.id for cell in asked.cells] == expected["ids"]
    assert cost.plan_cells(asked, "", 0.0, cost.unknown_rate) == expected["plans"]
    done = run_folder.read_run(f"sweep/runs/{asked.cells[0].id}")
    assert complete_run(asked.cells[0].run).run == done


@as_users
def test_sweep_goes_on_with_its_second_cell_to_the_same_result(again):
    pytest.importorskip("jiwer", reason="the extra eval brings the scorer")
    folder = again("sweep")
    assert work(str(folder), SECOND, Hosts(), claim_owner.is_alive) == 0
    result = dict(Ledger(str(folder)).read(SECOND).result)
    del result["train_seconds"]
    assert result == near(EXPECTED["sweep"]["result of the second"])


@pytest.mark.slow
@pytest.mark.skipif(not QUICK, reason="this is the process that compiles as users do")
def test_all_of_this_holds_to_the_bit_where_programs_are_compiled_as_users_have_them():
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    words = [sys.executable, "-m", "pytest", "-m", "slow or not slow", str(pathlib.Path(__file__))]
    done = subprocess.run(
        words,
        cwd=ROOT,
        env=environment | {"MELLLM_TESTS_COMPILE": "as users"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout
