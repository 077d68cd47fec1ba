"""Charts with two axes are well-formed, put points where they belong, and write round figures."""

import math
import re
import xml.etree.ElementTree as ElementTree

import pytest

from launch.charts import line_chart
from launch.charts.line_chart import Axis, Mark, Series

LINEAR = Axis("seconds", "{:g}".format, log=False)
LOG = Axis("FLOPs", "{:g}".format)


def drawn(groups, x=LOG, y=LINEAR):
    return ElementTree.fromstring(line_chart.drawing(groups, x, y, "a chart"))


def group(*points, kind="dot", name="g"):
    return Series(name, "red", (Mark(points, "told", kind),))


def figures(root, anchor, foot):
    """Figures at an axis and where they stand, from the texts of a drawing."""
    texts = [text for text in root.iter("text") if text.get("text-anchor") == anchor]
    place = "x" if foot else "y"
    at_foot = str(line_chart.TALL - line_chart.BOTTOM + 18) + ".0"
    texts = [text for text in texts if not foot or text.get("y") == at_foot]
    return [(float(text.text), float(text.get(place))) for text in texts]


def test_points_lie_between_the_figures_that_they_are_between():
    root = drawn([group((1e9, 1.0), (1e12, 4.0), (1e15, 2.5))])
    dots = [(float(dot.get("cx")), float(dot.get("cy"))) for dot in root.iter("circle")]
    across, up = figures(root, "middle", True), figures(root, "end", False)
    at = dict(across)
    assert dots[1][0] == pytest.approx((dots[0][0] + dots[2][0]) / 2, abs=0.1)  # equal ratios
    assert at[1e12] == pytest.approx(dots[1][0], abs=0.1)
    at = {value: place - 4 for value, place in up}
    assert at[4.0] == pytest.approx(dots[1][1], abs=0.1) and at[1.0] > at[4.0]
    assert at[2.5] == pytest.approx(dots[2][1], abs=0.1)


def test_everything_drawn_lies_inside_the_frame():
    points = [(10.0**i, math.sin(i)) for i in range(30)]
    root = drawn([group(*points), group(*points, kind="curve"), group(*points[:9], kind="area")])
    places = [(float(dot.get("cx")), float(dot.get("cy"))) for dot in root.iter("circle")]
    for shape in (*root.iter("polyline"), *root.iter("polygon")):
        places += [tuple(map(float, place.split(","))) for place in shape.get("points").split()]
    assert len(places) == 69
    for x, y in places:
        assert (
            line_chart.LEFT < x < line_chart.WIDE - line_chart.RIGHT
            and line_chart.TOP < y < line_chart.TALL - line_chart.BOTTOM
        )


def test_single_point_has_an_axis_around_it():
    (dot,) = drawn([group((5e6, 0.0))]).iter("circle")
    middle = (line_chart.LEFT + line_chart.WIDE - line_chart.RIGHT) / 2
    assert float(dot.get("cx")) == pytest.approx(middle, abs=0.1)


def test_axis_from_zero_has_zero_at_its_foot():
    root = drawn([group((1, 0.9), (2, 1.0))], y=Axis("share", "{:g}".format, False, zero=True))
    assert dict(figures(root, "end", False))[0.0] == pytest.approx(
        line_chart.TALL - line_chart.BOTTOM + 4
    )


def test_axis_with_figures_of_its_own_writes_these():
    root = drawn(
        [group((1, 0.9), (16, 1.0))], x=Axis("r", "{:g}".format, tick_values=(1.0, 4.0, 16.0))
    )
    assert [value for value, _ in figures(root, "middle", True)] == [1, 4, 16]


def test_figures_that_would_read_the_same_have_more_digits():
    two = "{:.2f}".format
    close = drawn([group((1, 2.101), (2, 2.104))], y=Axis("loss", two, log=False))
    assert [value for value, _ in figures(close, "end", False)][:3] == [2.101, 2.1015, 2.102]
    apart = line_chart.drawing([group((1, 2.1), (2, 2.4))], LOG, Axis("loss", two), "")
    assert ">2.20<" in apart


def test_text_of_a_chart_is_inert():
    evil = '</title><script>alert("1")</script>\u202e'
    drawing = line_chart.chart(
        [Series(evil, "red", (Mark(((1, 2),), evil, "dot"),))],
        Axis(evil, lambda value: evil),
        Axis(evil, lambda value: evil),
        evil,
    )
    assert "<script" not in drawing and "\u202e" not in drawing
    assert "\\u202e" in drawing


def test_shades_differ_and_are_those_of_an_order():
    hues = [float(re.search(r"(\d+)\)$", line_chart.series_colour(i, 14))[1]) for i in range(14)]
    assert hues == sorted(hues, reverse=True) and len(set(hues)) == 14
    assert line_chart.series_colour(0, 1) == line_chart.series_colour(0, 5)


def test_key_names_the_groups_and_of_very_many_the_ends_and_some_between():
    few = line_chart.legend([group(name="a"), group(name=""), group(name="b")])
    assert re.findall(r"<b>(\w*)</b>", few) == ["a", "b"]
    many = re.findall(r"<b>(\w+)</b>", line_chart.legend([group(name=f"g{i}") for i in range(100)]))
    assert len(many) == line_chart.LEGEND_ENTRIES and (many[0], many[-1]) == ("g0", "g99")
    assert line_chart.legend([group(name="")]) == ""


def test_figures_below_a_chart_do_not_run_into_each_other_nor_out_of_it():
    long = Axis("FLOPs", "{:.5g} FLOPs".format)
    root = drawn([group((2.0, 1.0), (9.0, 2.0))], x=long)
    at_foot = [text for text in root.iter("text") if text.text.endswith(" FLOPs")]
    spans = [
        (float(text.get("x")) - 3.5 * len(text.text), float(text.get("x")) + 3.5 * len(text.text))
        for text in at_foot
    ]
    assert 2 <= len(spans) < 7 and spans[-1][1] <= line_chart.WIDE
    assert all(before[1] < after[0] for before, after in zip(spans, spans[1:], strict=False))
    assert len([line for line in root.iter("line") if line.get("class") == "tick"]) == len(spans)
