"""Weights made ready for decoding say what the model's own say, in blocks and on a mesh."""

import functools

import jax
import numpy as np
import pytest

from melllm_jax.config.model import Lora, Model
from melllm_jax.inference import decoding_weights
from melllm_jax.inference.generate import Decoder, prompt_batch
from melllm_jax.inference.sampling import GREEDY_UNGUARDED
from melllm_jax.nn.blocked_weight import BlockedWeight
from tests.support import models

LIMITS = np.array([6, 4] + [0] * 6)


def run(tied):
    """Sizes of which all are multiples of 64, but for LoRA's rank."""
    cfg = Model(d=64, n=2, k=2, h=32, f=128, l=2, v=192, front="none", tied=tied)
    return models.run(cfg, lora=Lora(r=4, alpha=3.0))


@functools.cache
def alone(tied):
    """Weights made ready, and what they say, on one device."""
    with models.one_device():
        return decoded(run(tied))


def decoded(cfg, own_order=False):
    skeleton, values = models.made(cfg)
    model = skeleton.model(values)
    decoder = Decoder(model, 192, GREEDY_UNGUARDED)
    if own_order:
        decoder.weights = decoding_weights._make_ready(model, in_blocks=False)
    rows = [models.segment(7, seed=1, v=192), models.segment(3, seed=2, v=192)]
    return decoder.weights, jax.device_get(decoder(prompt_batch(rows, 8), LIMITS))


@pytest.mark.parametrize("tied", [True, False])
def test_tokens_of_blocks_are_those_of_the_model(tied):
    with models.one_device():
        weights, found = alone(tied)
        attn, mlp = weights.layers[1].attn, weights.layers[1].mlp
        ready = [attn.q, attn.o, mlp.down, attn.qkv_lora.b[0]]
        assert all(isinstance(x[...], BlockedWeight) for x in ready)
        assert not isinstance(attn.qkv_lora.a[...], BlockedWeight)  # 4 columns
        assert weights.head.blocks.shape == (3, 64, 64)
        _, due = decoded(run(tied), own_order=True)
    jax.tree.map(np.testing.assert_array_equal, found, due)
    assert found.lengths.tolist() == LIMITS.tolist()


def test_weights_on_several_devices_stay_as_they_are():
    with models.split_as("fsdp4-tp2"):
        weights, found = decoded(run(tied=True))
        assert weights.head is None
        assert not isinstance(weights.layers[0].attn.q[...], BlockedWeight)
    jax.tree.map(np.testing.assert_array_equal, found, alone(tied=True)[1])
