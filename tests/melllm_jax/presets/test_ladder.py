import itertools
import math

import pytest

from melllm_jax import flops
from melllm_jax.planning import plan
from melllm_jax.planning.topology import parse_pod
from melllm_jax.presets import catalog, ladder

NAMES = list(ladder.RUNGS)


@pytest.mark.parametrize("name", NAMES)
def test_rung_has_about_the_weights_of_its_name(name):
    run = catalog.preset(name)
    assert run.name == name
    assert flops.count_parameters(run).layers == pytest.approx(ladder.RUNGS[name], rel=0.12)


@pytest.mark.parametrize("name", NAMES)
def test_rung_trains_on_twenty_positions_a_weight(name):
    run = catalog.preset(name)
    positions = run.data.b * run.data.t * run.optim.steps
    assert positions == pytest.approx(20 * flops.count_parameters(run).layers, rel=0.01)
    assert 0 < run.optim.warmup <= min(2000, run.optim.steps / 20)


def test_rungs_rise_by_about_two_in_size_and_never_narrow():
    runs = [catalog.preset(name) for name in NAMES]
    weights = [flops.count_parameters(run).layers for run in runs]
    assert all(1.5 < y / x < 2.3 for x, y in itertools.pairwise(weights))
    assert all(x.model.d < y.model.d or x.model.l < y.model.l for x, y in itertools.pairwise(runs))
    assert all(x.model.d <= y.model.d for x, y in itertools.pairwise(runs))


def test_rungs_differ_in_nothing_that_their_losses_are_compared_over():
    runs = [catalog.preset(name) for name in NAMES]
    same = lambda run: (run.model.v, run.mel, run.text, run.model.speech, run.optim.kind, run.lora)
    assert len({same(run) for run in runs}) == 1


@pytest.mark.parametrize(
    ("params", "d", "l"),
    [(1.63e6, 192, 4), (21.2e6, 512, 8), (2.77e9, 3072, 28), (11.0e9, 5120, 40)],
)
def test_depth_follows_the_published_models_it_was_drawn_through(params, d, l):
    """The quickstart's own, Chinchilla's smallest, Llama 3.2 3B and Phi-4."""
    found = ladder.model_of_size(params, 320)
    assert (found.d, found.l) == (d, l)


@pytest.mark.parametrize("params", [0.1e6 * 1.37**i for i in range(38)])
def test_a_model_between_rungs_is_near_what_was_asked(params):
    found = ladder.model_of_size(params, 1000)
    assert flops.stack_parameters(found) == pytest.approx(
        params, rel=0.25 if params < 1e6 else 0.13
    )
    assert found.v == 1000
    assert found.n * found.h == found.d
    assert found.n / found.k >= 3 or found.n < 4


def test_rate_and_batch_follow_the_law_where_it_was_fitted():
    """N 1e9, D 1e10 by hand: 1.79 · 10^(-6.417 + 3.07) = 8.05e-4, and 0.58 · 10^5.71 = 2.975e5."""
    assert ladder.batch_positions(1e10) == pytest.approx(2.975e5, rel=2e-3)
    assert ladder.learning_rate(1e9, 1e10, 1e6) == pytest.approx(8.05e-4 / 2, rel=3e-3)


def test_rate_falls_with_the_root_of_a_smaller_update_and_never_passes_its_cap():
    whole, size = ladder.learning_rate(1e9, 2e9, 1e7), ladder.batch_positions(2e9)
    assert ladder.learning_rate(1e9, 2e9, size / 4) == pytest.approx(whole / 2, rel=0.01)
    assert ladder.learning_rate(1e9, 2e9, 2 * size) == whole
    assert ladder.learning_rate(1e4, 1e4, 1e4) == 8e-3


def test_nearest_rung_is_so_by_ratio():
    assert (
        ladder.nearest_rung(2.9e6) == "ladder_4m"
    )  # 2 M is as far by difference, farther by ratio
    assert ladder.nearest_rung(1e3) == "ladder_1m"
    assert ladder.nearest_rung(1e12) == "ladder_14b"


@pytest.mark.parametrize(
    ("name", "topology"),
    [("ladder_1b", "v5p:4x4x4"), ("ladder_7b", "h100:8x8"), ("ladder_14b", "v5p:8x8x8")],
)
def test_a_large_rung_is_planned_for_a_pod_by_arithmetic(name, topology):
    run = catalog.preset(name)
    pod = parse_pod(topology)
    found = plan.estimate_plan(run, pod, plan.mesh_sizes(run, pod))
    assert found.fits
    assert math.isclose(found.useful_flops, flops.update_flops(run))
    assert 0.2 < found.mfu <= 1
