"""`melllm scaling` fits from a CSV or a sweep, predicts from what it wrote, refuses in a line."""

import json
import re
import subprocess
import sys

import numpy as np
import pytest

from launch.cli import main as melllm
from tests.support import sweep_folders
from tests.support.laws import HOFFMANN, csv, grid, points


@pytest.fixture
def runs(tmp_path):
    path = tmp_path / "runs.csv"
    path.write_text(csv(grid(HOFFMANN, 0.002, sizes=(1e6, 1.6e7, 5), budgets=(2e7, 3.2e8, 5))))
    return str(path)


def test_fit_of_a_csv_then_predict_prints_and_writes(runs, tmp_path, capsys):
    out = tmp_path / "out"
    assert melllm(["scaling", "fit", runs, "--out", str(out), "--bootstrap", "40"]) == 0
    told = capsys.readouterr().out
    assert told.startswith("25 runs; loss = E + A/N^alpha + B/D^beta")
    assert "held out: 5 largest runs from 20 smaller" in told and "a by approach 2: 0." in told
    assert re.search(r"95 % of a predicted loss: at least ±[0-9.]+ % at the runs, ±[0-9.]+ %", told)
    assert "cross-conformal by refits" in told
    names = {path.name for path in out.iterdir()}
    assert names == {"law.json", "losses.svg", "isoflop.svg", "optimal.svg", "residuals.svg"}
    assert melllm(["scaling", "predict", str(out / "law.json"), "--flops", "1e17"]) == 0
    told = capsys.readouterr().out
    assert told.startswith("1e+17 FLOPs, with 95 %:") and "melllm train ladder_" in told
    for doubt in json.loads((out / "law.json").read_text())["warnings"]:
        assert f"warning of the fit: {doubt}\n" in told


def test_fit_and_predict_as_json_print_one_object_only(runs, tmp_path, capsys):
    out = str(tmp_path / "out")
    assert melllm(["scaling", "fit", runs, "--out", out, "--bootstrap", "40", "--json"]) == 0
    shown = capsys.readouterr().out
    assert shown == (tmp_path / "out/law.json").read_text()
    assert json.loads(shown)["constants"]["alpha"]["value"] == pytest.approx(0.34, abs=0.05)
    assert melllm(["scaling", "predict", f"{out}/law.json", "--flops", "1e17", "--json"]) == 0
    best = json.loads(capsys.readouterr().out)
    assert best["n"]["p95"][0] < best["n"]["value"] < best["n"]["p95"][1]
    assert best["command"].startswith("melllm train ladder_")


def test_fit_of_a_sweep_takes_its_cells_and_tells_hours_of_sound(tmp_path, capsys):
    sweep_folders.write(tmp_path / "sweep", sweep_folders.half_done(), lines=2)
    out = str(tmp_path / "out")
    asked = ["scaling", "fit", str(tmp_path / "sweep"), "--out", out, "--bootstrap", "40", "--json"]
    assert melllm(asked) == 0
    law = json.loads(capsys.readouterr().out)
    low, high = law["constants"]["a"]["p95"]
    assert low < sweep_folders.LAW.a < high
    assert melllm(["scaling", "predict", f"{out}/law.json", "--flops", "1e15", "--json"]) == 0
    best = json.loads(capsys.readouterr().out)
    # A position of speech is 8 frames of 10 ms, and 0.6 of all positions are speech.
    assert best["hours"] == pytest.approx(best["d"]["value"] * 0.6 * 0.08 / 3600, rel=1e-6)


def test_commands_with_mistakes_end_in_one_line_and_write_nothing(runs, tmp_path, capsys):
    out = str(tmp_path / "out")
    few = tmp_path / "few.csv"
    few.write_text(csv(grid(HOFFMANN)[:4]))
    ratio = tmp_path / "ratio.csv"
    n = 1e6 * 2.0 ** np.arange(10)
    ratio.write_text(csv(points(n, 20 * n, HOFFMANN.loss(n, 20 * n))))
    cases = (
        ([], "say what to do: fit, predict"),
        (["fitt"], "scaling=fitt: is none of fit, predict; did you mean fit?"),
        (["fit", runs], "missing --out"),
        (["fit", str(few), "--out", out], f"{few}: 4 runs: a law of 5 constants takes 6"),
        (
            ["fit", str(ratio), "--out", out],
            f"{ratio}: tokens: are 20 · params^1 to 0.00 %, a line",
        ),
        (["fit", runs, "--out", out, "--held-out", "1"], "held_out=1.0: must be 0 or more"),
        (["fit", runs, "--out", out, "--bootstrap", "3"], "bootstrap=3: must be 20 or more"),
        (["fit", runs, "--out", out, "--seed", "-1"], "seed=-1: must be 0 or more"),
        (["predict", runs, "--flops", "1e18"], "is no law that"),
        (["predict", f"{out}/law.json", "--flops", "much"], "--flops"),
    )
    for argv, words in cases:
        assert melllm(["scaling", *argv]) == 2, argv
        told = capsys.readouterr().err
        assert words in told and len(told.splitlines()) == 1 and "Traceback" not in told
    assert not (tmp_path / "out").exists()


def test_fit_to_where_a_file_stands_is_a_fault(runs, capsys):
    assert melllm(["scaling", "fit", runs, "--out", runs, "--bootstrap", "40"]) == 1
    assert f"out={runs}: cannot be written" in capsys.readouterr().err


def test_scaling_starts_without_jax():
    code = "import launch.commands.scaling, sys; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
