import numpy as np
import pytest

from data_pipelines.augment import shifted, spec_augment
from melllm_jax.config import Data

MEL = np.random.default_rng(0).normal(size=(100, 20)).astype(np.float32)


def masked(seed=0, mel=MEL, **fields):
    return spec_augment(mel, Data(t=1, b=1, **fields), np.random.default_rng(seed))


def runs(flags):
    """Lengths of the stretches of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], flags, [False]]).astype(int)))
    return (edges[1::2] - edges[::2]).tolist()


def test_spec_augment_without_masks_gives_the_mel_itself():
    assert masked() is MEL


def test_spec_augment_of_one_time_mask_covers_one_stretch_of_whole_frames():
    for seed in range(50):
        out = masked(seed, time_masks=1, time_width=10)
        changed = (out != MEL).any(axis=1)
        assert np.allclose(out[changed], MEL.mean(axis=0))
        assert len(runs(changed)) <= 1
        assert changed.sum() <= 10


def test_spec_augment_of_one_band_mask_covers_one_stretch_of_whole_bands():
    for seed in range(50):
        out = masked(seed, band_masks=1, band_width=6)
        changed = (out != MEL).any(axis=0)
        assert np.allclose(out[:, changed], MEL.mean(axis=0)[changed])
        assert len(runs(changed)) <= 1
        assert changed.sum() <= 6


def test_spec_augment_widths_and_places_cover_their_whole_range():
    changed = np.array(
        [(masked(seed, time_masks=1, time_width=10) != MEL).any(axis=1) for seed in range(600)]
    )
    assert set(changed.sum(axis=1).tolist()) == set(range(11))  # 0 and the widest are drawn too
    assert changed.any(axis=0).all()  # the first frame and the last one also


def test_spec_augment_of_a_short_word_leaves_four_fifths_of_it():
    short = MEL[:15]
    assert max((masked(s, short, time_masks=1) != short).any(1).sum() for s in range(80)) == 3


def test_spec_augment_of_one_frame_and_wide_masks_keeps_its_shape():
    one = masked(3, MEL[:1], time_masks=2, time_width=40, band_masks=2, band_width=999)
    assert one.shape == (1, 20)


@pytest.mark.parametrize("fields", [{"time_masks": 2}, {"band_masks": 2}])
def test_spec_augment_is_a_function_of_the_generator(fields):
    before = MEL.copy()
    assert np.array_equal(masked(1, **fields), masked(1, **fields))
    assert not np.array_equal(masked(1, **fields), masked(2, **fields))
    assert np.array_equal(MEL, before)


def test_shifted_puts_up_to_that_many_copies_of_the_first_frame_before():
    cfg = Data(t=1, b=1, shift=7)
    lengths = set()
    for seed in range(100):
        out = shifted(MEL, cfg, np.random.default_rng(seed))
        count = len(out) - len(MEL)
        np.testing.assert_array_equal(out[:count], np.repeat(MEL[:1], count, axis=0))
        np.testing.assert_array_equal(out[count:], MEL)
        lengths.add(count)
    assert lengths == set(range(8))
    assert shifted(MEL, Data(t=1, b=1), np.random.default_rng(0)) is MEL
