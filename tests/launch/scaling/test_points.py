"""Runs come from a CSV or a sweep's folder; what is no number is named by file, line and column."""

import pytest

from launch.scaling import points
from launch.scaling.points import Point
from melllm_jax.errors import Mistake
from tests.support import sweep_folders


@pytest.fixture
def file(tmp_path):
    def write(text):
        path = tmp_path / "runs.csv"
        path.write_text(text, encoding="utf-8")
        return str(path)

    return write


def test_points_of_a_csv_are_its_rows_under_their_names(file):
    path = file("run,params,loss,tokens,seed\nsmall,1e6,3.5,2e7,0\n\nlarge,2e6,3.25,4e7,1\n")
    assert points.load_points(path) == [
        Point(params=1e6, tokens=2e7, loss=3.5, flops=1.2e14, name="small"),
        Point(params=2e6, tokens=4e7, loss=3.25, flops=4.8e14, name="large"),
    ]


@pytest.mark.parametrize(
    "text", ["params,flops,loss\n1e6,1.2e14,3\n", "loss,tokens,flops\n3,2e7,1.2e14\n"]
)
def test_points_without_params_or_tokens_follow_from_six_flops_a_parameter_and_token(file, text):
    (point,) = points.load_points(file(text))
    assert (point.params, point.tokens) == (pytest.approx(1e6), pytest.approx(2e7))
    assert point.name == "line 2"


def test_points_with_all_three_keep_the_flops_that_are_there(file):
    (point,) = points.load_points(file("params,tokens,flops,loss\n1e6,2e7,1.5e14,3\n"))
    assert point.flops == 1.5e14


def test_points_of_excel_with_mark_quotes_and_windows_ends_are_read(tmp_path):
    path = tmp_path / "runs.csv"
    path.write_bytes(b'\xef\xbb\xbf"name", params,tokens,loss\r\n"a, b",1e6,2e7,3\r\n')
    (point,) = points.load_points(str(path))
    assert (point.name, point.params) == ("a, b", 1e6)


@pytest.mark.parametrize(
    "text,words",
    [
        ("", "line 1: has no column loss, but nothing"),
        ("params,tokens\n1,2\n", "line 1: has no column loss, but params, tokens"),
        ("params,loss,size\n1,2,3\n", "line 1: needs two of params, tokens, flops, but has params"),
        ("params,tokens,loss,loss\n1,2,3,4\n", "line 1: column 'loss' comes twice"),
        ("params,tokens,loss\n1e6,2e7,3\n1e6,many,3\n", "line 3: tokens='many': must be a number"),
        ("params,tokens,loss\n1e6,,3\n", "line 2: tokens='': must be a number"),
        ("params,tokens,loss\n1e6,2e7,nan\n", "line 2: loss=nan: must be from 1e-40 to 1e+40"),
        ("params,tokens,loss\n1e6,2e7,inf\n", "line 2: loss=inf: must be from"),
        ("params,tokens,loss\n1e6,2e7,0\n", "line 2: loss=0: must be from"),
        ("params,tokens,loss\n-1e6,2e7,3\n", "line 2: params=-1e6: must be from"),
        ("params,tokens,loss\n1e6,2e7\n", "line 2: has 2 values, the first line 3 names"),
        (f"params,tokens,loss\n1,2,{'9' * 140_000}\n", "line 2: is no CSV: field larger"),
    ],
)
def test_points_of_a_bad_csv_name_file_line_column_and_rule(file, text, words):
    path = file(text)
    with pytest.raises(Mistake) as error:
        points.load_points(path)
    assert str(error.value).startswith(f"{path} {words}") and "\n" not in str(error.value)


def test_points_of_no_file_name_it(tmp_path):
    (tmp_path / "latin").write_bytes("name,café".encode("latin-1"))
    for path, words in (
        (tmp_path / "none", "is no file"),
        (tmp_path, "is neither a CSV nor a sweep's folder"),
        (tmp_path / "latin", "is no UTF-8 text: .* at byte 8"),
    ):
        with pytest.raises(Mistake, match=words):
            points.load_points(str(path))


def test_points_of_a_sweep_are_its_done_cells_of_the_commonest_rate(tmp_path):
    cells = sweep_folders.half_done()
    sweep_folders.write(tmp_path, cells, lines=2)
    found = points.load_points(str(tmp_path))
    done = [one for one in cells if one.state == "done" and one.result["r"] == 8]
    assert [point.name for point in found] == [one.id for one in done]
    assert len(found) < sum(one.state == "done" for one in cells)
    first = done[0].result
    assert found[0] == Point(
        params=first["params"],
        tokens=first["tokens"],
        loss=first["loss"],
        flops=first["flops"],
        name=done[0].id,
        hours=first["audio_hours"],
    )


def test_points_of_a_sweep_that_has_none_done_or_a_bad_one_are_refused(tmp_path):
    cells = [sweep_folders.state(one, "pending") for one in sweep_folders.grid()]
    sweep_folders.write(tmp_path / "new", cells, lines=2)
    with pytest.raises(Mistake, match="new: no run of the sweep is done"):
        points.load_points(str(tmp_path / "new"))
    cells = sweep_folders.grid()
    cells[3].result["loss"] = float("nan")
    sweep_folders.write(tmp_path / "nan", cells, lines=2)
    with pytest.raises(Mistake, match=f"nan cell {cells[3].id}: loss=nan: must be from"):
        points.load_points(str(tmp_path / "nan"))
