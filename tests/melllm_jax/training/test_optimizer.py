import dataclasses

import jax
import numpy as np
import pytest

from melllm_jax.config.run import Optim
from melllm_jax.models import parameters
from melllm_jax.models.speech_lm import SpeechLM
from melllm_jax.objectives.objective import trainable_names
from melllm_jax.training.optimizer import (
    layer_update_masks,
    learning_rate_schedule,
    make_optimizer,
)
from tests.support import models

COSINE = Optim(steps=110, lr=1e-3, warmup=10, final=0.1)
LINEAR = dataclasses.replace(COSINE, schedule="linear")
WSD = dataclasses.replace(COSINE, schedule="wsd", decay=0.2)


@pytest.mark.parametrize(
    ("cfg", "rates"),
    [
        (COSINE, {0: 0, 5: 0.5e-3, 10: 1e-3, 60: 0.55e-3, 110: 1e-4, 200: 1e-4}),
        (LINEAR, {0: 0, 5: 0.5e-3, 10: 1e-3, 35: 0.775e-3, 60: 0.55e-3, 110: 1e-4, 200: 1e-4}),
        (WSD, {0: 0, 5: 0.5e-3, 10: 1e-3, 88: 1e-3, 99: 0.55e-3, 110: 1e-4, 200: 1e-4}),
        (dataclasses.replace(COSINE, warmup=0), {0: 1e-3, 55: 0.55e-3, 110: 1e-4}),
        (dataclasses.replace(WSD, decay=1.0), {0: 0, 5: 0.5e-3, 10: 1e-3, 60: 0.55e-3, 110: 1e-4}),
    ],
    ids=["cosine", "linear", "wsd", "no warm-up", "wsd that falls from its peak on"],
)
def test_a_schedule_rises_from_0_and_ends_at_its_final_share(cfg, rates):
    schedule = learning_rate_schedule(cfg)
    for step, rate in rates.items():
        assert float(schedule(step)) == pytest.approx(rate, rel=1e-5), step


@pytest.fixture(scope="module")
def kinds():
    vectors = {"qkv_bias": True, "qk_norm": True}
    run = models.run(dataclasses.replace(models.MODEL, front="conv", l=3, **vectors))
    with models.one_device():
        build = lambda rngs: SpeechLM(run.model, run.mel, run.lora, rngs=rngs)
        return parameters.abstract_model(build)[0].kinds


def test_everything_trains_but_fixed_statistics(kinds):
    assert trainable_names(COSINE, kinds) == kinds.keys() - {"front.mean", "front.invstd"}


def test_lora_training_trains_lora_and_the_front_end(kinds):
    chosen = trainable_names(dataclasses.replace(COSINE, train="lora"), kinds)
    expected = {name for name in kinds if "_lora." in name or name.startswith("front.")}
    assert chosen == expected - {"front.mean", "front.invstd"}
    front = {name for name in chosen if name.startswith("front.")}
    assert trainable_names(dataclasses.replace(COSINE, train="front"), kinds) == front


def test_a_frozen_encoder_leaves_its_projector_to_train(kinds):
    frozen = dataclasses.replace(COSINE, encoder="frozen")
    projector = {f"front.{name}" for name in ("up", "up_bias", "down", "down_bias")}
    front = {name for name in kinds if name.startswith("front.")}
    assert trainable_names(frozen, kinds) == kinds.keys() - front | projector
    lora = {name for name in kinds if "_lora." in name}
    assert trainable_names(dataclasses.replace(frozen, train="lora"), kinds) == lora | projector


def updated(cfg, kinds, values, grads):
    """The change that one update at the peak rate makes."""
    optimizer = make_optimizer(dataclasses.replace(cfg, warmup=0), kinds)

    @models.jitted
    def change(values, grads):
        return optimizer.update(grads, optimizer.init(values), values)[0]

    return jax.device_get(change(values, grads))


def zeros(kinds, number):
    return {name: np.full(kind.shape, number, np.float32) for name, kind in kinds.items()}


def test_weight_decay_spares_norms_and_biases(kinds):
    """No gradient, so that decay alone moves a weight of 1: by lr · weight decay."""
    few = {
        name: kinds[name]
        for name in (
            "embed",
            "front.first",
            "front.first_bias",
            "norm.scale",
            "stack.blocks.attn.o",
            "stack.blocks.attn.k_bias",
            "stack.blocks.attn.q_norm.scale",
        )
    }
    with models.one_device():
        cfg = dataclasses.replace(COSINE, weight_decay=0.5)
        changes = updated(cfg, few, zeros(few, 1.0), zeros(few, 0.0))
    moved = {name: float(np.abs(x).max()) for name, x in changes.items()}
    assert moved == pytest.approx(
        {
            "embed": 0.5e-3,
            "front.first": 0.5e-3,
            "front.first_bias": 0.0,
            "norm.scale": 0.0,
            "stack.blocks.attn.o": 0.5e-3,
            "stack.blocks.attn.k_bias": 0.0,
            "stack.blocks.attn.q_norm.scale": 0.0,
        }
    )


def test_a_gradient_beyond_the_clip_is_scaled_down_to_it(kinds):
    """eps 1 makes AdamW's first update g / (|g| + 1) · lr, so that the size of g shows."""
    few = {"norm.scale": kinds["norm.scale"]}
    cfg = dataclasses.replace(COSINE, eps=1.0, weight_decay=0.0)
    grads = {"norm.scale": np.array([3.0, 4.0] + [0.0] * 30, np.float32)}  # of norm 5
    with models.one_device():
        clipped, free = (
            updated(dataclasses.replace(cfg, clip=clip), few, zeros(few, 1.0), grads)["norm.scale"]
            for clip in (1.0, 0.0)
        )
    np.testing.assert_allclose(clipped[:2], [-1e-3 * 0.6 / 1.6, -1e-3 * 0.8 / 1.8], rtol=1e-4)
    np.testing.assert_allclose(free[:2], [-1e-3 * 3 / 4, -1e-3 * 4 / 5], rtol=1e-4)


def test_adamw_forgets_gradients_by_b1_and_their_squares_by_b2(kinds):
    """Two updates of one vector, by the formulas of Kingma and Ba 2015, arXiv 1412.6980."""
    few, (b1, b2) = {"norm.scale": kinds["norm.scale"]}, (0.5, 0.9)
    cfg = dataclasses.replace(COSINE, warmup=0, clip=0.0, b1=b1, b2=b2, weight_decay=0.0)
    optimizer, values = make_optimizer(cfg, few), zeros(few, 1.0)
    with models.one_device():
        state = optimizer.init(values)
        _, state = optimizer.update(zeros(few, 1.0), state, values)
        change, _ = optimizer.update(zeros(few, 3.0), state, values)
    mean = (b1 * (1 - b1) * 1 + (1 - b1) * 3) / (1 - b1**2)
    square = (b2 * (1 - b2) * 1 + (1 - b2) * 9) / (1 - b2**2)
    expected = -float(learning_rate_schedule(cfg)(1)) * mean / square**0.5
    np.testing.assert_allclose(change["norm.scale"], np.full(32, expected), rtol=1e-5)


MATRICES = ("stack.blocks.attn.q", "stack.blocks.attn.o", "stack.blocks.mlp.down")


def test_muon_makes_each_layers_matrix_orthogonal_and_scales_it_as_adamw(kinds):
    """Each update is U Vᵀ · 0.2 · √max side · lr; five Newton-Schulz steps leave 0.7 to 1.2."""
    names = (*MATRICES, "embed", "stack.blocks.attn.qkv_lora.a", "stack.blocks.attn_norm.scale")
    few = {name: kinds[name] for name in names}
    rng = np.random.default_rng(0)
    values = zeros(few, 0.0)
    grads = {name: rng.standard_normal(x.shape, np.float32) for name, x in values.items()}
    cfg = dataclasses.replace(COSINE, kind="muon")
    with models.one_device():
        changes = updated(cfg, few, values, grads)
        plain = updated(COSINE, few, values, grads)
    for name, (rows, columns) in zip(MATRICES, [(32, 32), (32, 32), (48, 32)], strict=True):
        for layer in changes[name]:
            singular = np.linalg.svd(layer.reshape(rows, columns), compute_uv=False)
            unit = singular / (1e-3 * 0.2 * np.sqrt(max(rows, columns)))
            assert unit.min() > 0.5 and unit.max() < 1.3, name
    for name in names[3:]:
        np.testing.assert_allclose(changes[name], plain[name], rtol=1e-4, atol=1e-9)


def test_a_frozen_layer_has_no_share_in_a_change(kinds):
    cfg = dataclasses.replace(COSINE, freeze=(0, 2))
    masks = layer_update_masks(cfg, kinds)
    assert masks.keys() == {name for name in kinds if name.startswith("stack.")}
    for name, mask in masks.items():
        assert mask.shape == (3, *[1] * (len(kinds[name].shape) - 1)), name
        np.testing.assert_array_equal(mask.ravel(), [0, 1, 0])
    assert layer_update_masks(COSINE, kinds) == {}
