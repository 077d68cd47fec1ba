import contextlib
import dataclasses
import functools
import json
import signal
import types

import jax
import jax.numpy as jnp
import numpy as np
from orbax.checkpoint import v1 as ocp
import pytest

from melllm_jax import sharding
from melllm_jax.config.run import CheckpointIntervals
from melllm_jax.errors import Fault
from melllm_jax.models.parameters import split_model
from melllm_jax.telemetry.progress import SilentProgress
from tests.support.runs import (
    At,
    ListStream,
    ask_to_stop_at,
    batches_of,
    compiled_once,
    corpus,
    lines,
    losses,
    steps_on_disk,
    tiny,
    traced_once,
    trained,
    update_of,
)


def same(left, right):
    """Whether two trees of arrays are equal to the bit."""
    left, right = jax.tree.leaves(left), jax.tree.leaves(right)
    return len(left) == len(right) and all(map(np.array_equal, left, right))


once = pytest.fixture(scope="module", autouse=True)(compiled_once)
traced = pytest.fixture(scope="module", autouse=True)(traced_once)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Twelve utterances, one of them without its audio."""
    changes = {3: {"audio_filepath": "none.flac"}}
    return corpus(tmp_path_factory.mktemp("data"), changes=changes)


@pytest.fixture(scope="module")
def straight(data, tmp_path_factory):
    """A run of six updates that nothing stopped, its folder and its last state."""
    workdir = tmp_path_factory.mktemp("straight")
    run = tiny(data)
    return types.SimpleNamespace(run=run, workdir=workdir, state=trained(run, workdir))


@pytest.fixture(scope="module")
def often(data):
    """The run with other intervals: it saves and scores after updates 3 and 6."""
    return tiny(data, every=3, score=3, log=2)


def test_train_writes_one_line_a_step_with_all_its_metrics(straight, data):
    rows = lines(straight.workdir)
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    drawn = 0
    for row in rows:
        assert 0 < row["loss"] < 10
        assert 0 <= row["accuracy"] <= 1
        assert 0 <= row["data_wait"] <= 1
        assert row["mfu"] is None
        assert row["tokens_per_second"] > row["audio_seconds_per_second"] > 0
        assert row[f"examples/{data}"] == row["examples"] > drawn
        assert row[f"epoch/{data}"] == row["examples"] / 12
        drawn = row["examples"]
    assert rows[0]["lr"] == 0
    assert rows[1]["lr"] == pytest.approx(straight.run.optim.lr)
    assert rows[-1]["rejected"]["missing"] in (drawn // 11, drawn // 11 + 1)


def test_train_keeps_the_newest_checkpoints_and_the_last_state(straight):
    assert steps_on_disk(straight.workdir) == [4, 6]
    assert int(straight.state.step) == 6
    saved = ocp.load(
        straight.workdir / "checkpoints/6", straight.state.trained, checkpointable_name="weights"
    )
    assert same(saved, straight.state.trained)


def test_train_asked_to_stop_saves_and_goes_on_as_if_it_had_not(straight, tmp_path):
    progress = ask_to_stop_at(2)
    state = trained(straight.run, tmp_path, progress)
    assert int(state.step) == 3  # the update that was under way
    assert steps_on_disk(tmp_path)[-1] == 3
    assert progress.said[1:] == ["stopped by a signal after update 3: saved"]
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    progress = At(lambda step: None)
    state = trained(straight.run, tmp_path, progress)
    assert progress.said[:-1] == ["resuming after update 3"]
    assert same(state, straight.state)
    assert losses(tmp_path) == losses(straight.workdir)
    counts = [
        {k: row[k] for k in row if k.startswith(("examples", "epoch", "rejected"))}
        for row in lines(tmp_path) + lines(straight.workdir)
    ]
    assert counts[:6] == counts[6:]


def test_train_asked_to_stop_while_compiling_saves_the_first_update(straight, tmp_path):
    class Compiling(SilentProgress):
        def status(self, text):
            if text.startswith("compiling"):
                signal.raise_signal(signal.SIGTERM)

    assert int(trained(straight.run, tmp_path, Compiling()).step) == 1
    assert steps_on_disk(tmp_path) == [1]


def test_train_already_done_does_nothing_more(straight, tmp_path):
    before = (straight.workdir / "metrics.jsonl").read_bytes()
    state = trained(straight.run, straight.workdir)
    assert same(state, straight.state)
    assert (straight.workdir / "metrics.jsonl").read_bytes() == before


def test_train_resumed_elsewhere_only_in_where_it_runs_goes_on_alike(straight, tmp_path):
    trained(straight.run, tmp_path, ask_to_stop_at(2))
    run = dataclasses.replace(
        straight.run,
        data=dataclasses.replace(straight.run.data, threads=3, ahead=0),
        checkpoints=dataclasses.replace(straight.run.checkpoints, every=5, last=1),
    )
    trained(run, tmp_path)
    assert losses(tmp_path) == losses(straight.workdir)
    assert steps_on_disk(tmp_path) == [6]


def test_train_reads_an_update_once_the_next_is_under_way(often, tmp_path):
    events = []

    class Spied(ListStream):
        """The data, noting when each batch is drawn."""

        def __next__(self):
            events.append(f"draw {self._given + 1}")
            return super().__next__()

    progress = At(lambda step: events.append(f"told {step}"))
    with contextlib.closing(batches_of(often)) as batches:
        stream = Spied([next(batches) for _ in range(6)])
    trained(often, tmp_path, progress, stream=stream)
    assert events == (
        ["draw 1", "draw 2", "told 1", "draw 3", "told 2", "told 3"]  # 3 is saved: read at once
        + ["draw 4", "draw 5", "told 4", "draw 6", "told 5", "told 6"]
    )


def test_train_refuses_a_transfer_that_nobody_asked_for(straight, tmp_path):
    class Careless(ListStream):
        def counts(self):
            return {"bad": {"x": int(jnp.zeros(2).at[0].add(np.ones(1)[0]).sum())}}

    with contextlib.closing(batches_of(straight.run)) as batches:
        stream = Careless([next(batches)])
    with pytest.raises(Exception, match="Disallowed host-to-device transfer"):
        trained(straight.run, tmp_path, stream=stream)


def test_train_scores_the_model_of_that_update_in_its_line(often, tmp_path):
    found = []

    def score(model):
        found.append({name: np.asarray(x) for name, x in split_model(model)[1].items()})
        return {"wer": 1.5}

    state = trained(often, tmp_path, score=score)
    rows = lines(tmp_path)
    assert [(row["step"], row.get("wer")) for row in rows] == [
        (2, None),
        (3, 1.5),
        (4, None),
        (6, 1.5),
    ]
    assert all("loss" in row for row in rows)
    assert same(found[1], state.trained | state.frozen)
    assert not same(found[0], found[1])


@functools.cache
def broken(run, every):
    """The run with a learning rate that sends its weights to 1e30."""
    fast = dataclasses.replace(run.optim, lr=1e30, warmup=0)
    return dataclasses.replace(run, optim=fast, checkpoints=CheckpointIntervals(every=every))


def after_one(run, batch):
    """What a checkpoint holds of the first update, of this batch."""
    with jax.set_mesh(sharding.make_mesh(run.mesh, jax.devices()[:1])):
        update = update_of(run)
        state, _ = jax.jit(update)(update.init_state(), sharding.shard_batch(batch))
    return {"weights": state.trained | state.frozen, "opt": state.opt}


def test_train_that_is_no_longer_finite_leaves_the_batch_and_the_state_before(straight, tmp_path):
    run = broken(straight.run, every=3)
    with pytest.raises(Fault, match=r"update 2: loss=.* is not finite; the batch and the state"):
        trained(run, tmp_path)
    halted = tmp_path / "halted/2"
    assert [row["step"] for row in lines(tmp_path)] == [1]
    assert not (tmp_path / "checkpoints").exists()
    with contextlib.closing(batches_of(run)) as batches:
        first, second = next(batches), next(batches)
    with np.load(halted / "batch.npz") as kept:
        assert sorted(kept) == sorted(second._fields)
        assert all(np.array_equal(kept[name], getattr(second, name)) for name in kept)
        assert not np.array_equal(kept["tokens"], first.tokens)
    before = after_one(run, first)
    kept = ocp.load(halted / "state", before)
    assert same(kept, before)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(kept))


def test_train_halted_by_one_batch_does_not_learn_from_the_next(often, tmp_path):
    with contextlib.closing(batches_of(often)) as batches:
        first, second, third = (next(batches) for _ in range(3))
    bad = second._replace(patches=np.full_like(second.patches, np.nan))
    with pytest.raises(Fault, match=r"update 2: loss=nan"):
        trained(often, tmp_path, stream=ListStream([first, bad, third]))
    before = after_one(often, first)
    assert same(ocp.load(tmp_path / "halted/2/state", before), before)


def test_train_that_is_no_longer_finite_saves_none_of_it_and_says_so_again(straight, tmp_path):
    for _ in range(2):
        with pytest.raises(Fault, match="update 2: loss="):
            trained(broken(straight.run, every=1), tmp_path)
        assert steps_on_disk(tmp_path) == [1]
    assert json.loads((tmp_path / "metrics.jsonl").read_text())["step"] == 1


def test_train_that_is_no_longer_finite_says_so_where_it_cannot_be_kept(straight, tmp_path):
    (tmp_path / "halted").write_text("")  # no folder can be made there
    with pytest.raises(
        Fault, match=r"update 2: loss=.* before it could not be written to .*halted"
    ):
        trained(broken(straight.run, every=1), tmp_path)
