import numpy as np
import pytest

from data_pipelines.examples.interleave import (
    Clip,
    Words,
    asr_columns,
    asr_prompt_columns,
    interleave,
)
from data_pipelines.text.prompt import Prompt
from melllm_jax.errors import Mistake

PROMPT = Prompt(before=(11,), after=(12, 13), end=14, audio=99)
DTYPES = {
    "tokens": np.int32,
    "patches": np.float32,
    "frames": np.int32,
    "clips": np.int32,
    "loss_weight": np.float32,
}


def mel(*rows):
    return np.array(rows, np.float32)


def columns(example):
    """The example as lists, so that it compares and prints as it is written here."""
    return {name: array.tolist() for name, array in example.items()}


def test_asr_example_whole_patches_reads_as_written():
    four = mel([1, 2], [3, 4], [5, 6], [7, 8])
    zero = [0, 0, 0, 0]
    # fmt: off
    assert columns(asr_columns(four, [21, 22], PROMPT, r=2)) == {
        #               user  clip ------------------------  after       words       end
        "tokens":      [11,   99,           99,              12,   13,   21,   22,   14],
        "clips":       [0,    1,            1,               0,    0,    0,    0,    0],
        "frames":      [0,    2,            2,               0,    0,    0,    0,    0],
        "loss_weight": [0,    0,            0,               0,    0,    1,    1,    1],
        "patches":     [zero, [1, 2, 3, 4], [5, 6, 7, 8],    zero, zero, zero, zero, zero],
    }
    # fmt: on


def test_asr_prompt_example_partial_last_patch_is_filled_with_zeros():
    three = mel([1, 2], [3, 4], [5, 6])
    zero = [0, 0, 0, 0]
    # fmt: off
    assert columns(asr_prompt_columns(three, PROMPT, r=2)) == {
        #               user  clip ------------------------  after
        "tokens":      [11,   99,           99,              12,   13],
        "clips":       [0,    1,            1,               0,    0],
        "frames":      [0,    2,            1,               0,    0],
        "loss_weight": [0,    0,            0,               0,    0],
        "patches":     [zero, [1, 2, 3, 4], [5, 6, 0, 0],    zero, zero],
    }
    # fmt: on


def test_interleave_two_adjacent_clips_share_no_patch_and_have_two_numbers():
    parts = [Clip(mel([1], [2], [3])), Clip(mel([4])), Words((7,), 0.5), Clip(mel([5], [6]))]
    # fmt: off
    assert columns(interleave(parts, r=2, audio=99)) == {
        #               clip 1 --------  clip 2   text    clip 3
        "tokens":      [99,     99,      99,      7,      99],
        "clips":       [1,      1,       2,       0,      3],
        "frames":      [2,      1,       1,       0,      2],
        "loss_weight": [0,      0,       0,       0.5,    0],
        "patches":     [[1, 2], [3, 0],  [4, 0],  [0, 0], [5, 6]],
    }
    # fmt: on


@pytest.mark.parametrize("count", [1, 7, 8, 9, 80])
def test_interleave_real_frames_of_the_patches_are_the_clip_again(count):
    clip = np.random.default_rng(count).normal(size=(count, 5)).astype(np.float32)
    example = interleave([Words((1,), 0.0), Clip(clip), Words((2, 3), 1.0)], r=8, audio=9)
    rows = zip(example["patches"], example["frames"], strict=True)
    back = np.concatenate([row.reshape(8, 5)[:real] for row, real in rows])
    np.testing.assert_array_equal(back, clip)
    assert len(example["tokens"]) == 3 + -(-count // 8)


def test_interleave_every_column_has_its_dtype_and_one_length():
    for example in (
        asr_columns(np.ones((9, 4), np.float32), [5], PROMPT, r=4),
        asr_columns(np.ones((9, 4), np.float32), [5], Prompt((), (), 6, 7), r=4),
    ):
        assert {name: array.dtype for name, array in example.items()} == DTYPES
        assert len({len(array) for array in example.values()}) == 1


def test_interleave_clip_without_frames_is_a_mistake():
    with pytest.raises(Mistake, match="clip 2 has 0 frames"):
        interleave([Clip(mel([1])), Clip(np.zeros((0, 1), np.float32))], r=2, audio=99)


def test_interleave_no_clip_at_all_is_a_mistake():
    with pytest.raises(Mistake, match="parts=1: one at least must be a clip"):
        interleave([Words((1,), 1.0)], r=2, audio=99)


def test_interleave_text_alone_has_empty_patches_of_the_bands_that_are_given():
    example = interleave([Words((1, 2), 0.0), Words((3,), 1.0)], r=2, m=4, audio=99)
    assert example["patches"].tolist() == [[0.0] * 8] * 3
    assert example["tokens"].tolist() == [1, 2, 3]
    assert example["loss_weight"].tolist() == [0, 0, 1]
