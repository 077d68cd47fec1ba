"""A prediction is the law's best of a budget, with intervals, and a preset that is near."""

import dataclasses
import json

import numpy as np
import pytest

from launch.scaling import law_json
from launch.scaling.law_fit import fit_law
from launch.scaling.prediction import ResampledLaw, predict
from melllm_jax import flops
from melllm_jax.errors import Mistake
from melllm_jax.presets import catalog, ladder
from tests.support.laws import HOFFMANN, grid

KNOWN = ResampledLaw(
    law=HOFFMANN,
    per=6.0,
    samples=tuple(dataclasses.replace(HOFFMANN, beta=beta) for beta in (0.27, 0.275, 0.285, 0.29)),
    noise=(-0.01, 0.0, 0.01),
    widening=None,
    budgets=(1e17, 1e20),
    sizes=(1e7, 1e10),
    hours=1e-4,
    warnings=("E may be 0",),
)


def test_prediction_is_the_best_of_the_budget_with_that_of_resamples_around_it():
    got = predict(KNOWN, 1e20)
    n, d = HOFFMANN.best(1e20, 6.0)
    assert (got.n.value, got.d.value, got.hours) == (n, d, pytest.approx(1e-4 * d))
    ns = [law.best(1e20, 6.0)[0] for law in KNOWN.samples]
    assert got.n.p95 == tuple(pytest.approx(x) for x in np.percentile(ns, (2.5, 97.5)))
    assert got.loss.value == HOFFMANN.loss(n, d)
    assert got.loss.p95[0] < got.loss.value * 0.995 and got.warnings == ()
    assert got.law_warnings == KNOWN.warnings


def test_prediction_names_the_nearest_rung_and_spends_the_budget_on_it():
    got = predict(KNOWN, 1e20)
    run = catalog.preset(got.preset)
    assert got.preset_params == flops.matmul_parameters(run)
    sizes = {name: flops.matmul_parameters(make()) for name, make in catalog.PRESETS.items()}
    off = {n: abs(np.log(x / got.n.value)) for n, x in sizes.items() if n.startswith("ladder_")}
    assert got.preset == min(off, key=off.get)
    assert 6 * got.preset_params * got.preset_tokens == pytest.approx(1e20)
    positions = run.data.b * run.data.t
    assert (got.steps - 1) * positions < got.preset_tokens <= got.steps * positions
    words = got.command.split()
    assert words[:5] == ["melllm", "train", got.preset, "--steps", str(got.steps)]
    assert words[-4:] == ["--data", "DIR", "--workdir", "RUN"]
    # What else it sets goes with that length, which is not the preset's own.
    weights = float(flops.count_parameters(run).layers)
    lr = ladder.learning_rate(weights, float(got.steps * positions), float(positions))
    assert words[words.index("--optim.lr") + 1] == f"{lr:g}" != f"{run.optim.lr:g}"
    assert words[words.index("--optim.warmup") + 1] == str(ladder.warmup_updates(got.steps))
    assert got.preset_loss.value == HOFFMANN.loss(got.preset_params, got.preset_tokens)


def test_prediction_far_beyond_the_runs_or_the_ladder_is_told():
    assert predict(KNOWN, 9e20).warnings == ()
    assert predict(KNOWN, 1.1e21).warnings == ("1.1e+21 FLOPs are 11 times the most fitted",)
    (below,) = (word for word in predict(KNOWN, 1e15).warnings if "1/100 of the least" in word)
    assert below.startswith("1e+15 FLOPs")
    assert any("ladder_14b, has" in word for word in predict(KNOWN, 1e26).warnings)


@pytest.mark.parametrize("budget", [0.0, -1.0, float("nan"), float("inf")])
def test_prediction_for_no_budget_is_refused(budget):
    with pytest.raises(Mistake, match="flops=.*: must be finite and above 0"):
        predict(KNOWN, budget)


def test_prediction_of_a_law_that_says_nothing_is_refused():
    law = dataclasses.replace(HOFFMANN, A=1e-12, alpha=0.02, beta=0.02)
    with pytest.raises(Mistake, match="flops=1e.20: the law's best run has .* parameters and"):
        predict(dataclasses.replace(KNOWN, law=law), 1e20)


@pytest.fixture(scope="module")
def fit():
    return fit_law(grid(HOFFMANN, 0.003, sizes=(1e6, 1.6e7, 5), budgets=(2e7, 3.2e8, 5)), 0.2, 40)


def test_law_file_gives_the_predictions_of_the_fit_it_was_written_from(fit, tmp_path):
    path = tmp_path / "law.json"
    path.write_text(law_json.to_json(fit, "runs.csv"))
    known = law_json.read(str(path))
    assert known.law == fit.law and known.budgets == fit.budgets
    assert known.warnings == fit.warnings != ()
    one, other = (predict(law, 1e18) for law in (known, fit))
    for name in ("n", "d", "loss"):
        assert getattr(one, name).value == getattr(other, name).value
        assert getattr(one, name).p95 == pytest.approx(getattr(other, name).p95, rel=1e-5)
    assert one.command == other.command


def test_law_file_says_all_that_was_found(fit):
    tree = json.loads(law_json.to_json(fit, "runs.csv"))
    assert tree["constants"]["alpha"]["value"] == fit.law.alpha
    assert tree["constants"]["a"]["p80"] == list(fit.constants["a"].p80)
    assert tree["isoflop"]["optimal"]["a"]["value"] == fit.isoflop.optimal["a"].value
    assert len(tree["held_out"]["rows"]) == 5 and tree["source"] == "runs.csv"
    (point, *_), (measured, *_) = tree["points"], fit.points
    assert point["name"] == measured.name
    law = fit.law.loss(measured.params, measured.tokens)
    assert point["residual"] == pytest.approx(np.log(measured.loss / law))
    assert {"params", "tokens", "loss", "flops"} <= tree["units"].keys()
    assert len(tree["known"]["samples"]) == 40


@pytest.mark.parametrize(
    "change,words",
    [
        (lambda text: "{", "is no law that"),
        (lambda text: "[]", "is no law that"),
        (lambda text: '{"version": 1}', "is no law that .*known"),
        (lambda text: text.replace('"version": 1', '"version": 9'), "version=9: must be 1"),
        (lambda text: text.replace('"per": 6', '"per": NaN, "was": 6'), "NaN is no number"),
        (lambda text: text.replace('"hours": null', '"hours": [1]'), "is no law that .*list"),
        (lambda text: text.replace('"per": 6', '"per": 0, "was": 6'), "must be above 0"),
        (lambda text: text.replace('"tokens": 2', '"tokens": -2', 1), "not above 0"),
    ],
)
def test_law_file_that_is_none_is_refused_in_a_line(fit, tmp_path, change, words):
    path = tmp_path / "law.json"
    path.write_text(change(law_json.to_json(fit, "runs.csv")))
    with pytest.raises(Mistake, match=words) as error:
        law_json.read(str(path))
    assert "\n" not in str(error.value) and str(error.value).startswith(str(path))


def test_law_file_of_runs_that_determine_none_is_refused(fit, tmp_path):
    tree = json.loads(law_json.to_json(fit, "runs.csv"))
    for point in tree["points"]:
        point["tokens"] = 20 * point["params"]
    path = tmp_path / "law.json"
    path.write_text(json.dumps(tree))
    with pytest.raises(Mistake, match="law.json: tokens: are 20 · params.* are undetermined"):
        law_json.read(str(path))


def test_law_file_that_is_not_there_says_what_writes_one(tmp_path):
    with pytest.raises(Mistake, match="none.json: is no file: `melllm scaling fit` writes"):
        law_json.read(str(tmp_path / "none.json"))
