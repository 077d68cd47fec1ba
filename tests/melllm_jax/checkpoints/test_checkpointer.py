import gc
import os
import pathlib
import re
import shutil
import threading

import jax
import jax.numpy as jnp
import numpy as np
from orbax.checkpoint import v1 as ocp
import pytest

from melllm_jax.checkpoints import checkpointer
from melllm_jax.checkpoints.checkpointer import Checkpoints, dump
from melllm_jax.checkpoints.integrity import SEAL
from melllm_jax.config.run import CheckpointIntervals
from melllm_jax.errors import Fault, Mistake
from tests.support.runs import everything, small_disk


class Place:
    """An input pipeline's place that is one number."""

    def __init__(self, at=0):
        self.at = at

    async def save(self, directory):
        at = self.at

        async def write():
            path = await directory.await_creation()
            (path / "at").write_text(str(at))

        return write()

    async def load(self, directory):
        async def read():
            self.at = int((directory / "at").read_text())

        return read()


def weights(step):
    return {"a.b": jnp.full((64, 64), step, jnp.float32), "c": jnp.arange(8) * step}


def save(checkpoints, step):
    checkpoints.save(step, weights(step), {"step": jnp.int32(step)}, Place(step))


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Checkpoints of steps 2, 4 and 6, which no test may change."""
    folder = tmp_path_factory.mktemp("written") / "c"
    with Checkpoints(str(folder), CheckpointIntervals(last=3)) as checkpoints:
        for step in (2, 4, 6):
            save(checkpoints, step)
    return folder


@pytest.fixture
def folder(written, tmp_path):
    """Checkpoints of steps 2, 4 and 6."""
    return shutil.copytree(written, tmp_path / "c")


@pytest.fixture
def young():
    """What was there before the test is none of what `gc.collect` goes through, for a second."""
    gc.freeze()
    yield
    gc.unfreeze()


def restored(folder, say=lambda text: None, intervals=CheckpointIntervals(last=3)):  # noqa: B008
    """What is restored from a folder: (step, the place in the data), every part checked."""
    shapes = jax.eval_shape(lambda: (weights(0), {"step": jnp.int32(0)}))
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    shapes = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), shapes
    )
    place = Place()
    with Checkpoints(str(folder), intervals, say) as checkpoints:
        found = checkpoints.restore(*shapes, place)
    if found is None:
        return None
    step, parts = found
    for name, x in weights(step).items():
        assert np.array_equal(parts["weights"][name], x)
    assert int(parts["state"]["step"]) == step
    return step, place.at


def biggest(folder):
    """The largest file of the weights."""
    return max((p for p in (folder / "weights").rglob("*") if p.is_file()), key=os.path.getsize)


def truncate(folder):
    os.truncate(biggest(folder), os.path.getsize(biggest(folder)) // 2)


def flip(folder):
    path = biggest(folder)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def lose_a_file(folder):
    biggest(folder).unlink()


def lose_the_data(folder):
    shutil.rmtree(folder / "data")


def cut_the_seal(folder):
    os.truncate(folder / SEAL, 20)


def stop_half_way(folder):
    (folder / SEAL).unlink()
    (folder / "commit_success.txt").unlink()
    lose_a_file(folder)


def lose_seal_and_file(folder):
    (folder / SEAL).unlink()
    (folder / "weights/manifest.ocdbt").unlink()


DAMAGES = {
    truncate: "bytes, not",
    flip: "has changed since it was written",
    lose_a_file: "is missing",
    lose_the_data: "data/.* is missing",
    cut_the_seal: "sums.json is no JSON",
    stop_half_way: "it was never completed",
    lose_seal_and_file: "it has no sums.json and does not load",
}


def test_restore_gives_the_newest_with_all_its_parts(folder):
    said = []
    assert restored(folder, said.append) == (6, 6)
    assert said == []


def test_restore_of_an_empty_folder_gives_nothing_and_makes_nothing(tmp_path):
    assert restored(tmp_path / "none") is None
    assert not (tmp_path / "none").exists()


@pytest.mark.usefixtures("young")
@pytest.mark.filterwarnings(  # Orbax drops its own reads, not awaited, where one of them fails
    "ignore:coroutine .* was never awaited:RuntimeWarning",
    "ignore::pytest.PytestUnraisableExceptionWarning",
)
@pytest.mark.parametrize(
    ("damage", "why"), DAMAGES.items(), ids=lambda x: getattr(x, "__name__", "")
)
def test_damaged_newest_is_named_and_set_aside_for_the_one_before(folder, damage, why):
    damage(folder / "6")
    said = []
    assert restored(folder, said.append) == (4, 4)
    gc.collect()  # what Orbax dropped is reported here, not in a later test
    assert len(said) == 2
    assert said[0].startswith("checkpoint 6 is damaged (")
    assert re.search(why, said[0])
    assert said[1] == f"checkpoint 6 is now {folder / '6.damaged'}"
    with Checkpoints(str(folder), CheckpointIntervals(last=3)) as checkpoints:
        assert checkpoints.steps == [2, 4]
        save(checkpoints, 6)
    assert restored(folder) == (6, 6)


def test_damaged_two_newest_are_both_passed_over_and_set_aside(folder):
    truncate(folder / "6")
    flip(folder / "4")
    assert restored(folder) == (2, 2)
    assert sorted(p.name for p in folder.iterdir()) == ["2", "4.damaged", "6.damaged"]


def test_damaged_again_at_the_same_step_replaces_the_one_set_aside(folder):
    for _ in range(2):
        truncate(folder / "6")
        assert restored(folder) == (4, 4)
        with Checkpoints(str(folder), CheckpointIntervals(last=3)) as checkpoints:
            save(checkpoints, 6)
    assert restored(folder) == (6, 6)


def test_damaged_ones_do_not_count_as_the_last_to_keep(folder):
    flip(folder / "6")
    assert restored(folder) == (4, 4)
    with Checkpoints(str(folder), CheckpointIntervals(last=1)) as checkpoints:
        save(checkpoints, 5)
    assert restored(folder) == (5, 5)


def test_all_damaged_is_a_fault_that_leaves_them_where_they_are(folder):
    for step in (2, 4, 6):
        truncate(folder / f"{step}")
    before = everything(folder)
    with pytest.raises(Fault, match=r"none of the checkpoints \[2, 4, 6\] is whole"):
        restored(folder)
    assert everything(folder) == before


def test_unsealed_but_whole_is_restored(folder):
    (folder / "6" / SEAL).unlink()  # what a kill between the last rename and the seal leaves
    assert restored(folder) == (6, 6)


def test_folder_left_half_written_is_ignored_and_removed_by_the_next_save(folder):
    (folder / "8.orbax-checkpoint-tmp").mkdir()
    (folder / "8.orbax-checkpoint-tmp" / "_CHECKPOINT_METADATA").write_text("{")
    assert restored(folder) == (6, 6)
    with Checkpoints(str(folder), CheckpointIntervals(last=3)) as checkpoints:
        save(checkpoints, 8)
    assert restored(folder) == (8, 8)
    assert not list(folder.glob("*tmp*"))


def test_reading_changes_nothing_in_the_folder(folder):
    (folder / "8.orbax-checkpoint-tmp").mkdir()  # a save of a run that is still training
    truncate(folder / "6")
    before = sorted(folder.iterdir())
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    shapes = {
        name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
        for name, x in weights(0).items()
    }
    said = []
    with Checkpoints(str(folder), CheckpointIntervals(), said.append) as checkpoints:
        step, found = checkpoints.restore_weights(shapes)
    assert (step, float(found["a.b"][0, 0])) == (4, 4.0)
    assert [line[:23] for line in said] == ["checkpoint 6 is damaged"]
    assert sorted(folder.iterdir()) == before


def test_restore_weights_of_a_run_without_checkpoints_is_a_mistake(tmp_path):
    with (
        Checkpoints(str(tmp_path / "none"), CheckpointIntervals()) as checkpoints,
        pytest.raises(Mistake, match=r"checkpoints=.*none: holds no checkpoint"),
    ):
        checkpoints.restore_weights({})
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(("whole", "agreed"), [((2, 4, 6), 6), ((2, 4), 4), ((2,), 2)])
def test_processes_agree_on_the_newest_that_the_first_finds_whole(
    tmp_path, monkeypatch, whole, agreed
):
    for step in (2, 4, 6):
        (tmp_path / str(step)).mkdir()
    told = []  # to the other process
    damage = lambda folder: None if int(folder.name) in whole else "a flipped bit"
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(checkpointer, "find_damage", damage)
    broadcast = lambda step: told.append(int(step)) or step
    monkeypatch.setattr(checkpointer.multihost_utils, "broadcast_one_to_all", broadcast)
    load = lambda folder, parts: {"weights": {"a.b": jnp.int32(folder.name)}}
    monkeypatch.setattr(ocp, "load_checkpointables", load)
    checkpoints = Checkpoints(str(tmp_path), CheckpointIntervals(), lambda line: None)
    assert checkpoints.restore_weights({}) == (agreed, {"a.b": agreed})
    assert told == [agreed]


@pytest.mark.parametrize(
    ("intervals", "stay"),
    [
        (CheckpointIntervals(last=1), [12]),
        (CheckpointIntervals(last=2, milestone=4), [4, 8, 10, 12]),
    ],
)
def test_intervals_say_which_checkpoints_stay(tmp_path, intervals, stay):
    with Checkpoints(str(tmp_path), intervals) as checkpoints:
        for step in range(2, 13, 2):
            save(checkpoints, step)
        checkpoints.wait()
        assert checkpoints.steps == stay


def test_save_at_a_relative_path_is_restored(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with Checkpoints("here", CheckpointIntervals()) as checkpoints:
        save(checkpoints, 3)
    assert restored(pathlib.Path("here")) == (3, 3)
    assert (tmp_path / "here/3").is_dir()


class Slow(Place):
    """A place whose writing waits until it is let go."""

    def __init__(self):
        super().__init__(7)
        self.free = threading.Event()

    async def save(self, directory):
        inner = await super().save(directory)

        async def write():
            self.free.wait(60)
            await inner

        return write()


def test_save_returns_before_it_stands_on_disk(tmp_path):
    slow = Slow()
    with Checkpoints(str(tmp_path), CheckpointIntervals()) as checkpoints:
        checkpoints.save(7, weights(7), {"step": jnp.int32(7)}, slow)
        assert checkpoints.steps == []
        slow.free.set()
        checkpoints.wait()
        assert checkpoints.steps == [7]


def test_save_keeps_what_was_there_when_it_was_called(tmp_path):
    place, held = Slow(), {"a.b": jnp.full((64, 64), 7.0), "c": jnp.arange(8) * 7}
    double = jax.jit(lambda tree: jax.tree.map(lambda x: x * 2, tree), donate_argnums=0)
    with Checkpoints(str(tmp_path), CheckpointIntervals()) as checkpoints:
        checkpoints.save(7, held, {"step": jnp.int32(7)}, place)
        held, place.at = double(held), 8
        place.free.set()
    assert restored(tmp_path) == (7, 7)


class Broken(Place):
    """A place that cannot be written, which shows in the background."""

    async def save(self, directory):
        async def write():
            await directory.await_creation()
            raise OSError(28, "No space left on device")

        return write()


def test_save_that_fails_in_the_background_is_a_fault_at_the_next_save(tmp_path):
    with (
        pytest.raises(Fault, match="checkpoint 4 could not be written"),
        Checkpoints(str(tmp_path), CheckpointIntervals()) as checkpoints,
    ):
        save(checkpoints, 2)
        checkpoints.save(4, weights(4), {"step": jnp.int32(4)}, Broken())
        save(checkpoints, 6)
    assert restored(tmp_path) == (2, 2)


def test_save_that_fails_in_the_background_is_a_fault_at_the_exit(tmp_path):
    with (
        pytest.raises(Fault, match=r"No space left.*older checkpoints are intact: \[2\]"),
        Checkpoints(str(tmp_path), CheckpointIntervals()) as checkpoints,
    ):
        save(checkpoints, 2)
        checkpoints.save(4, weights(4), {"step": jnp.int32(4)}, Broken())
    assert restored(tmp_path) == (2, 2)


@pytest.mark.filterwarnings(  # Orbax's writes that outlive the failed one report to its closed loop
    "ignore:Exception ignored in. None:pytest.PytestUnraisableExceptionWarning"
)
def test_save_on_a_full_disk_is_a_fault_and_goes_on_when_there_is_space(tmp_path, capfd, caplog):
    with small_disk(tmp_path / "disk", 2000) as disk:
        with Checkpoints(str(disk / "c"), CheckpointIntervals()) as checkpoints:
            save(checkpoints, 2)
        filler = disk / "filler"
        with pytest.raises(OSError, match="No space left"):
            filler.write_bytes(bytes(4_000_000))
        os.truncate(filler, filler.stat().st_size - 16_384)
        with (
            pytest.raises(Fault) as fault,
            Checkpoints(str(disk / "c"), CheckpointIntervals()) as checkpoints,
        ):
            save(checkpoints, 4)
        assert "checkpoint 4 could not be written" in str(fault.value)
        assert "\n" not in str(fault.value)
        assert "older checkpoints are intact: [2]" in str(fault.value)
        assert restored(disk / "c") == (2, 2)
        filler.unlink()
        with Checkpoints(str(disk / "c"), CheckpointIntervals()) as checkpoints:
            save(checkpoints, 4)
        assert restored(disk / "c") == (4, 4)
    assert capfd.readouterr().err == ""
    assert not caplog.records  # the Fault says it all


def test_dump_is_read_back_and_replaces_what_is_there(tmp_path):
    for value in (1.0, 2.0):
        dump(tmp_path / "state", {"x": jnp.full(3, value)})
    assert np.array_equal(ocp.load(tmp_path / "state", {"x": jnp.zeros(3)})["x"], [2.0, 2.0, 2.0])
