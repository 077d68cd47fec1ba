"""Charts of a law show every run once, what was fitted around them, and stand as files alone."""

import re
import xml.etree.ElementTree as ElementTree

import pytest

from launch.charts import line_chart
from launch.charts.html import STYLE
from launch.scaling import law_charts
from launch.scaling.law_fit import fit_law
from launch.terminal.number_format import format_count
from tests.support.laws import HOFFMANN, grid

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def fit():
    return fit_law(grid(HOFFMANN, 0.003, sizes=(1e6, 1.6e7, 5), budgets=(2e7, 3.2e8, 5)), 0.2, 40)


def parts(svg, tag, kind):
    """Elements of a kind in the drawing, whose key behind it is dropped."""
    root = ElementTree.fromstring(svg[: svg.index("</svg>") + 6])
    return [one for one in root.iter(tag) if one.get("class", "").split()[:1] == [kind]]


def test_losses_have_a_dot_for_each_run_and_a_curve_for_each_size_and_the_best(fit):
    drawn = law_charts.losses(fit)
    dots = parts(drawn, "circle", "dot")
    assert len(dots) == 25 and len(parts(drawn, "polyline", "curve")) == 5 + 1
    assert {dot.find("title").text.split(":")[0] for dot in dots} == {p.name for p in fit.points}
    # The more a run costs, the further right; of a size, the longer the lower.
    places = {dot.find("title").text.split(":")[0]: dot for dot in dots}
    smallest = [places[p.name] for p in sorted(fit.points, key=lambda p: (p.params, p.flops))[:5]]
    for axis, name in (("cx", "right"), ("cy", "down")):
        values = [float(dot.get(axis)) for dot in smallest]
        assert values == sorted(values), name


def test_isoflop_has_a_parabola_and_a_ring_where_there_is_a_minimum(fit):
    drawn = law_charts.isoflop(fit)
    groups = fit.isoflop.groups
    assert len(parts(drawn, "polyline", "curve")) == len(groups) >= 3
    rings = sum(group.best is not None for group in groups)
    assert len(parts(drawn, "circle", "ring")) == rings >= 3
    assert len(parts(drawn, "circle", "dot")) == sum(len(group.members) for group in groups)


def test_optimal_has_bands_for_both_and_a_line_an_approach(fit):
    drawn = law_charts.optimum(fit)
    assert len(parts(drawn, "polygon", "area")) == 2
    assert bool(fit.envelope.optimal) is bool(fit.isoflop.optimal) is True
    assert len(parts(drawn, "polyline", "curve")) == 2 * 3
    told = [ring.find("title").text for ring in parts(drawn, "circle", "ring")]
    for group in (group for group in fit.isoflop.groups if group.best is not None):
        tokens = group.flops / (fit.per * group.best)
        assert any(f" N = {format_count(group.best)} at" in word for word in told)
        assert any(f" D = {format_count(tokens)} at" in word for word in told)
    assert f"best N ∝ C^{fit.constants['a'].value:.2f}" in drawn


def test_residuals_have_a_ring_for_each_run_held_out(fit):
    drawn = law_charts.residuals(fit)
    assert len(parts(drawn, "circle", "dot")) == 25
    rings = parts(drawn, "circle", "ring")
    assert len(rings) == 5
    row = fit.held_out.rows[0]
    assert f"{100 * (row.loss / row.predicted - 1):+.2f} %" in rings[0].find("title").text


def test_isoflop_of_runs_without_equal_budgets_is_empty():
    runs = grid(HOFFMANN, 0.003, sizes=(1e6, 1e9, 3), budgets=(2e7, 3e8, 3))
    fit = fit_law(runs, 0, 40)
    assert not fit.isoflop.groups and law_charts.isoflop(fit) == ""
    assert set(law_charts.files(fit)) == {"losses.svg", "optimal.svg", "residuals.svg"}


def test_files_are_svg_with_every_colour_they_use_and_both_lights(fit):
    for name, text in law_charts.files(fit).items():
        root = ElementTree.fromstring(text)
        assert root.tag == f"{SVG}svg", name
        (style,) = (one.text for one in root.iter(f"{SVG}style"))
        used, said = (set(re.findall(form, text)) for form in (r"var\((--\w+)", r"(--\w+):"))
        assert used <= said and "prefers-color-scheme: dark" in style
        assert style.count("{") == style.count("}")
        *_, width, height = map(float, root.get("viewBox").split())
        for one in root.iter(f"{SVG}text"):
            assert 0 <= float(one.get("x")) <= width and 0 <= float(one.get("y")) <= height


def test_charts_use_no_class_that_the_page_does_not_style(fit):
    for draw in (law_charts.losses, law_charts.isoflop, law_charts.optimum, law_charts.residuals):
        classes = {
            word for found in re.findall(r'class="([^"]+)"', draw(fit)) for word in found.split()
        }
        assert all(f".{name}" in STYLE + line_chart.STYLE for name in classes)


def test_key_of_many_sizes_names_some_and_the_last():
    fit = fit_law(grid(HOFFMANN, 0.003, sizes=(1e6, 1e9, 25), budgets=(2e7, 3e8, 3)), 0, 40)
    drawn = law_charts.residuals(fit)
    names = re.findall(r"<b>([^<]+)</b>", drawn)
    assert names[0] == "1 M" and names[-1] == "1 B" and len(names) <= law_charts.NAMED + 1
    assert len(parts(drawn, "circle", "dot")) == 75
