"""Charts are well-formed, show every number once, and lie inside their frame."""

import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from launch.charts import bar_chart
from launch.charts.distribution import Distribution, distribution

NUMBERS = Distribution(
    of=11, mean=1, low=0, median=1, p95=3, high=9, start=0, width=0.5, counts=(4, 0, 6), beyond=1
)


def drawn(svg):
    """The elements of a chart by kind, and its texts."""
    root = ElementTree.fromstring(svg)
    parts = list(root.iter())
    texts = [part.text for part in parts if part.tag == "text"]
    return {
        tag: [part for part in parts if part.tag == tag] for tag in ("rect", "polygon", "polyline")
    }, texts


def test_histogram_has_a_bar_for_each_count_as_high_as_it_is():
    parts, texts = drawn(bar_chart.histogram(NUMBERS, "seconds"))
    heights = [float(bar.get("height")) for bar in parts["rect"]]
    assert len(heights) == 4
    whole = bar_chart.TALL - bar_chart.TOP - bar_chart.BOTTOM  # 6 utterances, where the axis ends
    assert heights == pytest.approx([whole * 4 / 6, 0, whole, whole / 6], abs=0.1)
    told = [bar.find("title").text for bar in parts["rect"]]
    assert told == ["0 to 0.5 seconds: 4", "0.5 to 1 seconds: 0", "1 to 1.5 seconds: 6"] + [
        "over 1.5 seconds: 1"
    ]
    assert {"seconds", "more", "0", "1"} <= set(texts)


def test_histogram_stands_on_its_axis_inside_the_frame():
    numbers = distribution(np.random.default_rng(0).normal(-30, 5, 1000))
    parts, texts = drawn(bar_chart.histogram(numbers, "<dB>"))
    for bar in parts["rect"]:
        x, y, width, height = (float(bar.get(name)) for name in ("x", "y", "width", "height"))
        assert y + height == pytest.approx(bar_chart.TALL - bar_chart.BOTTOM, abs=0.2)
        assert (
            x >= bar_chart.LEFT - 0.1 and x + width <= bar_chart.WIDE and y >= bar_chart.TOP - 0.1
        )
    assert "−30" in texts and "<dB>" in texts


def test_histogram_of_one_utterance_counts_in_whole_numbers():
    _, texts = drawn(bar_chart.histogram(distribution(np.array([2.0])), "s"))
    assert "0.5" not in texts[:2] and "1" in texts


def test_bands_span_a_deviation_to_either_side_of_the_mean():
    parts, texts = drawn(bar_chart.bands([0.0, 1.0], [1.0, 3.0], "mel band"))
    (around,) = parts["polygon"]
    points = [tuple(map(float, point.split(","))) for point in around.get("points").split()]
    assert len(points) == 4
    (_, high0), (_, high1), (_, low1), (_, low0) = points
    assert (low0 - high0) / (low1 - high1) == pytest.approx(1 / 3, abs=0.01)
    (line,) = parts["polyline"]
    (_, mean0), (_, mean1) = (map(float, point.split(",")) for point in line.get("points").split())
    assert (mean0, mean1) == pytest.approx(((low0 + high0) / 2, (low1 + high1) / 2), abs=0.2)
    assert "mel band" in texts
