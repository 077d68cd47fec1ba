import dataclasses

import numpy as np
import pytest
import scipy.special

from melllm_jax import sharding
from melllm_jax.config.model import Lora
from melllm_jax.evaluation import drift
from tests.support import models

RUN = models.run(dataclasses.replace(models.MODEL, v=80, l=1, tied=False), Lora())
BASE = models.run(dataclasses.replace(models.MODEL, l=1), Lora())


@pytest.fixture(scope="module")
def batch():
    return models.pack([[models.segment(9 + i, seed=i)] for i in range(8)], 24)


def measured(batch):
    """The figures, and the logits of both models, on the mesh in force."""
    nets = [skeleton.model(values) for skeleton, values in map(models.made, (RUN, BASE))]
    placed = sharding.shard_batch(batch)
    logits = [np.asarray(models.jitted(lambda m, b: m.logits(m(b)))(x, placed)) for x in nets]
    return drift.measure_drift(*nets, [batch, batch]), logits


def test_figures_are_those_of_log_softmax_over_the_tokens_of_both(batch):
    """float32 sums over 64 tokens against float64: 1e-5 of each figure."""
    with models.one_device():
        found, logits = measured(batch)
    scores = (*logits, logits[0][..., :64])
    whole, other, own = (scipy.special.log_softmax(x.astype(np.float64), -1) for x in scores)
    same = batch.segments[:, 1:] == batch.segments[:, :-1]
    weights = np.where(same, batch.loss_weight[:, 1:], 0)
    kl = np.sum(np.exp(other) * (other - own), axis=-1)[:, :-1]
    said = lambda logs: -np.take_along_axis(logs[:, :-1], batch.tokens[:, 1:, None], -1)[..., 0]
    due = {"kl": kl, "model_loss": said(own), "base_loss": said(other), "loss": said(whole)}
    for name, x in due.items():
        mean = np.sum(x * weights) / weights.sum()
        assert found.metrics.get(name, found.loss) == pytest.approx(mean, rel=1e-5), name
    assert kl.mean() > 0.1
    assert found.targets == pytest.approx(2 * weights.sum())


def test_figures_in_parts_and_on_eight_devices_are_those_at_once(batch, monkeypatch):
    with models.one_device():
        found, _ = measured(batch)
        monkeypatch.setattr(drift, "POSITIONS", 64)  # three parts
        parts, _ = measured(batch)
    with models.split_as("fsdp8"):
        split, _ = measured(batch)
    for other in (parts, split):
        assert other.metrics == pytest.approx(found.metrics, rel=1e-5)
