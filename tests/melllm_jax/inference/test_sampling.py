import jax
import numpy as np
import pytest

from melllm_jax import sharding
from melllm_jax.inference.sampling import (
    MAX_PERIOD,
    DecodingOptions,
    RepetitionGuard,
    sample_tokens,
)
from tests.support import models


def first_loop(tokens):
    """Number of tokens after which the guard says that its row loops; None if it never does."""
    with models.one_device():
        guard = RepetitionGuard.start(1)
        for count, token in enumerate(tokens, start=1):
            guard, loops = guard.update(
                jax.device_put(np.array([token], np.int32), sharding.a("b"))
            )
            if np.asarray(loops)[0]:
                return count
    return None


@pytest.mark.parametrize(("period", "tokens"), [(1, 12), (2, 12), (3, 12), (4, 16), (8, 32)])
def test_guard_stops_a_loop_said_four_times_over_twelve_tokens_at_least(period, tokens):
    assert first_loop([7, 9] + [1 + i % period for i in range(60)]) == 2 + tokens


def test_guard_lets_texts_pass_that_do_not_loop():
    assert first_loop(range(40)) is None
    assert first_loop([i % (MAX_PERIOD + 1) for i in range(60)]) is None
    assert first_loop(([1, 2, 3] * 3 + [4]) * 4) is None


@pytest.mark.parametrize(("share", "nucleus"), [(0.4, {1}), (0.6, {1, 0}), (0.9, {0, 1, 2})])
def test_nucleus_is_the_fewest_tokens_that_make_up_the_share(share, nucleus):
    """The one with which the share is reached is among them: Holtzman et al. 2019, 1904.09751."""
    scores = np.tile(np.log(np.array([0.3, 0.5, 0.15, 0.05], np.float32)), (128, 1))
    with models.one_device():
        placed = jax.device_put(scores, sharding.a("b v"))
        drawn = sample_tokens(placed, DecodingOptions(1.0, share), jax.random.key(0))
    assert set(np.asarray(drawn).tolist()) == nucleus
