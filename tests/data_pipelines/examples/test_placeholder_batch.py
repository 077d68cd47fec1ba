import numpy as np
import pytest

from data_pipelines.examples.interleave import Clip, Words, interleave
from data_pipelines.examples.placeholder_batch import fill_placeholders
from melllm_jax.errors import Mistake

R, M, AUDIO = 2, 1, 99


def mel(*frames):
    """A clip of one band."""
    return np.array(frames, np.float32)[:, None]


def batch(*rows, clips):
    return fill_placeholders(np.array(rows), clips, r=R, m=M, audio=AUDIO)


def test_placed_text_clip_text_equals_the_columns_that_training_reads():
    clip = np.random.default_rng(0).normal(size=(7, 3)).astype(np.float32)
    parts = [Words((11, 12), 0.0), Clip(clip), Words((13,), 0.0)]
    columns = interleave(parts, r=R, audio=AUDIO)
    found = fill_placeholders(columns["tokens"][None], [clip], r=R, m=3, audio=AUDIO)
    for name, column in columns.items():
        assert getattr(found, name).dtype == column.dtype
        np.testing.assert_array_equal(getattr(found, name)[0], column, err_msg=name)
    assert found.positions.tolist() == [[0, 1, 2, 3, 4, 5, 6]]
    assert found.segments.tolist() == [[1] * 7]
    assert found.sources.tolist() == [[0] * 7]
    assert all(x.dtype == (np.float32 if x.dtype.kind == "f" else np.int32) for x in found)


def test_placed_two_adjacent_clips_share_no_patch_and_have_two_numbers():
    found = batch([99, 99, 99, 7, 99], clips=[mel(1, 2, 3), mel(4), mel(5, 6)])
    # fmt: off
    #                                 clip 1 --------  clip 2   text    clip 3
    assert found.clips.tolist()   == [[1,     1,       2,       0,      3]]
    assert found.frames.tolist()  == [[2,     1,       1,       0,      2]]
    assert found.patches.tolist() == [[[1, 2], [3, 0], [4, 0],  [0, 0], [5, 6]]]
    # fmt: on


def test_placed_rows_are_numbered_apart_and_filled_in_order():
    found = batch([5, 99, 6], [7, 8, 9], [99, 99, 99], clips=[mel(1, 2), mel(3), mel(4, 5, 6)])
    # fmt: off
    assert found.tokens.tolist()    == [[5, 99, 6], [7, 8, 9], [99, 99, 99]]
    assert found.clips.tolist()     == [[0, 1, 0],  [0, 0, 0], [1, 2, 2]]
    assert found.frames.tolist()    == [[0, 2, 0],  [0, 0, 0], [1, 2, 1]]
    assert found.positions.tolist() == [[0, 1, 2]] * 3
    # fmt: on
    assert found.patches[2].tolist() == [[3, 0], [4, 5], [6, 0]]


def test_placed_without_clips_reads_the_placeholder_as_any_other_token():
    found = batch([99, 3], clips=[])
    assert found.tokens.tolist() == [[99, 3]]
    assert not found.clips.any()


@pytest.mark.parametrize(
    ("rows", "frames", "rule"),
    [
        ([[1, 99, 2]], [3], "clip 1 takes 2 positions in a row: the tokens have 1 placeholders"),
        ([[1, 2, 3]], [2], "clip 1 takes 1 positions in a row: the tokens have 0 placeholders"),
        ([[99, 1, 99]], [2, 3], "clip 2 takes 2 positions in a row: the tokens have 1 placehol"),
        ([[99, 1, 99]], [3], "clip 1 takes 2 positions in a row: .* or part them"),
        ([[99, 1], [1, 99]], [3], "clip 1 takes 2 positions in a row: .* or part them"),
        ([[1, 99, 99]], [2], r"the clips take 1 positions, the tokens have 2 placeholders \(id 99"),
    ],
    ids=["too few", "none", "too few for the second", "parted by text", "parted by rows", "many"],
)
def test_placed_clips_that_do_not_come_out_even_are_a_mistake(rows, frames, rule):
    with pytest.raises(Mistake, match=rule):
        batch(*rows, clips=[np.ones((count, M), np.float32) for count in frames])
