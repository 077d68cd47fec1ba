import json
import signal
import types

import pytest

from melllm_jax.errors import Fault
from melllm_jax.telemetry import goodput
from melllm_jax.telemetry.goodput import FILE_NAME, Goodput
from melllm_jax.telemetry.progress import SilentProgress
from tests.support.corpora import heard_once
from tests.support.runs import compiled_once, corpus, lines, tiny, traced_once, trained

once = pytest.fixture(scope="module", autouse=True)(compiled_once)
heard = pytest.fixture(scope="module", autouse=True)(heard_once)
traced = pytest.fixture(scope="module", autouse=True)(traced_once)


class Clock:
    """Wall and steady time that pass as they are told to."""

    def __init__(self, monkeypatch):
        self.now = 1000.0
        monkeypatch.setattr(goodput.time, "perf_counter", lambda: self.now - 900)
        monkeypatch.setattr(goodput.time, "time", lambda: self.now)


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


def spend(spent, clock, **seconds):
    for kind, passed in seconds.items():
        with spent.charge_to(kind):
            clock.now += passed


def test_goodput_counts_every_second_once(tmp_path, clock):
    spent = Goodput(tmp_path)
    clock.now += 5
    spent.resume(0)
    spent.switch_to("update")
    clock.now += 10
    with spent.charge_to("checkpoint"):
        clock.now += 2
        with spent.charge_to("score"):
            clock.now += 1
    clock.now += 2
    told = spent.metrics()
    expected = {"update": 12, "setup": 5, "data": 0, "checkpoint": 2, "score": 1, "lost": 0}
    assert told == {"goodput": 0.6, "spent": expected}


def test_goodput_takes_a_wait_for_the_datas_only_where_devices_had_nothing_to_do(tmp_path, clock):
    spent = Goodput(tmp_path)
    spent.switch_to("update")
    for busy in (True, False):
        clock.now += 1
        with spent.charge_wait(lambda busy=busy: busy):
            clock.now += 3
    assert (spent.seconds["update"], spent.seconds["data"]) == (5, 3)


def test_goodput_of_a_killed_run_calls_all_after_its_checkpoint_lost(tmp_path, clock):
    first = Goodput(tmp_path)
    spend(first, clock, setup=4, update=20)
    first.save(8)
    spend(first, clock, update=30, data=5)  # updates that no checkpoint has; then killed
    clock.now += 100
    again = Goodput(tmp_path)
    again.resume(8)
    spend(again, clock, setup=3, update=38)
    assert again.metrics() == {
        "goodput": 58 / 200,
        "spent": {"update": 58, "setup": 7, "data": 0, "checkpoint": 0, "score": 0, "lost": 135},
    }


def test_goodput_of_a_run_killed_before_its_first_checkpoint_counts_from_its_first_start(
    tmp_path, clock
):
    for _ in range(2):
        spend(Goodput(tmp_path), clock, setup=5, update=20)  # killed
    again = Goodput(tmp_path)
    again.resume(0)
    spend(again, clock, update=50)
    assert again.seconds["lost"] == 50
    assert again.metrics()["goodput"] == 0.5


def test_goodput_gone_on_with_from_an_older_checkpoint_forgets_what_was_counted_since(
    tmp_path, clock
):
    first = Goodput(tmp_path)
    for step in (4, 8):
        spend(first, clock, update=10)
        first.save(step)
    again = Goodput(tmp_path)
    again.resume(4)
    assert (again.seconds["update"], again.seconds["lost"]) == (10, 10)
    spend(again, clock, update=20)
    again.save(8)
    last = Goodput(tmp_path)
    last.resume(8)
    assert (last.seconds["update"], last.seconds["lost"]) == (30, 10)


def test_goodput_reads_past_a_line_cut_off_and_starts_anew_without_its_file(tmp_path, clock):
    first = Goodput(tmp_path)
    spend(first, clock, update=10)
    first.save(4)
    with (tmp_path / FILE_NAME).open("a") as file:
        file.write('{"after": 8, "ti')
    again = Goodput(tmp_path)
    again.resume(8)
    assert again.seconds["update"] == 10
    (tmp_path / FILE_NAME).unlink()
    anew = Goodput(tmp_path)
    anew.resume(8)
    assert sum(anew.seconds.values()) == 0


def test_goodput_file_has_a_line_a_checkpoint(tmp_path, clock):
    spent = Goodput(tmp_path)
    spend(spent, clock, update=3)
    spent.save(2)
    lines = [json.loads(line) for line in (tmp_path / FILE_NAME).read_text().splitlines()]
    assert [(line["after"], line["time"], line["update"]) for line in lines] == [
        (0, 1000, 0),
        (2, 1003, 3),
    ]


def test_goodput_summary_reads_as_a_line(tmp_path, clock):
    spent = Goodput(tmp_path)
    spend(spent, clock, setup=36.4, update=3300, data=0.1, lost=263.5)
    assert spent.summary() == (
        "goodput 91.7% of 1 h 0 min: updates 55 min 0 s, making or loading weights and compiling "
        "36.4 s, stopped, or lost and made again 4 min 24 s"
    )


def test_goodput_that_cannot_be_written_is_a_fault_that_names_the_file(tmp_path):
    with pytest.raises(Fault, match=r"nowhere/goodput.jsonl: cannot be written: "):
        Goodput(tmp_path / "nowhere")


class Said(SilentProgress):
    """Keeps the lines, and stops the run after an update."""

    def __init__(self, stop=0):
        self.lines, self._stop = [], stop

    def log(self, text):
        self.lines.append(text)

    def step(self, step, metrics):
        if step == self._stop:
            signal.raise_signal(signal.SIGTERM)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return corpus(tmp_path_factory.mktemp("data"))


@pytest.fixture
def ticking(monkeypatch):
    """A clock of Goodput alone that goes on by a second each time that it is looked at."""
    clock = types.SimpleNamespace(now=1000.0)

    def look():
        clock.now += 1.0
        return clock.now

    monkeypatch.setattr(
        goodput, "time", types.SimpleNamespace(perf_counter=lambda: look() - 900, time=look)
    )
    return clock


def test_train_accounts_for_all_of_its_time_over_its_starts(data, tmp_path, ticking):
    first, again = Said(stop=3), Said()
    trained(tiny(data), tmp_path / "run", first)
    ticking.now += 5000.0
    trained(tiny(data), tmp_path / "run", again)
    before, after = (row["spent"] for row in lines(tmp_path / "run")[3:5])
    assert before["lost"] == 0
    assert 5000 <= after["lost"] < 5010
    assert after["setup"] > before["setup"] > 0
    assert after["update"] > before["update"] > 0
    assert after["checkpoint"] > before["checkpoint"] > 0
    assert before["score"] == after["score"] == 0
    kept = [json.loads(line) for line in (tmp_path / f"run/{FILE_NAME}").read_text().splitlines()]
    assert [line["after"] for line in kept] == [0, 2, 4, 4, 6, 6]
    told = sum(kept[-1][kind] for kind in before)
    assert told == pytest.approx(kept[-1]["time"] - kept[0]["time"], abs=5)  # looks at both clocks
    for progress in (first, again):
        assert sum(line.startswith("goodput ") for line in progress.lines) == 1


def test_train_counts_scoring_as_such(data, tmp_path, ticking):
    def slow(model):
        ticking.now += 5000.0
        return {"wer": 1.0}

    trained(tiny(data, score=5), tmp_path / "run", score=slow)
    row = lines(tmp_path / "run")[-1]
    assert row["spent"]["score"] >= 5000
    assert row["seconds"] < 5000
    assert row["goodput"] == pytest.approx(row["spent"]["update"] / sum(row["spent"].values()))
