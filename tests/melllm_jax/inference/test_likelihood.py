import dataclasses

import jax
import numpy as np
import pytest

from melllm_jax import sharding
from melllm_jax.inference.likelihood import TargetScorer
from tests.support import models
from tests.support.models import Clip


@pytest.mark.usefixtures("mesh")
@pytest.mark.parametrize("tied", [True, False])
def test_nats_of_targets_are_those_of_all_scores(tied):
    """Within float32: the reference scores every position, and in one piece."""
    run = models.run(dataclasses.replace(models.MODEL, tied=tied))
    skeleton, values = models.made(run)
    model = skeleton.model(values)
    rows = [
        [models.segment(3, Clip(9), 4, seed=i), models.segment(5, seed=9 + i)] for i in range(4)
    ]
    batch = models.pack(rows, 16)
    weights = np.zeros_like(batch.loss_weight)
    weights[:, 6:8] = 1.0
    weights[1, 9] = 0.5
    weights[2] = 0.0  # a row without targets
    weights[3, 0] = 1.0  # nothing is before it
    batch = batch._replace(loss_weight=weights)
    found = TargetScorer(model)(batch)
    scores = jax.jit(lambda model, batch: model.logits(model(batch)))(
        model, sharding.shard_batch(batch)
    )
    nats = jax.nn.log_softmax(np.asarray(jax.device_get(scores)), axis=-1)
    expected = np.zeros_like(found)
    for row, column in zip(*np.nonzero(weights), strict=True):
        if column:
            expected[row, column] = nats[row, column - 1, batch.tokens[row, column]]
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert (expected != 0).sum() == 7
