"""`melllm train` resumed with another mixture, and with data that ends."""

import json

import pytest

from launch import cli
from melllm_jax.config.overrides import override
from melllm_jax.telemetry.progress import SilentProgress
from tests.support.jobs import ended, job
from tests.support.runs import (
    arguments,
    compiled_once,
    compiled_quickly,
    corpus,
    lines,
    steps_on_disk,
    tiny,
    traced_once,
)
from tests.support.runs import trained as in_process

once = pytest.fixture(scope="module", autouse=True)(compiled_once)
quick = pytest.fixture(scope="module", autouse=True)(compiled_quickly)
traced = pytest.fixture(scope="module", autouse=True)(traced_once)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Folders of 20, 30 and 40 utterances."""
    root = tmp_path_factory.mktemp("data")
    return [corpus(root / str(n), n, first=100 * n, seconds=0.2) for n in (20, 30, 40)]


def words(workdir, folders, *more, steps=40, every=3):
    """Those of a run over the folders, each of which may have a share."""
    first, *others = folders
    given = [word for folder in others for word in ("--data", str(folder))]
    return arguments(first, workdir, *given, *more, steps=steps, every=every)


def trained(capsys, *args, **fields):
    """Train in this process: what was said, and the lines of metrics."""
    assert cli.main(words(*args, **fields)) == 0
    return capsys.readouterr().err, lines(args[0])


def of_steps(workdir, steps):
    """Let the run in `workdir` be one of so many updates, as if it had been stopped before."""
    path = workdir / "run.json"
    run = json.loads(path.read_text())
    run["optim"]["steps"] = steps
    path.write_text(json.dumps(run))


@pytest.mark.slow
def test_run_goes_on_with_another_mixture_and_writes_down_where(data, tmp_path, capsys):
    a, b, c = data
    trained(capsys, tmp_path, [f"{a}=3", b], steps=4)
    of_steps(tmp_path, 8)
    said, found = trained(capsys, tmp_path, [c, f"{a}=1"], steps=8)
    assert f"the mixture changes at example {found[4]['mixture']['example']}: " in said
    assert [line["step"] for line in found if "mixture" in line] == [5]
    assert found[4]["mixture"]["now"] == {str(c): 0.5, str(a): 0.5}
    assert found[4]["mixture"]["before"] == {str(a): 0.75, str(b): 0.25}
    assert 0 < found[3][f"examples/{a}"] <= found[4][f"examples/{a}"]  # counted on
    assert found[7][f"examples/{c}"] > 0
    assert f"examples/{b}" not in found[7]
    state = json.loads((tmp_path / "run.json").read_text())
    assert [source["path"] for source in state["data"]["sources"]] == [str(c), str(a)]


class Told(SilentProgress):
    """What the loop says."""

    def __init__(self):
        self.said = []

    def log(self, text):
        self.said.append(text)


def test_run_ends_with_its_data_and_goes_on_with_more_epochs(data, tmp_path):
    once, twice = (
        override(tiny(data[0], steps=40, every=3), {"data.epochs": epochs}) for epochs in (1, 2)
    )
    first, again, more = Told(), Told(), Told()
    last = int(in_process(once, tmp_path, first).step)
    assert 1 < last < 20
    assert f"the data ends after update {last}: all was drawn data.epochs=1 times" in first.said
    assert steps_on_disk(tmp_path)[-1] == last
    path = str(data[0])
    assert 0.5 < lines(tmp_path)[-1][f"epoch/{path}"] <= 1
    assert int(in_process(once, tmp_path, again).step) == last
    assert any(f"the data ends after update {last}: " in text for text in again.said)
    end = int(in_process(twice, tmp_path, more).step)
    assert last < end < 40
    assert [line["step"] for line in lines(tmp_path)] == list(range(1, end + 1))
    assert 1.5 < lines(tmp_path)[-1][f"epoch/{path}"] <= 2


@pytest.mark.slow
def test_processes_end_with_their_data_after_the_same_update_as_one(data, tmp_path, capsys):
    a, b, _ = data
    _, found = trained(capsys, tmp_path / "one", [a, b], "--data.epochs", "2")
    with job(words(tmp_path / "two", [a, b], "--data.epochs", "2")) as processes:
        statuses, said = ended(processes)
    assert statuses == [0, 0], said
    last = found[-1]["step"]
    assert f"the data ends after update {last}: " in said[0]
    assert steps_on_disk(tmp_path / "two")[-1] == last
    places = [
        {
            path.name: json.loads(path.read_text())["lanes"]
            for path in (tmp_path / f"{name}/checkpoints/{last}/data").glob("lane-*.json")
        }
        for name in ("one", "two")
    ]
    assert places[0] == places[1]
    _, more = trained(capsys, tmp_path / "two", [a, b], "--data.epochs", "3")
    assert more[-1]["step"] > last
