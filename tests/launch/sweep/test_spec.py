import hashlib
import json
import textwrap

import pytest

from launch.sweep import cost, spec
from launch.terminal import text_table
from melllm_jax.config.encoders import Whisper
from melllm_jax.config.features import Mel
from melllm_jax.config.model import FrontSpec, Model, ModelSpec
from melllm_jax.config.overrides import to_json
from melllm_jax.errors import Mistake
from melllm_jax.presets import catalog

TWO = """
from launch.sweep import spec
def cells():
    return spec.grid({"preset": ["quickstart"], "optim.steps": [10, 20], "optim.lr": [1e-3, 2e-3]})
"""


def written(folder, text, name="mine.py"):
    path = folder / name
    path.write_text(textwrap.dedent(text))
    return str(path)


def told(folder, text, common=()):
    """What is wrong with a spec, without its path."""
    path = written(folder, text)
    with pytest.raises(Mistake) as error:
        spec.load(path, dict(common))
    message = str(error.value)
    assert "\n" not in message and message.startswith(path)
    return message.removeprefix(path)


def test_grid_multiplies_its_axes_the_last_fastest():
    assert spec.grid({"a": [1, 2], "b": [3, 4]}) == [
        {"a": 1, "b": 3},
        {"a": 1, "b": 4},
        {"a": 2, "b": 3},
        {"a": 2, "b": 4},
    ]


def test_grid_takes_cells_as_an_axis_whose_fields_go_together():
    pairs = spec.zipped({"mel.r": [1, 2], "data.t": [80, 40]})
    assert spec.grid({"seed": [0, 1]}, pairs) == [
        {"seed": 0, "mel.r": 1, "data.t": 80},
        {"seed": 0, "mel.r": 2, "data.t": 40},
        {"seed": 1, "mel.r": 1, "data.t": 80},
        {"seed": 1, "mel.r": 2, "data.t": 40},
    ]


def test_grid_refuses_a_field_of_two_axes():
    with pytest.raises(Mistake, match="grid: seed is set by two axes"):
        spec.grid({"seed": [0, 1]}, [{"seed": 2}])


def test_zipped_refuses_values_of_different_numbers():
    with pytest.raises(Mistake, match="different numbers of values: a 2, b 3"):
        spec.zipped({"a": [1, 2], "b": [1, 2, 3]})


def test_chain_puts_one_list_after_another():
    assert spec.chain([{"a": 1}], [], [{"a": 2}, {"b": 3}]) == [{"a": 1}, {"a": 2}, {"b": 3}]


def test_load_gives_ids_overrides_and_runs_in_order(tmp_path):
    found = spec.load(written(tmp_path, TWO), {"seed": 7, "optim.lr": 5e-3})
    assert found.name == "mine"
    assert [(one.run.optim.steps, one.run.optim.lr) for one in found.cells] == [
        (10, 1e-3),
        (10, 2e-3),
        (20, 1e-3),
        (20, 2e-3),
    ]
    assert all(one.run.seed == 7 and one.run.name == "quickstart" for one in found.cells)
    first = {"optim.lr": 0.001, "optim.steps": 10, "preset": "quickstart"}
    assert found.cells[0].overrides == first
    digits = hashlib.sha256(json.dumps(first, sort_keys=True).encode()).hexdigest()
    assert found.cells[0].id == digits[:10]
    ids = json.dumps([one.id for one in found.cells]).encode()
    assert found.digest == hashlib.sha256(ids).hexdigest()[:10]


def test_ids_leave_out_what_is_common_and_the_order_of_fields(tmp_path):
    turned = TWO.replace('"optim.steps": [10, 20], "optim.lr": [1e-3, 2e-3]', "").replace(
        '["quickstart"], ', '["quickstart"], "optim.lr": [2e-3, 1e-3], "optim.steps": [20, 10]'
    )
    before = spec.load(written(tmp_path, TWO), {})
    after = spec.load(written(tmp_path, turned, "other.py"), {"seed": 3})
    assert {one.id for one in before.cells} == {one.id for one in after.cells}
    assert before.digest != after.digest


def test_tuples_and_lists_make_the_same_id(tmp_path):
    text = "def cells(): return [{'preset': 'quickstart', 'optim.freeze': %s}]"
    one, other = (spec.load(written(tmp_path, text % each), {}) for each in ("(1, 2)", "[1, 2]"))
    assert one.cells == other.cells
    assert one.cells[0].run.optim.freeze == (1, 2)


def test_a_cells_own_field_wins_over_what_is_common(tmp_path):
    text = """
    def cells():
        own = [{"path": "own", "hours": 2.0}]
        return [{"preset": "digits"}, {"preset": "digits", "data.sources": own}]
    """
    found = spec.load(written(tmp_path, text), {"data.sources": [{"path": "common"}]})
    assert [one.run.data.sources[0].path for one in found.cells] == ["common", "own"]
    assert found.cells[1].run.data.sources[0].hours == 2.0


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("x = 1", ": has no function cells()"),
        ("cells = []", ": has no function cells()"),
        ("def cells(): return []", ": cells() returns no cells"),
        ("def cells(): return None", ": cells() must return a list of dicts, not None"),
        ("def cells(): return [3]", ": cells() must return a list of dicts, not [3]"),
        ("def cells(): return [{'seed': 1}]", ": cell 0: names no preset"),
        ("\n\ndef cells(:\n", ", line 3: invalid syntax"),
        ("\n1 / 0", ", line 2: ZeroDivisionError: division by zero"),
        ("def cells():\n    x = {}\n    return x['a']", ", line 3: KeyError: 'a'"),
        ("def f():\n    1 / 0\ndef cells():\n    return f()", ", line 2: ZeroDivisionError"),
        ("open('/no/such')", ", line 1: FileNotFoundError: [Errno 2] No such file"),
        ("raise SystemExit('two\\nlines')", ", line 1: SystemExit: two lines"),
        (
            "from launch.sweep import spec\ndef cells():\n    return "
            "spec.zipped({'a': [], 'b': [1]})",
            ", line 3: zipped: fields have different numbers of values",
        ),
    ],
)
def test_a_spec_that_is_wrong_says_where_in_one_line(tmp_path, text, rule):
    assert told(tmp_path, text).startswith(rule)


@pytest.mark.parametrize(
    ("cell", "rule"),
    [
        ("{'preset': 'quickstar'}", "preset=quickstar: is none of"),
        ("{'preset': 'quickstart', 'modle.d': 3}", "unknown field modle.d=3: did you mean model.d"),
        ("{'preset': 'quickstart', 'model.d': 'x'}", "model.d='x': must be of type int"),
        ("{'preset': 'quickstart', 'optim.lr': float('nan')}", "cannot be written as JSON"),
        ("{'preset': 'quickstart', 'seed': {1}}", "cannot be written as JSON"),
    ],
)
def test_a_cell_that_is_wrong_is_named_by_its_number(tmp_path, cell, rule):
    message = told(tmp_path, f"def cells(): return [{{'preset': 'quickstart'}}, {cell}]")
    assert message.startswith(": cell 1: ") and rule in message


def test_two_cells_of_one_run_are_refused_whatever_they_say(tmp_path):
    same = "[{'preset': 'quickstart'}, {'preset': 'quickstart', 'seed': 0}]"
    message = told(tmp_path, f"def cells(): return {same}")
    assert message.startswith(": cell 1: is the same run as cell 0: preset='quickstart', seed=0")


def test_two_cells_of_one_run_are_refused_where_their_presets_names_differ(tmp_path):
    a, b = catalog.preset("ladder_1m"), catalog.preset("ladder_2m")
    fields = {f"model.{x}": getattr(a.model, x) for x in "dnkhfl"}
    fields |= {f"optim.{x}": getattr(a.optim, x) for x in ("steps", "lr", "warmup")}
    assert a.data == b.data
    cells = [{"preset": "ladder_1m"}, {"preset": "ladder_2m", **fields}]
    assert "is the same run as cell 0" in told(tmp_path, f"def cells(): return {cells!r}")


def test_cells_that_differ_in_where_they_start_are_two(tmp_path):
    text = "def cells(): return [{'preset': 'digits', 'init.path': x} for x in ('', 'phi')]"
    found = spec.load(written(tmp_path, text), {})
    assert [one.run.init.path for one in found.cells] == ["", "phi"]


def test_a_missing_file_is_told_with_the_ready_specs():
    with pytest.raises(Mistake, match=r"spec=scalin: is no file.*scaling.*did you mean scaling\?"):
        spec.load("scalin", {})


def test_a_file_that_is_no_text_is_told(tmp_path):
    path = tmp_path / "mine.py"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(Mistake, match="cannot be read"):
        spec.load(str(path), {})


def test_cell_under_old_names_has_the_id_and_run_of_the_same_cell_under_new_ones(tmp_path):
    one = "def cells():\n    return [{}]\n"
    first = {"data.bad": 0.5, "keep.every": 5, "preset": "digits"}
    now = {"data.max_reject_share": 0.5, "checkpoints.every": 5, "preset": "digits"}
    old = spec.load(written(tmp_path, one.format(first)), {"keep.last": 1})
    new = spec.load(written(tmp_path, one.format(now)), {"checkpoints.last": 1})
    assert old == new
    assert old.cells[0].overrides == now
    digits = hashlib.sha256(json.dumps(first, sort_keys=True).encode()).hexdigest()
    assert old.cells[0].id == digits[:10]


def test_cells_own_field_wins_over_the_sweeps_under_another_of_its_names():
    cell = {"preset": "digits", "checkpoints.every": 5}
    assert spec.run(cell, {"keep.every": 7}).checkpoints.every == 5


def test_cell_with_both_names_of_a_field_is_refused(tmp_path):
    text = """
    def cells():
        return [{"preset": "digits", "keep.every": 5, "checkpoints.every": 6}]
    """
    message = ": cell 0: keep.every: is the old name of checkpoints.every, which is set as well"
    assert told(tmp_path, text) == message


def test_init_and_front_are_axes_that_give_a_run_its_sizes(tmp_path):
    """Random weights of the same sizes are init with an empty init.path; the table tells hours."""
    folders = {"llm": tmp_path / "llm", "front": tmp_path / "front"}
    model = Model(d=32, n=4, k=2, h=8, f=48, l=2, v=64, front="none")
    whisper = Whisper(d=16, n=2, f=24, l=2, positions=50)
    for name, written in (
        ("llm", {"model.json": ModelSpec(model)}),
        ("front", {"front.json": FrontSpec("whisper", Mel("whisper"), whisper)}),
    ):
        folders[name].mkdir()
        for file, one in written.items():
            (folders[name] / file).write_text(to_json(one))
    llm, front = (str(folder) for folder in folders.values())
    file = tmp_path / "starts.py"
    file.write_text(
        "from launch.sweep import budgets, spec\n"
        "def cells():\n"
        f"    starts = [{{'init': {llm!r}, 'init.path': ''}}, {{'init': {llm!r}}}]\n"
        f"    fronts = [{{'front': ''}}, {{'front': {front!r}, 'optim.encoder': 'frozen'}}]\n"
        "    small = {'preset': ['mel_llm_asr'], 'optim.train': ['all'], 'lora.r': [0, 4]}\n"
        "    rows = budgets.RowShares(speech=0.7, fill=0.9)\n"
        "    grid = spec.grid(small, starts, fronts)\n"
        "    return budgets.fixed_data(grid, 'corpora/x', [10.0, 100.0], 2, rows)\n"
    )
    found = spec.load(str(file), {})
    assert len(found.cells) == 16
    assert {one.run.model.d for one in found.cells} == {32}
    first, second = found.cells[0].run, found.cells[3].run
    assert (first.init.path, first.model.front, first.mel.kind) == ("", "conv", "phi4")
    assert (second.init.path, second.init.front) == (llm, front)
    assert (second.model.front, second.model.whisper, second.mel.kind) == (
        "whisper",
        whisper,
        "whisper",
    )
    figures = cost.plan_cells(found, "", 0.0, cost.unknown_rate)
    shown = "\n".join(text_table.lines(cost.table(found, figures)))
    assert "corpora/x=1:100h" in shown
    assert "frozen" in shown
    text = "def cells(): return [{'preset': 'digits', 'init': 'nothing'}]"
    file.write_text(text)
    with pytest.raises(Mistake, match="cell 0: checkpoint=nothing: holds neither model.json"):
        spec.load(str(file), {})
