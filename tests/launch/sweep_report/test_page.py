"""The page of a sweep: all that is known of it, in whatever state it is."""

import dataclasses
import html.parser
import json
import re
import subprocess
import sys

from etils import epath
import pytest

from launch.scaling import law_fit, points
from launch.sweep import ledger
from launch.sweep_report import cell_charts, cell_figures, law_section
from launch.sweep_report.loss_curves import read_curve, read_curves
from launch.sweep_report.page import write_report
from launch.terminal.number_format import format_constant, format_power
from melllm_jax.errors import Fault, Mistake
from tests.support import sweep_folders
from tests.support.buckets import bucket

EVIL = '<script>alert("1")</script></title><img src=x onerror=alert(2)>'
VOID = {"meta", "circle", "line", "polyline", "polygon", "br"}


class Page(html.parser.HTMLParser):
    """The parts of a page by their titles, its elements, and all text in it."""

    def __init__(self, path):
        super().__init__()
        self.path, self.bytes = path, path.read_bytes()
        self.elements, self.text, self.open = [], "", []
        self.cards, self.tables = {}, {}
        self.title = ""
        self.feed(self.bytes.decode())
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "section":
            self.title = ""
        if tag == "table":
            self.tables[self.title] = []
        if tag == "tr":
            self.tables[self.title].append([])
        if tag in ("td", "th"):
            self.tables[self.title][-1].append("")

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data
        if "h3" in self.open:
            self.title += data
            self.cards[self.title] = ""
        elif self.title and "section" in self.open:
            self.cards[self.title] += data
            if {"td", "th"} & set(self.open):
                self.tables[self.title][-1][-1] += data

    def rows(self, title):
        """The rows of a card's table, each by the names of its columns."""
        names, *rows = self.tables[title]
        return [dict(zip(names, row, strict=True)) for row in rows]


def paged(folder, cells, **more):
    """The page of a sweep of these cells."""
    sweep_folders.write(folder, cells, **more)
    return Page(write_report(str(folder)))


def tiles(page):
    """Figures at the top, by what they are of."""
    found = re.findall(r"<div><b>(.*?)</b><span>(.*?)</span></div>", page.bytes.decode())
    return {of: figure for figure, of in found[::-1]}


@pytest.fixture
def few(monkeypatch):
    """Intervals of few resamples: most of what a page takes."""
    monkeypatch.setattr(law_section, "RESAMPLES", 10)


@pytest.fixture(scope="module")
def half(tmp_path_factory):
    """The page of a sweep with cells in every state."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(law_section, "RESAMPLES", 40)  # half of what a page takes
        return paged(tmp_path_factory.mktemp("sweep") / "half", sweep_folders.half_done())


@pytest.fixture(scope="module")
def fit(half):
    """The law of that sweep's runs, fitted beside the page."""
    found = points.load_points(str(half.path.parent))
    return law_fit.fit_law(found, held_out=0, bootstrap=1)  # only its law is compared


def test_page_can_be_opened_alone_and_is_whole(half):
    tags = {tag for tag, _ in half.elements}
    assert not {"script", "link", "iframe", "img", "object"} & tags
    assert b"http://" not in half.bytes and b"https://" not in half.bytes
    (policy,) = [a["content"] for _, a in half.elements if "http-equiv" in a]
    assert policy.startswith("default-src 'none'")
    targets = {a["href"] for tag, a in half.elements if tag == "a"}
    assert targets == {f"#{a['id']}" for tag, a in half.elements if tag == "h2" and "id" in a}
    assert len(targets) == 7
    assert not {path.name for path in half.path.parent.iterdir()} - {
        *("sweep.json", "cells", "runs", "report.html")
    }


def test_page_counts_cells_by_state_and_names_the_best(half):
    cells = ledger.Ledger(str(half.path.parent)).cells()
    done = [cell for cell in cells if cell.state == "done"]
    best = min(done, key=lambda cell: cell.result["loss"])
    found = tiles(half)
    assert found["done"] == "26 of 30"
    assert [found[name] for name in ("running", "pending", "preempted", "failed")] == ["1"] * 4
    assert found[f"best loss, nats a token: cell {best.number}"] == f"{best.result['loss']:.3f}"
    assert found[f"best WER: cell {best.number}"] == f"{best.result['wer']:.1%}"


def test_page_lists_every_cell_with_what_it_differs_in(half):
    cells = ledger.Ledger(str(half.path.parent)).cells()
    rows = half.rows("All")
    assert [row["id"] for row in rows] == [cell.id for cell in cells]
    assert [row["state"] for row in rows] == [cell.state for cell in cells]
    assert [row["mel.r"] for row in rows] == [str(cell.overrides["mel.r"]) for cell in cells]
    assert "preset" not in rows[0]  # the same in all
    first, running = rows[0], rows[23]
    assert first["loss"] == f"{cells[0].result['loss']:.4f}" and first["size"] == "120 k"
    assert (first["updates"], first["FLOPs"]) == ("100% of 300", format_power(6 * 0.12e6 * 0.3e6))
    assert (running["updates"], running["loss"]) == ("60% of 2,400", "–")
    assert rows[19]["time"] == "–"  # pending


def test_page_says_what_failed_cells_said_and_how_to_go_on(half):
    assert "cell 24 (30% trained): update 900: the loss is nan" in half.cards["Failed"]
    finish = half.cards["Finish this sweep"]
    assert "Not done: 4 of 30 cells" in finish
    assert f"melllm sweep resume {half.path.parent}" in finish


def test_page_has_the_law_that_the_runs_follow_with_intervals(half, fit):
    assert len(fit.points) == 22 and "22 runs of 26" in half.cards["The law"]
    rows = half.rows("The law")
    assert [row["value"] for row in rows] == [*map(format_constant, dataclasses.astuple(fit.law))]
    for row, true in zip(rows, dataclasses.astuple(sweep_folders.LAW), strict=True):
        low, high = map(float, row["95 %"].split(" to "))
        assert low < true < high
    (own,) = [row for row in half.rows("The best split of a budget") if "law" in row["approach"]]
    assert float(own["a"]) == pytest.approx(fit.law.a, abs=1e-4)
    for chart in ("Loss by compute", "Best size and data of a budget"):
        assert chart in half.cards


def test_page_checks_the_law_on_the_largest_runs(half):
    cells = ledger.Ledger(str(half.path.parent)).cells()
    rows = half.rows("Check on the largest runs")
    assert len(rows) == 4
    for row in rows:
        cell = cells[int(row["cell"])]
        assert row["loss"] == f"{cell.result['loss']:.4f}"
        off = float(row["predicted"]) / float(row["loss"]) - 1
        told = float(row["off by"].replace("−", "-").removesuffix("%")) / 100
        assert told == pytest.approx(off, abs=1.1e-4) and abs(off) < 0.05
    assert "the 18 smaller runs alone" in half.cards["Check on the largest runs"]


def test_page_proposes_the_best_run_of_twice_and_ten_times_the_compute(half, fit):
    most = max(point.flops for point in fit.points)
    for times in (2, 10):
        title = f"{times} times the compute: {format_power(times * most)} FLOPs"
        n, _ = fit.law.best(times * most, fit.per)
        assert re.search(r"melllm train ladder_\w+ --steps \d+ .*--data DIR", half.cards[title])
        told = float(re.search(r"([\d.]+) [kM]parameters", half.cards[title])[1])
        assert told in (pytest.approx(n / 1e3, rel=0.01), pytest.approx(n / 1e6, rel=0.01))


def test_token_rates_are_compared_at_equal_size_and_sound(half):
    card = half.cards["Loss by token rate"]
    cells = {row["cell"]: row for row in half.rows("All")}
    told = set(re.findall(r"cell (\d+) ·", card))
    assert told == {"12", "25", "26", "27", "28", "29"}  # the grid's own of that size and sound
    assert {cells[number]["positions"] for number in told} == {"1.2 M"}
    assert "500 k parameters, 16.0 h" in card


def test_word_errors_and_law_leave_other_token_rates_out_and_say_so(half):
    for title in ("Word errors by size", "Word errors by sound"):
        assert not {"25", "26", "29"} & set(re.findall(r"cell (\d+) ·", half.cards[title]))
        assert "22 cells that are done, of 26: those of the commonest" in half.cards[title]


def test_time_is_measured_where_a_cell_is_done_and_planned_where_not(half):
    first, running, pending = (
        sweep_folders.grid()[0],
        *(sweep_folders.half_done()[i] for i in (23, 19)),
    )
    assert cell_figures.hours(first) == pytest.approx(first.result["train_seconds"] / 3600)
    assert cell_figures.hours(running) == pytest.approx(0.6 * running.plan["hours"])
    assert cell_figures.hours(pending) == 0
    assert cell_figures.cost(first) == pytest.approx(first.result["train_seconds"] / 3600 * 2.5)
    rows = half.rows("Time and cost")
    assert [row["done"] for row in rows] == ["5 of 5", "5 of 5", "10 of 10", "4 of 5", "2 of 5"] + [
        "26 of 30"
    ]
    unpriced = dataclasses.replace(first, plan={**first.plan, "cost": None})
    assert cell_figures.cost(unpriced) is None


def test_page_of_a_sweep_that_has_not_begun_says_why_there_is_no_law(tmp_path):
    cells = [sweep_folders.state(cell, "pending") for cell in sweep_folders.grid()]
    page = paged(tmp_path / "s", cells)
    assert tiles(page) == {"done": "0 of 30", "pending": "30"}
    assert "No law yet: " in page.cards["What the runs say together"]
    assert "no run of the sweep is done" in page.text and "svg" not in dict(page.elements)
    assert {row["state"] for row in page.rows("All")} == {"pending"}


def test_page_of_one_cell_shows_it_and_says_why_there_is_no_law(tmp_path):
    page = paged(tmp_path / "s", sweep_folders.grid()[:1])
    assert tiles(page)["done"] == "1 of 1" and len(page.rows("All")) == 1
    assert "a law of 5 constants takes 6" in page.cards["What the runs say together"]
    assert "Training loss over data" in page.cards and "Finish this sweep" not in page.cards


def test_page_of_one_ratio_of_tokens_to_size_says_why_there_is_no_law(tmp_path):
    cells = [sweep_folders.cell(i, 1e5 * 2**i, 2e6 * 2**i) for i in range(8)]
    page = paged(tmp_path / "s", cells)
    assert "No law yet: tokens: are 20 · params^1" in page.cards["What the runs say together"]


@pytest.mark.usefixtures("few")
def test_page_of_five_hundred_cells_is_below_three_megabytes(tmp_path):
    sizes, tokens = [1e6 * 2**i for i in range(14)], [2e7 * 1.3**i for i in range(36)]
    page = paged(tmp_path / "s", sweep_folders.grid(sizes, tokens, rates=())[:500], lines=60)
    assert len(page.bytes) < 3e6 and len(page.rows("All")) == 500
    drawn = [attrs for tag, attrs in page.elements if tag == "polyline"]
    assert len([attrs for attrs in drawn if attrs["class"] == "curve thin"]) > 1000
    assert len(page.rows("Check on the largest runs")) < 20


def test_page_holds_hostile_text_inert(tmp_path):
    cells = sweep_folders.grid(rates=())[:8]
    for place, value in enumerate((EVIL, "nul \x00 turn \u202e", [{"path": EVIL}], True)):
        overrides = {**cells[place].overrides, EVIL: value, "preset": EVIL}
        cells[place] = dataclasses.replace(cells[place], overrides=overrides)
    cells[4] = sweep_folders.state(cells[4], "failed", error=f"{EVIL} turn \u202e")
    page = paged(tmp_path / "s", cells, name=EVIL)
    assert EVIL in page.text and "nul \\u0000 turn \\u202e" in page.text
    assert not {"script", "img"} & {tag for tag, _ in page.elements}
    assert not any(name.startswith("on") for _, attrs in page.elements for name in attrs)
    assert not {"\x00", "\u202e"} & set(page.text)


@pytest.mark.usefixtures("few")
def test_page_of_results_without_word_errors_leaves_them_out(tmp_path):
    cells = [
        dataclasses.replace(cell, result={**cell.result, "wer": None})
        for cell in sweep_folders.grid()
    ]
    cells[3] = dataclasses.replace(cells[3], plan={"params": 1e6, "tokens": 1e6, "hours": None})
    page = paged(tmp_path / "s", cells)
    assert "Word errors" not in page.text and "WER" not in page.text
    assert "Loss by token rate" in page.cards and "The law" in page.cards


def test_cells_of_one_size_are_coloured_by_what_they_differ_in(tmp_path):
    cells = [
        sweep_folders.cell(
            i, 1e6, 1e6 * (1 + i), **{"model.d": 64, "optim.freeze": f"upper{i % 3}"}
        )
        for i in range(9)
    ]
    page = paged(tmp_path / "s", cells)
    assert "colours by optim.freeze" in page.cards["Training loss over data"]
    assert '"upper0"' in page.cards["Training loss over data"]


def test_sizes_that_are_too_many_to_tell_apart_share_colours():
    cells = [sweep_folders.cell(i, 1e6 * 1.2**i, 1e6) for i in range(40)]
    groups = cell_figures.group_cells(cells)
    assert 10 < len(groups.names) <= cell_figures.MOST
    assert groups.names[0] == "1 M to 1.44 M"
    places = [groups.group_by_id[cell.id] for cell in cells]
    assert places == sorted(places) and set(places) == set(range(len(groups.names)))


def metrics(path, lines):
    path.write_text("".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
    return epath.Path(path)


def test_curve_is_thinned_to_means_at_equal_ratios(tmp_path):
    lines = [json.dumps({"step": i, "loss": 8 / i}) + "\n" for i in range(1, 10_001)]
    found = read_curve(metrics(tmp_path / "m", lines), 40)
    assert 25 < len(found) <= 40 and found[0] == (1, 8) and found[-1][0] > 9_000
    for (_, before), (step, loss) in zip(found, found[1:], strict=False):
        assert 8 / step < loss * 1.001 < before * 1.001  # of updates up to this one
    late = [step for step, _ in found[-10:]]
    assert late[9] / late[8] == pytest.approx(late[1] / late[0], rel=0.1)


def test_curve_leaves_out_lines_that_say_no_loss(tmp_path):
    lines = [
        '{"step": 1, "loss": 4.0}\n{"step": 2, "loss": NaN}\n{"step": 3, "loss": "x"}\n[]\n',
        '{"step": 5, "loss": 0.0}\n{"step": 6, "loss": 3.0}\n{"step": 7, "lo',
    ]
    assert read_curve(metrics(tmp_path / "m", lines), 50) == ((1, 4.0), (6, 3.0))
    assert read_curve(metrics(tmp_path / "empty", []), 50) == ()


def test_curves_are_of_cells_that_have_begun(tmp_path):
    cells = sweep_folders.half_done()
    found = read_curves(sweep_folders.write(tmp_path / "s", cells), cells)
    assert set(found) == {cell.id for cell in cells if cell.state != "pending"}
    assert found[cells[23].id][-1][0] <= cells[23].step


def test_curves_end_where_the_updates_of_their_run_have_come_to():
    whole = [sweep_folders.cell(0, 1e6, 1e5), sweep_folders.cell(1, 1e6, 1e7)]
    part = sweep_folders.state(sweep_folders.cell(2, 1e6, 1e7), "running", 0.1)
    cells = [*whole, part]
    ends = {cell.id: ((cell.step, 2.0),) for cell in cells}
    drawing = cell_charts.curves_chart(cells, ends, cell_figures.group_cells(cells), "tokens")
    low, high, middle = (
        float(x) for x in re.findall(r'polyline class="[a-z ]+" points="(.*?),', drawing)
    )
    assert middle == pytest.approx((low + high) / 2, abs=0.1)  # 1e6 tokens


def test_report_of_what_is_no_sweep_is_a_mistake(tmp_path):
    with pytest.raises(Mistake, match=r"holds no sweep\.json"):
        write_report(str(tmp_path))
    folder = sweep_folders.write(tmp_path / "s", sweep_folders.grid()[:2])
    (folder / "cells" / f"{sweep_folders.grid()[1].id}.json").write_text("{")
    with pytest.raises(Fault, match="is damaged"):
        write_report(str(folder))
    assert not (folder / "report.html").exists()


def test_report_of_a_sweep_in_a_bucket_is_written_there(monkeypatch):
    folder = bucket(monkeypatch)
    sweep_folders.write(folder, sweep_folders.grid()[:2], lines=20)
    path = write_report(str(folder))
    assert str(path) == "s3://bucket/sweep/report.html"
    assert len(Page(path).rows("All")) == 2


def test_report_is_written_without_jax():
    code = "import launch.sweep_report.page, sys; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
