import pytest

from launch.sweep import budgets, spec
from melllm_jax import flops
from melllm_jax.errors import Mistake
from melllm_jax.presets import ladder

CELL = {"preset": "quickstart"}  # 8 rows of 128 positions, 600 updates, 50 of warm-up, r 8
ROWS = budgets.RowShares(speech=0.5, fill=0.9)


def steps(cell):
    return cell["optim.steps"]


def test_tokens_count_what_is_not_padding():
    cell = budgets.tokens(CELL, 1024 * 0.9 * 1200, ROWS)
    assert cell == CELL | {"optim.steps": 1200, "optim.warmup": 100}


def test_hours_count_sound_at_positions_of_speech():
    hours = 240 * 1024 * 0.5 * 0.08 / 3600
    assert budgets.hours(CELL, hours, ROWS) == CELL | {"optim.steps": 240, "optim.warmup": 20}
    finer = CELL | {"mel.r": 4}
    assert steps(budgets.hours(finer, hours, ROWS)) == 480


def test_text_alone_has_tokens_and_flops_and_no_hours():
    rows = budgets.RowShares(speech=0, fill=0.9)
    assert steps(budgets.tokens(CELL, 1024 * 0.9 * 1200, rows)) == 1200
    with pytest.raises(Mistake, match="speech=0: rows of text alone hold no hours: give tokens or"):
        budgets.hours(CELL, 1.0, rows)


def test_flops_buy_the_updates_that_spend_them():
    cell = budgets.flops(CELL, 1e13, ROWS)
    spent = flops.training_flops(
        spec.run(cell, {}), steps(cell) * 1024 * 0.5, steps(cell) * 1024 * (0.9 - 0.5)
    )
    assert spent == pytest.approx(1e13, rel=0.5 / steps(cell))


def test_a_budget_below_an_update_buys_one():
    assert steps(budgets.tokens(CELL, 1.0, ROWS)) == 1


def test_isoflop_spends_the_same_whatever_the_size():
    cells = budgets.isoflop(budgets.sizes([2e5, 1e6, 5e6]), [1e14, 1e15], ROWS)
    spent = []
    for cell in cells:
        held = steps(cell) * 1024
        spent.append(flops.training_flops(spec.run(cell, {}), held * 0.5, held * 0.4))
    assert spent == pytest.approx([1e14] * 3 + [1e15] * 3, rel=0.01)


def test_chinchilla_gives_each_size_its_ratio_of_tokens():
    cells = budgets.chinchilla(budgets.sizes([1e6, 4e6]), [5, 20], ROWS)
    found = [steps(c) * 1024 * 0.9 / flops.matmul_parameters(spec.run(c, {})) for c in cells]
    assert found == pytest.approx([5, 5, 20, 20], rel=1e-3)


def test_fixed_data_gives_all_sizes_the_same_sound():
    cells = budgets.fixed_data(budgets.sizes([1e6, 2e6]), "corpus", [1.0, 10.0], 3, ROWS)
    sources = [cell["data.sources"] for cell in cells]
    assert sources[0] == sources[1] == [{"path": "corpus", "hours": 1.0}]
    assert sources[2] == sources[3] == [{"path": "corpus", "hours": 10.0}]
    heard = [steps(c) * budgets.hours_per_update(spec.run(c, {}), ROWS) for c in cells]
    assert heard == pytest.approx([3, 3, 30, 30], rel=0.01)


def test_sizes_are_the_ladders_shapes_at_any_number():
    cell = budgets.sizes([3e8])[0]
    assert cell["preset"] == "ladder_350m"
    run = spec.run(cell, {})
    assert flops.count_parameters(run).layers == pytest.approx(3e8, rel=0.1)
    assert run.model.d == ladder.model_of_size(3e8, 320).d


def test_token_rates_hold_the_same_utterances_in_a_row():
    """A second is 12.5 positions at r 8 and 7.5 of text: 128 hold 6.4 s at every rate."""
    cells = budgets.token_rates(CELL, (1, 2, 4, 8, 16), 7.5)
    assert [cell["mel.r"] for cell in cells] == [1, 2, 4, 8, 16]
    assert [cell["data.t"] for cell in cells] == [688, 368, 208, 128, 88]


def test_long_rows_of_token_rates_stay_multiples_of_128():
    cell = {"preset": "ladder_350m"}  # 2,048 positions
    cells = budgets.token_rates(cell, (1, 8, 16), 16.0)
    assert [cell["data.t"] for cell in cells] == [8320, 2048, 1536]


def test_rated_cells_take_the_ladders_rate_for_what_they_train():
    cells = spec.grid(budgets.sizes([1e6, 4e6]), {"optim.steps": [100, 90_000]})
    found = budgets.with_ladder_rate(cells)
    assert [cell["optim.warmup"] for cell in found] == [5, 2000, 5, 2000]
    for cell in found:
        weights = float(flops.stack_parameters(spec.run(cell, {}).model))
        assert cell["optim.lr"] == ladder.learning_rate(weights, 1024.0 * steps(cell), 1024.0)
    assert found[0]["optim.lr"] > found[2]["optim.lr"] > 0


@pytest.mark.parametrize(("speech", "fill"), [(-0.1, 1.0), (0.9, 0.8), (0.5, 1.1), (0, 0)])
def test_rows_refuse_shares_that_cannot_be(speech, fill):
    with pytest.raises(Mistake, match="must be 0 ≤ speech ≤ fill ≤ 1, fill > 0"):
        budgets.RowShares(speech, fill)
