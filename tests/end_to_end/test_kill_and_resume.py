"""Training is killed and stopped from outside, as real processes: the loss curve stays the same."""

import signal

import numpy as np
import pytest

from tests.support.patience import HANG
from tests.support.runs import (
    ANEW,
    arguments,
    corpus,
    done,
    everything,
    lines,
    losses,
    reached,
    refused,
    started,
    steps_on_disk,
)

STEPS, EVERY = 40, 8


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return corpus(tmp_path_factory.mktemp("data"), 30)


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """The folder of a run that nothing stopped."""
    workdir = tmp_path_factory.mktemp("whole")
    status, out, err = done(train(data, workdir))
    assert (status, out) == (0, ""), err
    return workdir


@pytest.fixture(scope="module")
def straight(whole):
    """The losses of that run."""
    found = losses(whole)
    assert list(found) == list(range(1, STEPS + 1))
    return found


def train(data, workdir):
    return arguments(data, workdir, "--data.b", 2, steps=STEPS, every=EVERY)


def last(workdir):
    return max(losses(workdir), default=0)


def killed(words, condition, **environment):
    """Start, wait for the condition, kill at once."""
    process = started(words, **environment)
    reached(process, condition)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL


def saving(workdir, step):
    """Whether the checkpoint of that step or a later one is being written."""
    folders = (workdir / "checkpoints").glob("*.orbax-checkpoint-tmp")
    return any(int(folder.name.partition(".")[0]) >= step for folder in folders)


@pytest.mark.slow
def test_training_killed_between_during_and_after_saves_has_the_same_losses(
    straight, data, tmp_path
):
    moments = [
        lambda: last(tmp_path) >= 2,  # before the first checkpoint
        lambda: saving(tmp_path, 8),
        lambda: 16 in steps_on_disk(tmp_path),
    ]
    for moment in moments:
        killed(train(data, tmp_path), moment)
        assert last(tmp_path) < STEPS
    status, _, err = done(train(data, tmp_path))
    assert status == 0, err
    assert "resuming after update" in err
    assert losses(tmp_path) == straight
    assert [row["step"] for row in lines(tmp_path)] == list(range(1, STEPS + 1))


# By default in one process: training/test_loop is told to stop, while compiling and later, and goes
# on; commands/test_train refuses a folder in use.
@pytest.mark.slow
def test_training_terminated_while_compiling_and_later_saves_at_once_and_goes_on_right_there(
    straight, data, tmp_path, capsys
):
    """Also where a second start asks for its folder in between."""
    process = started(train(data, tmp_path), **ANEW)  # compiling takes its time
    while "compiling" not in process.stderr.readline():
        assert process.poll() is None
    process.terminate()
    assert stopped_at(process, tmp_path) == 1
    assert losses(tmp_path) == {1: straight[1]}
    assert steps_on_disk(tmp_path) == [1]

    process = started(train(data, tmp_path))
    reached(process, (tmp_path / "claims/2").exists)
    process.send_signal(signal.SIGSTOP)  # so that it has not ended before the second asks
    before = everything(tmp_path)
    said = refused(train(data, tmp_path), capsys)
    assert everything(tmp_path) == before
    process.send_signal(signal.SIGCONT)
    assert said.startswith(f"workdir={tmp_path}: is in use by process {process.pid} on ")
    reached(process, lambda: last(tmp_path) >= 10)
    process.terminate()
    stopped = stopped_at(process, tmp_path)
    assert stopped < STEPS

    status, _, err = done(train(data, tmp_path))
    assert status == 0, err
    assert f"resuming after update {stopped}\n" in err
    assert losses(tmp_path) == straight
    assert [row["step"] for row in lines(tmp_path)] == list(range(1, STEPS + 1))


def stopped_at(process, workdir):
    """The update after which a process that was told to end has saved, as it says."""
    _, err = process.communicate(timeout=HANG)
    assert process.returncode == 0, err
    assert err.endswith(f"stopped by a signal after update {last(workdir)}: saved\n")
    assert steps_on_disk(workdir)[-1] == last(workdir)
    return last(workdir)


@pytest.mark.slow
def test_training_killed_at_random_and_compiled_anew_has_the_same_losses(straight, data, tmp_path):
    seed = int(np.random.default_rng().integers(1 << 30))
    step = int(np.random.default_rng(seed).integers(1, STEPS - 4))
    killed(train(data, tmp_path), lambda: last(tmp_path) >= step, **ANEW)
    status, _, err = done(train(data, tmp_path), **ANEW)
    assert status == 0, err
    assert losses(tmp_path) == straight, f"seed {seed}"


@pytest.mark.slow
def test_training_of_a_folder_that_another_start_finished_changes_nothing(data, whole):
    before, told = everything(whole / "checkpoints"), lines(whole)
    status, _, err = done(train(data, whole))
    assert status == 0, err
    assert (everything(whole / "checkpoints"), lines(whole)) == (before, told)
