"""The list of what was left out is counted by reason."""

from launch.corpus_report.rejects import RejectExample, count_rejects


def test_rejects_are_counted_and_lines_of_blanks_passed_over(tmp_path):
    line = '{"split": "train", "source": "a", "id": "u1", "reason": "missing", "detail": "gone"}'
    (tmp_path / "rejects.jsonl").write_text(f"{line}\n \t\n{line}\n\n")
    (found,) = count_rejects(tmp_path)
    assert (found.reason, found.count, found.first[0]) == (
        "missing",
        2,
        RejectExample("u1", "gone"),
    )
