import contextlib
import gzip
import json
import signal

import jax
import pytest

from melllm_jax.errors import Fault, Mistake
from melllm_jax.telemetry.profiler import Profiler, UpdateRange, parse_update_range
from melllm_jax.telemetry.progress import SilentProgress
from tests.support.corpora import heard_once
from tests.support.runs import (
    ListStream,
    arguments,
    batches_of,
    compiled_once,
    corpus,
    losses,
    refused,
    steps_on_disk,
    tiny,
    trained,
)

once = pytest.fixture(scope="module", autouse=True)(compiled_once)
heard = pytest.fixture(scope="module", autouse=True)(heard_once)


class Said(SilentProgress):
    """Keeps the lines, and stops the run at an update."""

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


@pytest.fixture(scope="module")
def plain(data, tmp_path_factory):
    """The folder of a run that nobody traced."""
    workdir = tmp_path_factory.mktemp("plain")
    trained(tiny(data), workdir)
    return workdir


def traced(workdir):
    """The updates named in the one trace of a run's folder, as Perfetto reads it."""
    (path,) = workdir.glob("profile/plugins/profile/*/*.trace.json.gz")
    (_,) = path.parent.glob("*.xplane.pb")  # TensorBoard's
    with gzip.open(path) as file:
        events = json.load(file)["traceEvents"]
    return sorted(int(e["args"]["step_num"]) for e in events if e.get("name") == "update")


@pytest.mark.parametrize("text", ["10", "10:", ":3", "a:b", "1:2:3", "-1:2", "1.5:3", "٣:٤"])
def test_span_of_another_form_is_a_mistake(text):
    with pytest.raises(Mistake, match=rf"^profile={text}: must be FIRST:LAST, such as 10:15$"):
        parse_update_range(text)


@pytest.mark.parametrize("text", ["5:4", "0:3", "0:0"])
def test_span_of_no_updates_is_a_mistake(text):
    with pytest.raises(Mistake, match=f"^profile={text}: updates count from 1, and FIRST is"):
        parse_update_range(text)


def test_span_must_end_within_the_run_and_after_what_is_done():
    assert parse_update_range("3:5") == UpdateRange(3, 5)
    UpdateRange(3, 5).check(4, 5)
    with pytest.raises(Mistake, match="^profile=3:5: the run ends after update 4$"):
        UpdateRange(3, 5).check(0, 4)
    with pytest.raises(Mistake, match="^profile=3:5: the run goes on after update 5$"):
        UpdateRange(3, 5).check(5, 9)


def test_profile_has_just_the_updates_of_its_span_and_changes_no_loss(data, plain, tmp_path):
    progress = Said()
    trained(tiny(data), tmp_path, progress, profile=UpdateRange(3, 5))
    assert traced(tmp_path) == [3, 4, 5]
    assert f"trace of updates 3:5 in {tmp_path / 'profile'}" in progress.lines
    assert losses(tmp_path) == losses(plain)
    assert not (plain / "profile").exists()


def test_profile_of_a_run_stopped_inside_is_closed_and_the_rest_comes_when_it_goes_on(
    data, tmp_path
):
    progress = Said(stop=2)
    trained(tiny(data), tmp_path, progress, profile=UpdateRange(2, 5))
    assert steps_on_disk(tmp_path)[-1] == 3
    assert traced(tmp_path) == [2, 3]
    assert f"trace of updates 2:3 in {tmp_path / 'profile'}" in progress.lines
    (tmp_path / "profile").rename(tmp_path / "before")
    trained(tiny(data), tmp_path, profile=UpdateRange(2, 5))
    assert traced(tmp_path) == [4, 5]


def test_profile_is_closed_where_the_run_fails(data, tmp_path):
    class Broken(ListStream):
        def counts(self):
            raise Fault("no space")

    with contextlib.closing(batches_of(tiny(data))) as batches:
        stream = Broken([next(batches)])
    with pytest.raises(Fault, match="no space"):
        trained(tiny(data), tmp_path, profile=UpdateRange(1, 6), stream=stream)
    assert traced(tmp_path) == [1]


def test_profile_that_cannot_be_written_is_a_line_and_the_run_ends_well(data, tmp_path):
    (tmp_path / "profile").write_text("in its way")
    progress = Said()
    trained(tiny(data), tmp_path, progress, profile=UpdateRange(2, 3))
    assert list(losses(tmp_path)) == [1, 2, 3, 4, 5, 6]
    assert steps_on_disk(tmp_path)[-1] == 6
    (line,) = (line for line in progress.lines if "trace" in line)
    assert line.startswith(f"no trace in {tmp_path / 'profile'}: ")
    assert line.endswith("; the run goes on")


def test_profile_beside_another_trace_is_a_line_and_leaves_that_one_alone(tmp_path):
    said = []
    with jax.profiler.trace(str(tmp_path / "other")):
        with Profiler(tmp_path / "profile", UpdateRange(1, 1), said.append) as profile:
            assert list(profile.updates([1], lambda: None)) == [1]
        assert len(said) == 1
        assert "already" in said[0]
    assert list((tmp_path / "other").rglob("*.xplane.pb"))


def test_profile_waits_for_the_devices_around_its_updates_and_is_entered_apart(tmp_path):
    events = []

    @contextlib.contextmanager
    def untimed():
        events.append("untimed")
        yield

    with Profiler(tmp_path, UpdateRange(2, 3), lambda text: None, untimed) as profile:
        for step in profile.updates(range(1, 5), lambda: events.append("settle")):
            events.append(step)
    assert events == [1, "settle", "untimed", 2, 3, "settle", "untimed", 4]


@pytest.mark.parametrize(
    ("given", "rule"),
    [
        ("3", "profile=3: must be FIRST:LAST, such as 10:15"),
        ("4:2", "profile=4:2: updates count from 1, and FIRST is at most LAST"),
        ("5:7", "profile=5:7: the run ends after update 6"),
    ],
)
def test_train_refuses_a_profile_of_what_it_has_not_and_writes_nothing(
    data, tmp_path, capsys, given, rule
):
    assert refused(arguments(data, tmp_path / "run", "--profile", given), capsys) == rule
    assert not (tmp_path / "run").exists()


def test_train_refuses_a_profile_of_what_is_past(data, plain):
    with pytest.raises(Mistake, match="^profile=2:3: the run goes on after update 6$"):
        trained(tiny(data), plain, profile=UpdateRange(2, 3))
