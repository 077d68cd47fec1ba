import dataclasses

import numpy as np
import pytest

from data_pipelines.audio.spec_augment import (
    RandomStreams,
    apply_masks,
    augment_mel,
    shift_frames,
    warp_time,
)
from melllm_jax.config.data import Augment, Data

MEL = np.random.default_rng(0).normal(size=(100, 20)).astype(np.float32)
NO_MASKS = {"time_masks": 0, "band_masks": 0}
ALL = Augment(warp=1.0, warp_width=10, mask=1.0, time_width=10, band_width=5, shift=7)


def draws(seed=0):
    return RandomStreams(np.random.default_rng(seed))


def hidden(seed=0, mel=MEL, **fields):
    """`mel` with masks of one kind only."""
    return apply_masks(mel, Augment(**NO_MASKS | fields), draws(seed))


def runs(flags):
    """Lengths of the stretches of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], flags, [False]]).astype(int)))
    return (edges[1::2] - edges[::2]).tolist()


def test_mel_without_augmentation_is_the_mel_itself():
    assert augment_mel(MEL, Augment(), draws()) is MEL
    assert Data(t=1, b=1).augment == Augment()


def test_published_defaults_are_those_of_policy_ld():
    """Park et al. 2019, table 1: W, F, m_F, T, p, m_T."""
    cfg = Augment()
    assert (cfg.warp_width, cfg.band_width, cfg.band_masks) == (80, 27, 2)
    assert (cfg.time_width, cfg.time_share, cfg.time_masks) == (100, 1.0, 2)


def test_one_time_mask_covers_one_stretch_of_whole_frames():
    for seed in range(50):
        out = hidden(seed, time_masks=1, time_width=10)
        changed = (out != MEL).any(axis=1)
        assert np.allclose(out[changed], MEL.mean(axis=0))
        assert len(runs(changed)) <= 1
        assert changed.sum() <= 10


def test_one_band_mask_covers_one_stretch_of_whole_bands():
    for seed in range(50):
        out = hidden(seed, band_masks=1, band_width=6)
        changed = (out != MEL).any(axis=0)
        assert np.allclose(out[:, changed], MEL.mean(axis=0)[changed])
        assert len(runs(changed)) <= 1
        assert changed.sum() <= 6


def test_mask_widths_and_places_cover_their_whole_range():
    changed = np.array(
        [(hidden(seed, time_masks=1, time_width=10) != MEL).any(axis=1) for seed in range(1500)]
    )
    assert set(changed.sum(axis=1).tolist()) == set(range(11))  # 0 and the widest are drawn too
    assert changed.any(axis=0).all()  # the first frame and the last one also


@pytest.mark.parametrize(("share", "most"), [(0.2, 3), (1.0, 15)])
def test_time_mask_covers_at_most_its_share_of_a_short_word(share, most):
    short = MEL[:15]
    found = [hidden(seed, short, time_masks=1, time_share=share) for seed in range(200)]
    assert max((out != short).any(axis=1).sum() for out in found) == most


def test_masks_of_one_frame_that_are_wide_keep_its_shape():
    one = hidden(3, MEL[:1], time_masks=2, time_width=40, band_masks=2, band_width=999)
    assert one.shape == (1, 20)


def test_warp_leaves_the_ends_and_moves_one_frame_to_its_target():
    """Of a mel that counts its own frames, the warped one says where each came from."""
    count = np.arange(100.0, dtype=np.float32)[:, None] * np.ones(4, np.float32)
    moved = set()
    for seed in range(300):
        out = warp_time(count, Augment(warp_width=20), np.random.default_rng(seed))
        came = out[:, 0]
        assert (came[0], came[-1]) == (0.0, 99.0)
        assert (out == came[:, None]).all()
        slopes = np.diff(came)
        assert (slopes > 0).all()
        bends = np.flatnonzero(np.abs(np.diff(slopes)) > 1e-3)
        target = int(bends[0]) + 1 if len(bends) else None
        assert len(bends) == (0 if target is None else 1)
        if target is not None:
            source = came[target]
            assert source == pytest.approx(round(source), abs=1e-4)
            assert 21 <= source <= 78
            moved.add(target - round(source))
    assert moved == set(range(-20, 21)) - {0}


def test_warp_interpolates_between_neighbouring_frames():
    cfg, seed = Augment(warp_width=20), 2
    out = warp_time(MEL, cfg, np.random.default_rng(seed))
    count = np.arange(100.0)[:, None].astype(np.float32)
    came = warp_time(count, cfg, np.random.default_rng(seed))[:, 0]
    wanted = np.stack([np.interp(came, np.arange(100), band) for band in MEL.T], axis=1)
    np.testing.assert_allclose(out, wanted, atol=1e-4)  # `came` is float32: 1e-5 of a frame
    assert out.dtype == np.float32
    assert np.abs(out - MEL).max() > 0.5


def test_warp_of_what_is_too_short_gives_the_mel_itself():
    cfg = Augment(warp_width=20)
    assert warp_time(MEL[:42], cfg, np.random.default_rng(0)) is not MEL[:42]
    short = MEL[:42]
    assert warp_time(short, cfg, np.random.default_rng(0)) is short
    assert warp_time(MEL[:43], cfg, np.random.default_rng(0)).shape == (43, 20)


def test_shifted_puts_up_to_that_many_copies_of_the_first_frame_before():
    lengths = set()
    for seed in range(100):
        out = shift_frames(MEL, Augment(shift=7), np.random.default_rng(seed))
        count = len(out) - len(MEL)
        np.testing.assert_array_equal(out[:count], np.repeat(MEL[:1], count, axis=0))
        np.testing.assert_array_equal(out[count:], MEL)
        lengths.add(count)
    assert lengths == set(range(8))


@pytest.mark.parametrize("cfg", [ALL, dataclasses.replace(ALL, warp=0.0)])
def test_augmented_is_a_function_of_the_generator_and_leaves_its_argument(cfg):
    before = MEL.copy()
    assert np.array_equal(augment_mel(MEL, cfg, draws(1)), augment_mel(MEL, cfg, draws(1)))
    assert not np.array_equal(augment_mel(MEL, cfg, draws(1)), augment_mel(MEL, cfg, draws(2)))
    assert np.array_equal(MEL, before)


@pytest.mark.parametrize("name", ["warp", "mask"])
def test_share_of_a_half_changes_half_of_the_examples(name):
    cfg = Augment(**{name: 0.5}, warp_width=10)
    changed = sum(augment_mel(MEL, cfg, draws(seed)) is not MEL for seed in range(400))
    assert changed == pytest.approx(200, abs=40)  # four standard deviations


@pytest.mark.parametrize("off", [{"time_masks": 0}, {"shift": 0}, {"band_masks": 0}])
def test_draws_of_one_augmentation_do_not_depend_on_another(off):
    """With one switched off the others change the same cells, to the same values."""
    cfg = dataclasses.replace(ALL, warp=0.0)
    left = dataclasses.replace(cfg, **off)
    for seed in range(20):
        both, one = augment_mel(MEL, cfg, draws(seed)), augment_mel(MEL, left, draws(seed))
        if "shift" in off:
            assert np.array_equal(both[len(both) - 100 :], one)
            continue
        assert both.shape == one.shape
        others = (one[-100:] != MEL) & (both[-100:] == MEL)
        assert not others.any()  # what the other masks hide is hidden in both


def test_draws_of_a_name_follow_the_generator_and_the_name():
    first = [draws(0)[name].integers(2**40) for name in ("speed", "noise", "speed")]
    assert first[0] == first[2] != first[1]
    assert draws(1)["speed"].integers(2**40) != first[0]
    assert draws(0).with_probability("speed", 0.0) is None
    assert draws(0).with_probability("speed", 1.0) is not None
