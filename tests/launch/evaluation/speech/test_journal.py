"""What was measured outlives the process that measured it, but for the line it was amid."""

import pytest

from launch.evaluation.speech.journal import Journal
from melllm_jax.errors import Fault


def test_values_are_found_again_by_what_decides_them(tmp_path):
    journal = Journal(tmp_path / "j")
    journal.keep({"text": "one\ntwo"}, "heard", ["a", 1])
    journal.keep(0.1 + 0.2, "mos", "x")
    for other in (journal, Journal(tmp_path / "j")):
        assert other.find("heard", ["a", 1]) == {"text": "one\ntwo"}
        assert other.find("mos", "x") == 0.1 + 0.2
        assert other.find("mos", "y") is other.find("heard", ["a", 2]) is None


@pytest.mark.parametrize("left", range(1, 40, 6))
def test_a_torn_line_costs_no_other(tmp_path, left):
    path = tmp_path / "j"
    journal = Journal(path)
    journal.keep(1, "a")
    whole = path.read_bytes()
    journal.keep(2, "b")
    path.write_bytes(path.read_bytes()[: len(whole) + left])
    journal = Journal(path)
    assert (journal.find("a"), journal.find("b")) == (1, None)
    journal.keep(3, "c")
    journal = Journal(path)
    assert (journal.find("a"), journal.find("b"), journal.find("c")) == (1, None, 3)


def test_a_journal_that_cannot_be_written_is_a_fault(tmp_path):
    with pytest.raises(Fault, match="none/j: cannot be written: No such file"):
        Journal(tmp_path / "none/j").keep(1, "a")
    with pytest.raises(Fault, match="cannot be read: Is a directory"):
        Journal(tmp_path)
