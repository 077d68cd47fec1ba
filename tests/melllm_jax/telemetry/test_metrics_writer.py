import json

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from melllm_jax.errors import Fault
from melllm_jax.telemetry.metrics_writer import MetricsWriter
from tests.support.runs import lines, small_disk


def write(workdir, first, *steps, **more):
    """A record opened after update `first`, with a line for each of the steps."""
    with MetricsWriter(workdir, first) as record:
        for step in steps:
            record.write(
                step, {"loss": 10.0 * first + step, "mfu": None, "rejected": {"rate": 2}} | more
            )


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # TensorBoard reads old NumPy names
def curve(workdir, tag):
    """What TensorBoard shows of a figure: [(step, value)]."""
    events = EventAccumulator(str(workdir / "tensorboard"))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(tag)]


def test_record_has_a_line_of_json_for_each_step(tmp_path):
    write(tmp_path, 0, 1, 2)
    assert (tmp_path / "metrics.jsonl").read_text() == (
        '{"step": 1, "loss": 1.0, "mfu": null, "rejected": {"rate": 2}}\n'
        '{"step": 2, "loss": 2.0, "mfu": null, "rejected": {"rate": 2}}\n'
    )


def test_record_is_read_by_tensorboard(tmp_path):
    write(tmp_path, 0, 1, 2, time=5.0)
    assert curve(tmp_path, "loss") == [(1, 1.0), (2, 2.0)]
    assert curve(tmp_path, "rejected/rate") == [(1, 2.0), (2, 2.0)]
    with pytest.raises(KeyError):
        curve(tmp_path, "mfu")  # nothing to draw on a CPU


def test_record_stands_on_disk_at_once(tmp_path):
    with MetricsWriter(tmp_path, 0) as record:
        record.write(1, {"loss": 1.0})
        assert lines(tmp_path) == [{"step": 1, "loss": 1.0}]
        assert curve(tmp_path, "loss") == [(1, 1.0)]


def test_record_opened_again_forgets_what_came_after(tmp_path):
    write(tmp_path, 0, 1, 2, 3, 4)
    write(tmp_path, 2, 3, 4)
    expected = [(1, 1.0), (2, 2.0), (3, 23.0), (4, 24.0)]
    assert [(row["step"], row["loss"]) for row in lines(tmp_path)] == expected
    assert curve(tmp_path, "loss") == expected


def test_record_drops_a_last_line_cut_off_by_a_kill(tmp_path):
    write(tmp_path, 0, 1, 2)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "lo')
    write(tmp_path, 2, 3)
    assert [row["step"] for row in lines(tmp_path)] == [1, 2, 3]


def test_record_with_a_broken_line_inside_is_a_fault_and_stays(tmp_path):
    text = '{"step": 1}\n{"st\n{"step": 3}\n'
    (tmp_path / "metrics.jsonl").write_text(text)
    with pytest.raises(Fault, match=r"metrics.jsonl: holds a line that is no JSON: '\{\"st'"):
        MetricsWriter(tmp_path, 3)
    assert (tmp_path / "metrics.jsonl").read_text() == text


def test_record_on_a_full_disk_is_a_fault_and_whole_lines_stay(tmp_path):
    with small_disk(tmp_path / "disk", 64) as disk:
        with pytest.raises(Fault, match=r"metrics.jsonl: cannot be written: No space left"):
            write(disk, 0, *range(1, 2000))
        kept = lines(disk)
        assert len(kept) > 50
        assert [row["step"] for row in kept] == list(range(1, len(kept) + 1))
        with pytest.raises(Fault, match="cannot be written: No space left"):
            MetricsWriter(disk, len(kept))
        assert lines(disk) == kept
        for path in (disk / "tensorboard").iterdir():
            path.unlink()
        write(disk, len(kept), len(kept) + 1)
        assert (
            json.loads((disk / "metrics.jsonl").read_text().split("\n")[-2])["step"]
            == len(kept) + 1
        )
