"""A run goes on with other devices and processes than it was stopped with, and nothing shows it."""

import contextlib
import itertools
import signal
import subprocess

import jax
import numpy as np
import pytest

from melllm_jax import sharding
from melllm_jax.checkpoints.checkpointer import Checkpoints
from melllm_jax.config.overrides import override
from melllm_jax.errors import Mistake
from melllm_jax.objectives.next_token import NextToken
from melllm_jax.telemetry.progress import SilentProgress
from melllm_jax.training.loop import Telemetry, train
from melllm_jax.training.train_step import Update
from tests.support.corpora import heard_once
from tests.support.jobs import ended, job, lanes, until
from tests.support.runs import (
    arguments,
    batches_of,
    compiled_once,
    compiled_quickly,
    corpus,
    done,
    losses,
    reached,
    steps_on_disk,
    tiny,
    traced_once,
)

once = pytest.fixture(scope="module", autouse=True)(compiled_once)
heard = pytest.fixture(scope="module", autouse=True)(heard_once)
quick = pytest.fixture(scope="module", autouse=True)(compiled_quickly)
traced = pytest.fixture(scope="module", autouse=True)(traced_once)
STEPS = 64  # long after the last of them that a test waits for: none ends before it is stopped
PAIR = {"JAX_NUM_CPU_DEVICES": "2"}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Thirty utterances, one of them without its audio."""
    changes = {3: {"audio_filepath": "none.flac"}}
    return corpus(tmp_path_factory.mktemp("data"), 30, changes=changes)


class StopAt(SilentProgress):
    """Asks for an end while an update is under way."""

    def __init__(self, wanted):
        self._wanted = wanted

    def step(self, step, metrics):
        if step == self._wanted:
            signal.raise_signal(signal.SIGTERM)


def on(devices, run, workdir, stop=0):
    """Train on so many devices, to the end or until told to stop: the mesh and the last state."""
    workdir.mkdir(exist_ok=True)
    mesh = sharding.make_mesh(run.mesh, jax.devices()[:devices])
    with contextlib.closing(batches_of(run)) as batches, jax.set_mesh(mesh):
        update = Update(NextToken(run))
        return mesh, train(update, batches, workdir, Telemetry(StopAt(stop)))


@pytest.mark.parametrize(
    ("optimiser", "moves"),
    [
        ("adamw", ((2, 1), (1, 0))),
        pytest.param("muon", ((8, 1), (4, 3), (2, 5), (8, 0)), marks=pytest.mark.slow),
    ],
)
def test_run_that_moves_between_devices_is_one_that_stayed(data, tmp_path, optimiser, moves):
    """Sums over 8 rows in another order: losses within 1e-5, after Adam's division 1e-3 at most."""
    run = override(tiny(data, steps=8, every=8), {"data.b": 8, "optim.kind": optimiser})
    _, straight = on(moves[0][0], run, tmp_path / "straight")
    for (devices, stop), size in zip(moves, itertools.cycle((1, 8)), strict=False):
        mesh, state = on(devices, run, tmp_path / "moved", stop)
        kept = {"opt": state.opt, "step": state.step, "seen": np.zeros(1, np.int64)}
        # What was saved is what the devices had, to the bit.
        other = sharding.make_mesh(run.mesh, jax.devices()[:size])
        with jax.set_mesh(other), contextlib.closing(batches_of(run)) as batches:
            shapes = Update(NextToken(run)).shapes(other)
            rest = {"opt": shapes.opt, "step": shapes.step, "seen": kept["seen"]}
            with Checkpoints(str(tmp_path / "moved/checkpoints"), run.checkpoints) as checkpoints:
                step, parts = checkpoints.restore(shapes.trained | shapes.frozen, rest, batches)
        assert step == int(state.step)
        same(parts["weights"], state.trained | state.frozen)
        same(parts["state"]["opt"], kept["opt"])
        shapes = jax.tree.leaves(shapes.opt)
        placed = [x.sharding for x in jax.tree.leaves(parts["state"]["opt"])]
        assert placed == [x.sharding for x in shapes]
    assert lanes(tmp_path / "moved", 8) == lanes(tmp_path / "straight", 8) != {}
    assert list(losses(tmp_path / "moved")) == list(range(1, 9))
    assert losses(tmp_path / "moved") == pytest.approx(losses(tmp_path / "straight"), rel=1e-5)
    for name, x in straight.trained.items():
        np.testing.assert_allclose(state.trained[name], x, rtol=0, atol=1e-3, err_msg=name)


def same(left, right):
    left, right = jax.tree.leaves(left), jax.tree.leaves(right)
    assert len(left) == len(right) > 0
    assert all(map(np.array_equal, left, right))


# Which lanes a process runs: its rows, in order, and no others.


def owned(*lengths, processes):
    """Processes over the devices of a mesh of these lengths, one after the other."""
    return np.repeat(np.arange(processes), np.prod(lengths) // processes).reshape(lengths)


@pytest.mark.parametrize(
    ("owners", "wanted"),
    [
        (owned(1, 4, 1, 2, processes=2), [[0, 1, 2, 3], [4, 5, 6, 7]]),
        (owned(2, 2, 1, 2, processes=4), [[0, 1], [2, 3], [4, 5], [6, 7]]),
        # Time or heads over two processes: both need the same rows.
        (owned(1, 2, 2, 2, processes=4), [[0, 1, 2, 3]] * 2 + [[4, 5, 6, 7]] * 2),
        (owned(1, 1, 1, 4, processes=2), [[0, 1, 2, 3, 4, 5, 6, 7]] * 2),
        # As devices may lie on a torus.
        (np.array([0, 1, 1, 0]).reshape(1, 4, 1, 1), [[0, 1, 6, 7], [2, 3, 4, 5]]),
    ],
)
def test_processes_run_the_lanes_of_their_rows(data, owners, wanted):
    run = override(tiny(data), {"data.b": 16})
    assert [sharding.host_lanes(run, owners, process) for process in range(len(wanted))] == wanted


def test_processes_that_cannot_share_the_lanes_evenly_are_refused(data):
    run = override(tiny(data), {"data.b": 12})  # 4 lanes
    with pytest.raises(Mistake, match="data.lanes=4: 3 hosts cannot share them evenly"):
        sharding.host_lanes(run, owned(1, 3, 1, 1, processes=3), 0)


# Real processes from here on.


@pytest.fixture(scope="module")
def straight(data, tmp_path_factory):
    """The folder of a run of one process and two devices that nothing stopped."""
    workdir = tmp_path_factory.mktemp("straight")
    status, _, err = done(words(data, workdir), **PAIR)
    assert status == 0, err
    return workdir


def words(data, workdir, *more):
    flags = ["--data.max_reject_share", 0.5, "--optim.compute", "float32", *more]
    return arguments(data, workdir, *flags, steps=STEPS, every=4)


def check(straight, workdir):
    assert lanes(workdir, STEPS) == lanes(straight, STEPS)
    assert len(lanes(workdir, STEPS)) == 8
    assert list(losses(workdir)) == list(range(1, STEPS + 1))
    assert losses(workdir) == pytest.approx(losses(straight), rel=1e-4)


def stopped(processes, workdir, how):
    """Stop the first of them six updates on, and wait for all: what they said.

    Not before a checkpoint stands: on a busy machine the first is still being written by then.
    """
    update = max(losses(workdir), default=0) + 6
    until(processes, workdir, update)
    saved = lambda: any(step >= update - 4 for step in steps_on_disk(workdir))
    reached(processes[0], lambda: (workdir / "checkpoints").exists() and saved())
    how(processes[0])
    for process in processes[1:]:
        how(process)
    return ended(processes)[1]


@pytest.mark.slow
def test_run_in_two_processes_then_one_then_two_is_one_that_stayed(straight, data, tmp_path):
    """Two are told to end, one is killed, and so are two, before two end by themselves."""
    command = words(data, tmp_path)
    with job(command) as both:
        stopped(both, tmp_path, subprocess.Popen.terminate)
    with job(command, 1, JAX_NUM_CPU_DEVICES="1") as alone:
        (said,) = stopped(alone, tmp_path, subprocess.Popen.kill)
    assert "resuming after update" in said
    with job(command) as both:
        said = stopped(both, tmp_path, subprocess.Popen.kill)
    assert "resuming after update" in said[0]
    assert 14 <= steps_on_disk(tmp_path)[-1] < STEPS
    with job(command) as both:
        statuses, said = ended(both)
    assert statuses == [0, 0], said
    assert "resuming after update" in said[0]
    check(straight, tmp_path)


@pytest.mark.slow
def test_run_whose_processes_hold_the_same_rows_is_that_of_one(data, tmp_path):
    """Time split over two processes: both draw all lanes."""
    flags = ["--optim.steps", 3, "--mesh.seq", 2]
    status, _, err = done(words(data, tmp_path / "one", *flags), **PAIR)
    assert status == 0, err
    with job(words(data, tmp_path / "two", *flags)) as both:
        statuses, said = ended(both)
    assert statuses == [0, 0], said
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-4)
    assert lanes(tmp_path / "two", 3) == lanes(tmp_path / "one", 3) != {}
