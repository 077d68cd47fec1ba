"""Pictures hold the data they were given, in units, with every label inside the paper."""

import numpy as np
import pytest

pytest.importorskip("matplotlib", reason="the extra demo draws")

from matplotlib import figure as figures
from matplotlib import image

from launch.charts.figures import draw_curves, draw_spectrogram, running_mean
from melllm_jax.errors import Mistake


@pytest.fixture
def drawn(monkeypatch):
    """The figures that are saved, to look into after."""
    seen = []
    save = figures.Figure.savefig
    monkeypatch.setattr(
        figures.Figure, "savefig", lambda self, *a, **k: (seen.append(self), save(self, *a, **k))
    )
    return seen


def margins(path):
    """Whether the outermost pixels on each side are bare paper: nothing is cut off."""
    pixels = image.imread(path)[..., :3]
    return [(edge == 1).all() for edge in (pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1])]


def test_curve_of_loss_and_wer_shows_both_with_units(tmp_path, drawn):
    loss = {step: 3 / step for step in range(1, 101)}
    draw_curves(loss, {50: 0.5, 100: 0.125}, tmp_path / "curve.png", "a run")
    upper, lower = drawn[0].axes
    np.testing.assert_allclose(upper.lines[0].get_ydata(), list(loss.values()))
    np.testing.assert_allclose(lower.lines[0].get_xydata(), [(50, 50), (100, 12.5)])
    assert lower.get_ylabel() == "word error rate (%)" and lower.get_xlabel() == "step"
    assert lower.texts[0].get_text() == "12.5 %"
    assert all(margins(tmp_path / "curve.png"))


def test_curve_of_unsorted_steps_is_drawn_in_order_with_the_last_value(tmp_path, drawn):
    draw_curves({3: 1.0, 1: 2.0}, {}, tmp_path / "curve.png")
    assert list(drawn[0].axes[0].lines[0].get_xdata()) == [1, 3]
    assert drawn[0].axes[0].texts[0].get_text() == "1"


def test_curve_running_mean_looks_back_only():
    np.testing.assert_allclose(running_mean(np.array([4.0, 2.0, 0.0]), 2), [4, 3, 1])


def test_curve_without_any_step_is_refused(tmp_path):
    with pytest.raises(Mistake, match="nothing to draw"):
        draw_curves({}, {}, tmp_path / "curve.png")


def test_spectrogram_has_seconds_low_bands_below_and_both_texts(tmp_path, drawn):
    mel = np.random.default_rng(0).normal(size=(150, 80))
    draw_spectrogram(mel, "it cost $5 or $6", "it cost", tmp_path / "mel.png")
    axis = drawn[0].axes[0]
    np.testing.assert_array_equal(axis.images[0].get_array(), mel.T)
    assert axis.images[0].get_extent() == [0, 1.5, 0, 80] and axis.images[0].origin == "lower"
    assert axis.get_xlabel() == "time (s)"
    captions = "said  it cost $5 or $6\nheard it cost"
    (title,) = axis.findobj(lambda artist: getattr(artist, "get_text", str)() == captions)
    assert not title.get_parse_math()  # between two dollars stands no formula
    assert all(margins(tmp_path / "mel.png"))


def test_spectrogram_of_long_texts_wraps_them_inside_the_paper(tmp_path, drawn):
    draw_spectrogram(np.eye(80), "twelve tigers " * 20, "", tmp_path / "mel.png")
    rows = drawn[0].axes[0].get_title(loc="left").splitlines()
    assert len(rows) == 5 and max(map(len, rows)) <= 84
    assert rows[-1] == "heard (nothing)"
    assert all(margins(tmp_path / "mel.png"))
