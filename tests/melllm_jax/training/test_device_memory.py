import pathlib

import jax
import pytest

from melllm_jax import sharding
from melllm_jax.config.overrides import override
from melllm_jax.config.run import Mesh
from melllm_jax.errors import Mistake
from melllm_jax.objectives.next_token import NextToken
from melllm_jax.training import device_memory
from melllm_jax.training.train_step import Update
from melllm_jax.training.warm_start import WarmStart
from tests.support.models import made, run
from tests.support.runs import arguments, corpus, refused

SPLIT = Mesh(fsdp=4, tp=2)


def one_device_holds(tree):
    """Bytes of a tree of arrays that lie on the first device."""
    first = jax.devices()[0]
    shards = (s for x in jax.tree.leaves(tree) for s in x.addressable_shards)
    return sum(s.data.nbytes for s in shards if s.device == first)


@pytest.mark.parametrize("cut", [Mesh(), SPLIT], ids=["fsdp8", "fsdp4-tp2"])
def test_needed_is_the_state_on_one_device_and_the_gradients(cut):
    mesh = sharding.make_mesh(cut)
    with jax.set_mesh(mesh):
        update = Update(NextToken(run()))
        state = update.state_from(made(run())[1])
        gradients = one_device_holds(state.trained)
        told = device_memory.state_bytes(update, mesh)
    assert told == one_device_holds(state) + gradients


def test_needed_of_lora_counts_frozen_weights_twice_only_at_a_random_start():
    mesh = sharding.make_mesh(Mesh())
    objective = NextToken(override(run(train="lora"), {"model.v": 4096}))
    start = WarmStart("folder", pathlib.Path("folder/checkpoints/0"), "", {})
    with jax.set_mesh(mesh):
        updates = Update(objective), Update(objective, start)
        state = updates[0].state_from(made(objective.run)[1])
        told = [device_memory.state_bytes(update, mesh) for update in updates]
    held, frozen = one_device_holds(state), one_device_holds(state.frozen)
    in_float32 = sum(4 * x.size // 8 for x in jax.tree.leaves(state.frozen) if x.ndim > 1)
    assert told[1] == held + one_device_holds(state.trained)
    assert told[0] > 1.5 * told[1]
    assert told[0] > held + 1.9 * frozen
    assert told[0] - held >= in_float32


def test_refuse_says_what_is_needed_and_what_is_there_of_all_devices_together():
    mesh = sharding.make_mesh(Mesh())
    there, shared = device_memory.memory_limit(mesh)
    assert shared == 8
    assert there > 2**30
    device_memory.check_bytes_fit("tiny", there // 8, mesh, "weights")
    with pytest.raises(Mistake) as refusal:
        device_memory.check_bytes_fit("big", there // 8 + 1, mesh, "weights")
    size = f"{there / 1e9:.1f} GB"
    assert (
        str(refusal.value) == f"preset=big: weights need {size} on this machine, which has {size}"
    )


def test_train_refuses_what_does_not_fit_this_machine_and_writes_nothing(tmp_path, capsys):
    data = corpus(tmp_path / "data")
    words = arguments(data, tmp_path / "run", "--model.v", 2 * 10**9)
    said = refused(words, capsys)
    assert said.startswith("preset=digits: weights, optimiser state and gradients need 512.0 GB")
    assert not (tmp_path / "run").exists()
