"""Questions of a file become tasks of the layout that training reads, each in one split."""

import json

import pytest

from data_pipelines.corpora.task_line import read_task
from data_pipelines.synthetic.grammar import split_of
from data_pipelines.synthetic.spoken_questions import read_questions
from data_pipelines.text.turns import CLIP, Turn
from melllm_jax.errors import Mistake

ASK = "Answer the question in the recording."


def lines(*rows):
    return "\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows)


def read(*rows):
    return read_questions("a.jsonl", lines(*rows))


def only(*rows):
    (found,) = (one for some in read(*rows).splits.values() for one in some)
    return found


def test_question_is_the_task_that_the_manifest_of_spoken_questions_has():
    one = only({"question": "Who  wrote\nIt?", "answer": ["Ann", "Ann Lee"]})
    row = {"audio": "a.wav", "instruction": ASK, "answer": ["Ann", "Ann Lee"]}
    assert one.text == "Who wrote It?"
    told = read_task(row | {"task": "spoken-qa", "metric": "contains"})
    assert (one.task.turns, one.task.answers) == (told.turns, ("Ann", "Ann Lee"))
    assert one.task.turns == (Turn("user", (CLIP, ASK)), Turn("assistant", ("Ann",)))
    assert (one.task.task, one.task.metric, one.task.options) == ("spoken-qa", "contains", ())


def test_line_may_say_how_it_is_asked_and_scored():
    row = {"question": "Ann?", "answer": "b", "options": ["a", "b"], "instruction": "Choose."}
    one = only(row)
    asked = "Choose. Answer with one of: a; b."
    assert (one.task.metric, one.task.turns[0].parts) == ("choice", (CLIP, asked))
    exact = only({"question": "Ann?", "answer": 3, "metric": "exact_match", "task": "sums"})
    assert (exact.task.metric, exact.task.task, exact.task.answers) == (
        "exact_match",
        "sums",
        ("3",),
    )


def test_words_decide_the_split_as_those_of_a_sentence_do_and_numbers_are_words():
    texts = [f"What is {a} and two?" for a in ("one", "ten", "6", "7", "a cat", "Don't")]
    found = read(*({"question": text, "answer": "x"} for text in texts))
    for split, some in found.splits.items():
        for one in some:
            assert split == split_of(one.text.lower().rstrip("?"))
    assert sum(map(len, found.splits.values())) == len(texts)


def test_question_said_again_is_left_out_and_one_in_two_splits_refused():
    first = {"question": "What is it?", "answer": "x", "split": "test"}
    again = {"question": "what IS it", "answer": "y"}
    found = read(
        first, again, {"question": "¿Qué?", "answer": "z"}, {"question": "5 %?", "answer": "z"}
    )
    assert [len(found.splits[split]) for split in ("train", "dev", "test")] == [0, 0, 1]
    assert found.left_out == {
        "repeated": 1,
        "with a sign that is not read": 2,
    }
    rule = "a.jsonl line 2: question='what IS it': is of train, and of test by line 1"
    with pytest.raises(Mistake, match=rule):
        read(first, again | {"split": "train"})
    with pytest.raises(Mistake, match="is of dev, and of "):  # its words say another
        read(again, again | {"split": "dev"})


@pytest.mark.parametrize(
    ("row", "rule"),
    [
        ("{", "a.jsonl line 2: is no JSON"),
        ("[1]", r"a.jsonl line 2: \[1\] is no object"),
        ({"answer": "x"}, "a.jsonl line 2: question=None: must be text with a word"),
        ({"question": "?!", "answer": "x"}, "must be text with a word"),
        ({"question": "Who?"}, "a.jsonl line 2: instruction=.*: lacks answer"),
        ({"question": "Who?", "answer": []}, "answer=.*: must hold one"),
        ({"question": "Who?", "answer": " "}, "must not be empty"),
        (
            {"question": "Who?", "answer": "x", "split": "tset"},
            "split='tset': must be one of train",
        ),
        ({"question": "Who?", "answer": "x", "options": ["a", "b"]}, "answer='x': must be one of"),
        ({"question": "Who?", "answer": "x", "options": "ab"}, "options="),
        ({"question": "Who?", "answer": "x", "metric": "best"}, "metric='best': must be one of"),
    ],
)
def test_line_that_is_no_question_is_named(row, rule):
    with pytest.raises(Mistake, match=rule):
        read("", row)


def test_file_without_a_question_is_refused():
    with pytest.raises(Mistake, match="a.jsonl: has no question: empty"):
        read("")
