import pathlib

import pytest

from data_pipelines.prepare import tasks
from melllm_jax.errors import Mistake


def parts(folder, text, per_shard):
    """(split, number, content, first line, lines) of each task of a manifest."""
    (folder / "train.jsonl").write_bytes(text)
    return [
        (text[task.start : task.stop], task.line, task.lines)
        for task in tasks.plan_tasks(folder, per_shard)
    ]


def test_tasks_are_ranges_of_whole_lines_with_the_number_of_the_first(tmp_path):
    assert parts(tmp_path, b"a\nbb\nccc\nd\n", 2) == [(b"a\nbb\n", 0, 2), (b"ccc\nd\n", 2, 2)]


def test_a_last_line_needs_no_end(tmp_path):
    assert parts(tmp_path, b"a\nbb\nccc", 2) == [(b"a\nbb\n", 0, 2), (b"ccc", 2, 1)]


def test_blank_lines_fill_no_shard_but_keep_their_numbers(tmp_path):
    found = parts(tmp_path, b"\r\na\n \n\nbb\n\t\nccc\n\n \t", 2)
    assert found == [(b"\r\na\n \n\nbb\n", 0, 2), (b"\t\nccc\n\n \t", 5, 1)]


@pytest.mark.parametrize("chunk", [1, 2, 3, 5, 8])
def test_tasks_do_not_depend_on_the_size_of_what_is_searched_at_a_time(
    tmp_path, monkeypatch, chunk
):
    text = b"a\nbb\n\nccc\nd\n \r\n\n  eeeeeee\nf"
    whole = parts(tmp_path, text, 2)
    monkeypatch.setattr(tasks, "CHUNK", chunk)
    assert parts(tmp_path, text, 2) == whole
    assert b"".join(content for content, _, _ in whole) == text
    assert sum(lines for _, _, lines in whole) == 6


def test_train_comes_last_and_shards_are_numbered_in_each_split(tmp_path):
    for split in ("train", "dev", "valid"):
        pathlib.Path(tmp_path / f"{split}.jsonl").write_text("a\nb\nc\n")
    names = [task.name for task in tasks.plan_tasks(tmp_path, 2)]
    assert names == [f"{s}-0000{n}" for s in ("dev", "valid", "train") for n in (0, 1)]


def test_a_manifest_without_a_line_is_refused(tmp_path):
    with pytest.raises(Mistake, match=r"train.jsonl: has 0 lines"):
        parts(tmp_path, b"\n \n", 2)
