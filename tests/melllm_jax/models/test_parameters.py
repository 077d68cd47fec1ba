import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from melllm_jax.models import parameters
from melllm_jax.models.speech_lm import SpeechLM
from melllm_jax.nn.layers import LoraParam, NonTrainable
from tests.support import models

RUN = models.run(dataclasses.replace(models.MODEL, front="conv", tied=False))


def build(rngs):
    return SpeechLM(RUN.model, RUN.mel, RUN.lora, rngs=rngs)


@pytest.fixture(scope="module")
def drawn():
    with models.split_as("fsdp4-tp2"):
        yield *parameters.init_model(build, 0), parameters.abstract_model(build)[1]


def test_weights_are_named_by_their_place_in_the_model(drawn):
    skeleton, values, _ = drawn
    assert values["stack.blocks.attn.q"].shape == (2, 32, 4, 8)
    assert values["stack.blocks.attn.qkv_lora.b.2"].shape == (2, 4, 2, 8)
    assert values["front.depth.1"].shape == (3, 3, 8)
    assert values["head"].shape == (32, 64)
    assert values.keys() == skeleton.kinds.keys()
    kinds = skeleton.kinds
    assert {name for name in kinds if isinstance(kinds[name], NonTrainable)} == {
        "front.mean",
        "front.invstd",
    }
    lora = {name for name in kinds if isinstance(kinds[name], LoraParam)}
    assert lora == {name for name in kinds if "_lora." in name}
    assert kinds["stack.blocks.attn.o"].fan_in == "n h"


def test_random_weights_lie_where_the_abstract_ones_say(drawn):
    _, values, shapes = drawn
    for name, x in values.items():
        assert (x.shape, x.dtype) == (shapes[name].shape, shapes[name].dtype), name
        assert x.sharding.spec == shapes[name].sharding.spec, name
    q = values["stack.blocks.attn.q"]
    assert q.sharding.shard_shape(q.shape) == (2, 8, 2, 8)


def test_layers_are_drawn_apart_and_with_the_spread_of_their_fan_in(drawn):
    _, values, _ = drawn
    q = np.asarray(values["stack.blocks.attn.q"])
    assert np.abs(q[0] - q[1]).max() > 0.1
    assert q.std() == pytest.approx(1 / np.sqrt(32), rel=0.05)  # 2,048 draws: 1.6 %
    assert not np.any(values["stack.blocks.attn.qkv_lora.b.0"])


def test_a_model_split_and_built_again_has_the_same_weights(drawn):
    skeleton, values, _ = drawn
    _, again = parameters.split_model(skeleton.model(values))
    assert list(again) == list(values)
    for name, x in values.items():
        assert again[name] is x, name


def test_a_cast_leaves_fixed_statistics_in_float32(drawn):
    skeleton, values, _ = drawn
    model = lambda values: skeleton.model(values, jnp.dtype("bfloat16"))
    with models.split_as("fsdp4-tp2"):
        cast = jax.eval_shape(lambda values: parameters.split_model(model(values))[1], values)
    assert cast.pop("front.mean").dtype == cast.pop("front.invstd").dtype == jnp.float32
    assert {x.dtype for x in cast.values()} == {jnp.dtype("bfloat16")}


def test_what_text_needs_of_a_model_is_its_own_arrays_without_front_end_or_lora_at_speech(drawn):
    skeleton, values, _ = drawn
    lora = dataclasses.replace(models.LORA, at="speech")
    at_speech = models.run(RUN.model, lora)
    bare = {name for name in values if not name.startswith("front.")}
    with models.split_as("fsdp4-tp2"):
        other = models.made(at_speech)[0]
        for whole, kept in ((skeleton, bare), (other, {x for x in bare if "_lora." not in x})):
            found, weights = parameters.split_model(parameters.text_model(whole.model(values)))
            assert weights.keys() == found.kinds.keys() == kept
            assert all(weights[name] is values[name] for name in kept)


def test_a_missing_weight_is_named(drawn):
    skeleton, values, _ = drawn
    rest = {name: x for name, x in values.items() if name != "front.up"}
    with pytest.raises(KeyError, match="front.up"):
        skeleton.model(rest)


def test_abstract_weights_hold_no_numbers(drawn):
    assert all(isinstance(x, jax.ShapeDtypeStruct) for x in drawn[2].values())
