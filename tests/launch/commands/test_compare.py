"""Systems in one table: each measured once, what fails named, what is no system refused."""

import contextlib
import dataclasses
import io
import json
import shutil
import signal

import numpy as np
import pytest

from data_pipelines.corpora.corpus import split_digest
from launch import cli
from launch.evaluation import measurement
from launch.evaluation.comparison import read_errors
from launch.evaluation.measurement import Material, Measurement
from launch.evaluation.system import System
from melllm_jax.checkpoints import run_folder
from melllm_jax.config.overrides import override
from melllm_jax.evaluation.bootstrap import paired_difference, wer_interval
from tests.support import phi_files, whisper_files
from tests.support.corpora import write_corpus
from tests.support.runs import (
    compiled_once,
    compiled_quickly,
    done,
    everything,
    generated_once,
    one_device,
    reached,
    refused,
    started,
    two_updates,
)

pytest.importorskip("jiwer", reason="the extra eval brings the scorer")
once = pytest.fixture(scope="module", autouse=True)(compiled_once)
held = pytest.fixture(scope="module", autouse=True)(generated_once)
quick = pytest.fixture(scope="module", autouse=True)(compiled_quickly)
alone = pytest.fixture(scope="module", autouse=True)(one_device)
QUESTION = {"instruction": "What is said?", "answer": "two", "metric": "contains", "task": "qa"}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A Whisper, another without its tokenizer, runs; speech and a spoken question."""
    folder = tmp_path_factory.mktemp("compare")
    whisper_files.write(folder / "hf")
    phi_files.told("import", folder / "hf", folder / "whisper")
    shutil.copytree(folder / "whisper", folder / "broken")
    shutil.rmtree(folder / "broken/tokenizer")
    cfg = override(two_updates(folder / "plain"), {"text.template": "phi4"})
    run_folder.claim(str(folder / "run"), cfg)
    shutil.copytree(folder / "plain/run/checkpoints", folder / "run/checkpoints")
    run_folder.claim(str(folder / "deaf"), override(cfg, {"model.front": "none"}))
    write_corpus(folder / "speech", 3, split="test", seconds=0.5)
    write_corpus(folder / "questions", 1, split="test", seconds=0.5, changes={0: QUESTION})
    return folder


def compare(place, *systems, out="out"):
    words = ["compare", *(f"{name}={place}/{rest}" for name, rest in systems)]
    words += ["--data", place / "speech", "--questions", place / "questions"]
    return [*map(str, words), "--batches", "8", "8", "--out", str(place / out)]


@pytest.fixture
def here(monkeypatch):
    """Measurements are made in this process, as they are in others; the words of each."""
    calls = []

    def run(words, lock):
        calls.append(words)
        said = io.StringIO()
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
            status = cli.main(["evaluate", *words, "--json"])
        return said.getvalue().strip().removeprefix("melllm evaluate: error: ") if status else ""

    monkeypatch.setattr(measurement, "run_evaluate", run)
    return calls


def test_each_system_has_a_row_and_one_that_fails_costs_no_other(place, here, capsys):
    systems = [("mine", "run"), ("bad", "broken"), ("both", f"whisper,{place}/run")]
    assert cli.main(compare(place, *systems)) == 1
    said = capsys.readouterr()
    last = said.err.splitlines()[-1]
    assert last.startswith("melllm compare: error: 1 of 3 systems failed: bad: speech, batch 8: ")
    assert len(here) == 5  # a Whisper alone answers no questions
    told = json.loads((place / "out/systems.json").read_text())
    mine, bad, both = told["systems"]
    assert bad["errors"] and not {"wer", "measured"} & bad.keys()
    assert (mine["step"], both["step"]) == (2, 2)
    assert 0 < mine["trained"] == both["trained"] <= mine["parameters"] < both["parameters"]
    assert mine["tasks"]["questions"]["qa"]["contains"]["utterances"] == 1
    for row in (mine, both):
        speech = row["measured"]["speech"]["8"]
        kept = place / "out/measured" / speech["hypotheses"]
        summary = json.loads(kept.with_suffix(".json").read_text())
        assert all(speech[name] == summary[name] for name in ("rtfx", "peak_bytes", "batch"))
        errors = read_errors(kept, "whisper")
        counts = np.array([*errors.values()]).T
        assert [row["wer"]["errors"], row["wer"]["words"]] == counts.sum(1).tolist()
        assert row["wer"]["interval"] == dataclasses.asdict(wer_interval(*counts))
        row["counts"] = counts
    found = paired_difference(both["counts"][0], *mine["counts"])
    assert both["against_first"] == {"first": "mine", **dataclasses.asdict(found)}
    assert "against_first" not in mine
    page = (place / "out/systems.md").read_text()
    rows = [line.split(" | ") for line in page.splitlines() if line.startswith("| ")]
    assert [row[0] for row in rows] == ["| system", "| ---", "| mine", "| bad", "| both"]
    assert {"WER", "qa: contains", "RTFx, batch 8", "updates"} <= {*rows[0]}
    assert f"- bad: {bad['errors'][0]}" in page
    shown = said.out.splitlines()
    assert [line.split()[0] for line in shown[:4]] == ["system", "mine", "bad", "both"]


def test_what_was_measured_is_not_measured_again_under_whatever_name(place, here, capsys):
    assert cli.main(compare(place, ("one", "whisper"), out="again")) == 0
    assert len(here) == 1
    before = everything(place / "again/measured")
    words = compare(place, ("other", "whisper"), ("one", "whisper"), out="again")
    assert cli.main([*words, "--json"]) == 0
    assert len(here) == 1
    assert everything(place / "again/measured") == before
    other, one = json.loads(capsys.readouterr().out.splitlines()[-1])["systems"]
    assert one["wer"] == other["wer"] and one["against_first"]["below"] == 0


def test_a_whisper_alone_and_a_run_of_transcripts_are_asked_no_questions(place):
    answers = {"whisper": False, "plain/run": False, "run": True}
    assert {x: System("one", str(place / x)).answers for x in answers} == answers


def test_measurements_are_told_apart_by_what_decides_them(place):
    material = Material(str(place / "speech"), "test", split_digest(place / "speech", "test"))
    system = System("one", str(place / "whisper"))
    one = Measurement(system, system.digests(), material, 8, ("--dtype=own",))
    replace = dataclasses.replace
    assert replace(one, system=replace(system, name="two")).name == one.name
    others = [
        replace(one, digests=["0"]),
        replace(one, batch=1),
        replace(one, flags=("--dtype=bfloat16",)),
        replace(one, material=replace(material, digest="0")),
        replace(one, system=replace(system, llm=str(place / "run"))),
    ]
    assert len({one.name, *(other.name for other in others)}) == 6


@pytest.mark.parametrize(
    ("systems", "more", "rule"),
    [
        ([], [], "systems: give one at least: NAME=FOLDER, or NAME=WHISPER,LLM"),
        (["whisper"], [], "system=whisper: must be NAME=FOLDER"),
        (["=whisper"], [], "system==whisper: must be NAME=FOLDER"),
        (["a=PLACE/whisper,"], [], "must be NAME=FOLDER"),
        (["a=PLACE/none"], [], "system=a: PLACE/none: is no folder"),
        (["a=PLACE/speech"], [], "system=a: run=PLACE/speech: holds no run.json"),
        (["a=PLACE/whisper", "a=PLACE/run"], [], "system=a: the name is given twice"),
        (["a=PLACE/run,PLACE/run"], [], "system=a: run=PLACE/run: holds no Whisper"),
        (["a=PLACE/whisper,PLACE/whisper"], [], "llm=PLACE/whisper: holds a Whisper"),
        (["a=PLACE/deaf"], [], 'system=a: run=PLACE/deaf: model.front="none"'),
        (["a=PLACE/run"], ["--data", "PLACE/none"], "data=PLACE/none: is no folder"),
        (["a=PLACE/run"], ["--split", "dev"], "split=dev: "),
        (["a=PLACE/run"], ["--questions", "PLACE/none"], "data=PLACE/none: is no folder"),
        (["a=PLACE/run"], ["--batches", "0", "8"], "batches=0: must be positive"),
    ],
    ids=lambda x: " ".join(x).replace("PLACE/", "") if isinstance(x, list) else "",
)
def test_what_is_no_system_is_one_line_and_nothing_is_measured(
    place, here, capsys, systems, more, rule
):
    given = [word.replace("PLACE", str(place)) for word in [*systems, *more]]
    words = ["compare", *given, "--out", place / "none"]
    words += [] if "--data" in more else ["--data", place / "speech"]
    assert rule.replace("PLACE", str(place)) in refused(words, capsys)
    assert here == [] and not (place / "none").exists()


def test_a_system_without_a_whole_checkpoint_is_refused(place, here, tmp_path, capsys):
    shutil.copytree(place / "run", tmp_path / "run")
    shutil.rmtree(tmp_path / "run/checkpoints")
    words = ["compare", f"a={tmp_path}/run", "--data", place / "speech", "--out", tmp_path / "out"]
    assert "system=a: checkpoints=" in refused(words, capsys)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_killed_comparison_loses_no_measurement_that_was_done(place):
    systems = [("one", "whisper"), ("two", f"whisper,{place}/run")]
    words = compare(place, *systems, out="killed")
    kept = place / "killed/measured"
    process = started(words)
    reached(process, lambda: len(list(kept.glob("*.json"))) == 1)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    first = {path.name: path.stat().st_mtime_ns for path in kept.glob("*whisper-speech*")}
    status, out, said = done([*words, "--json"])
    assert status == 0, said
    assert {name: (kept / name).stat().st_mtime_ns for name in first} == first
    assert "1/3 one: speech, batch 8: measured before" in said
    one, two = json.loads(out)["systems"]
    peaks = [
        x["peak_bytes"] for x in (one["measured"]["speech"]["8"], two["measured"]["speech"]["8"])
    ]
    assert all(1 << 26 < peak < 1 << 34 for peak in peaks)
    assert two["llm"].endswith("run")
