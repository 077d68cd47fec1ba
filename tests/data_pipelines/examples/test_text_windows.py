"""Windows of a text, written out: each token is a target once, told from what its window holds."""

import numpy as np
import pytest

from data_pipelines.examples.text_windows import Windows, window_batches
from melllm_jax.errors import Mistake


def cut(count, length, stride):
    return [(t.tolist(), w.tolist()) for t, w in Windows(length, stride).cut(range(count))]


def test_windows_overlap_and_each_token_but_the_first_is_a_target_once():
    assert cut(7, 4, 2) == [
        ([0, 1, 2, 3], [0, 1, 1, 1]),
        ([2, 3, 4, 5], [0, 0, 1, 1]),
        ([4, 5, 6], [0, 0, 1]),
    ]


def test_text_that_fits_is_one_window_and_one_token_is_none():
    assert cut(4, 4, 3) == [([0, 1, 2, 3], [0, 1, 1, 1])]
    assert cut(1, 4, 2) == []
    assert cut(0, 4, 2) == []


@pytest.mark.parametrize("count", range(2, 40))
def test_windows_end_with_the_text_and_leave_no_token_out(count):
    seen = [t for tokens, w in cut(count, 8, 3) for t, one in zip(tokens, w, strict=True) if one]
    assert seen == list(range(1, count))


def test_batches_hold_a_window_a_row_and_empty_rows_at_their_end():
    texts = [[5, 6, 7], [8, 9], [1], [2, 3]]
    (batch,) = window_batches(texts, Windows(4, 2), patch_width=3, multiple=2)
    assert batch.tokens.shape == (4, 128)
    assert batch.patches.shape == (4, 128, 3)
    np.testing.assert_array_equal(batch.tokens[:3, :4], [[5, 6, 7, 0], [8, 9, 0, 0], [2, 3, 0, 0]])
    np.testing.assert_array_equal(
        batch.segments[:3, :4], [[1, 1, 1, 0], [1, 1, 0, 0], [1, 1, 0, 0]]
    )
    np.testing.assert_array_equal(batch.loss_weight[:2, :3], [[0, 1, 1], [0, 1, 0]])
    assert batch.loss_weight.sum() == 4
    assert not batch.segments[3].any()
    np.testing.assert_array_equal(batch.positions[1, :3], [0, 1, 2])


def test_batches_hold_no_more_positions_than_fit_in_memory():
    found = list(window_batches([range(1000)], Windows(16, 8), patch_width=0))
    assert [len(batch.tokens) for batch in found] == [64, 64]
    assert sum(batch.loss_weight.sum() for batch in found) == 999


@pytest.mark.parametrize(
    ("length", "stride", "rule"),
    [(1, 1, "window=1: must be 2"), (4, 4, "stride=4: must lie in 1…3"), (4, 0, "stride=0")],
)
def test_windows_that_cannot_be_are_refused(length, stride, rule):
    with pytest.raises(Mistake, match=rule):
        Windows(length, stride)
