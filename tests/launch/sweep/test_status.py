"""What `sweep status` tells of cells in all their states."""

import time

import pytest

from launch.sweep import claim_owner, status
from launch.sweep.ledger import Cell
from launch.terminal import text_table

GONE = claim_owner.current_owner() | {"born": "another boot"}


def cell(name, **changes):
    known = {
        "number": 0,
        "overrides": {"preset": "digits", "model.d": 16},
        "steps": 100,
        "plan": {"params": 1e6, "flops": 1e12},
        "created": 0.0,
    }
    return Cell(name, **(known | changes))


def done(name, seconds, **changes):
    result = {"loss": 1.25, "wer": 0.5, "train_seconds": seconds}
    return cell(name, **({"state": "done", "step": 100, "result": result} | changes))


def test_cell_that_says_it_runs_and_whose_process_is_gone_is_lost():
    running = cell("a", state="running", owner=claim_owner.current_owner(), beat=time.time())
    lost = cell("b", state="running", owner=GONE, beat=time.time())
    assert [status.state(one) for one in (running, lost, cell("c"))] == [
        "running",
        "lost",
        "pending",
    ]


def test_time_left_is_by_own_rate_or_by_the_pace_of_the_nearest_size():
    cells = [
        done("small", 10.0, plan={"params": 1e6, "flops": 1e12}),
        done("large", 40.0, plan={"params": 1e8, "flops": 8e12}),
        cell(
            "a",
            state="running",
            owner=claim_owner.current_owner(),
            beat=time.time(),
            step=40,
            rate=2.0,
        ),
        cell("b", plan={"params": 5e7, "flops": 4e12}),
        cell("c", plan={"params": 2e6, "flops": 3e12}, state="preempted", step=50),
    ]
    left = status.remaining_seconds(cells)
    assert left == {"a": 30.0, "b": pytest.approx(20.0), "c": pytest.approx(15.0)}
    assert status.eta(cells, left) == pytest.approx(65.0)  # one at a time
    two = [
        *cells,
        cell("d", state="running", owner=claim_owner.current_owner(), beat=time.time(), rate=10.0),
    ]
    assert status.eta(two, status.remaining_seconds(two)) == pytest.approx((65.0 + 10.0) / 2)


def test_nothing_known_is_no_guess():
    cells = [cell("a"), cell("b", plan={"params": 1e6, "flops": None})]
    assert status.remaining_seconds(cells) == {"a": None, "b": None}
    assert status.eta(cells, status.remaining_seconds(cells)) is None


def test_lines_are_a_row_a_cell_with_what_differs_and_errors_below():
    cells = [
        done("aaaaaaaaaa", 60.0),
        cell("bbbbbbbbbb", state="failed", error="model.v=3: too small", attempt=2, step=7,
             overrides={"preset": "digits", "model.d": 32}),
    ]  # fmt: skip
    heads, first, second, error, counts = status.lines(cells)
    assert heads.split() == ["cell", "state", "updates", "left", "loss", "WER", "model.d"]
    assert first.split() == ["aaaaaaaaaa", "done", "100/100", "1.250", "50.0%", "16"]
    assert second.split()[:4] == ["bbbbbbbbbb", "failed", "(2)", "7/100"]
    assert error.strip() == "model.v=3: too small"
    assert counts.startswith("1 done, 1 failed; 56 s left, until ")


def test_long_table_shows_what_is_not_done_first():
    cells = [done(f"{i}", 1.0, number=i) for i in range(50)] + [cell("last", number=50)]
    shown = text_table.lines(status.table(cells, most=10))
    assert shown[1].startswith("last")
    assert shown[-2] == "… and 41 more"
    assert len(shown) == 13
