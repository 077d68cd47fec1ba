import pytest

from melllm_jax.evaluation.answers import (
    contains,
    first_number,
    matches,
    mean_distance,
    normalize_answer,
)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("The  Eiffel-Tower!", "eiffeltower"),
        ("«Une» année…", "une année"),
        ("an apple and a pear", "apple and pear"),
        ("A", "a"),  # an option
        ("?!", ""),
    ],
)
def test_answer_is_compared_without_case_punctuation_and_articles(text, words):
    assert normalize_answer(text) == words


def test_exact_match_is_of_any_right_answer_and_of_all_words():
    assert matches("The Cat.", ["dog", "cat"])
    assert not matches("a black cat", ["cat"])


def test_contains_wants_whole_words_one_after_another():
    assert contains("It is New York, I think", ["Paris", "new york"])
    assert not contains("category", ["cat"])
    assert not contains("new big york", ["new york"])
    assert not contains("", ["cat"])


@pytest.mark.parametrize(
    ("text", "number"),
    [("about 34 years", 34.0), ("-1.5 or 7", -1.5), ("2,5 m", 2.5), ("thirty", None), ("", None)],
)
def test_first_number_is_that_of_digits(text, number):
    assert first_number(text) == number


def test_distance_is_over_answers_with_a_number_and_counts_the_others():
    assert mean_distance(["30", "no idea", "41 or so"], ["34", "20", "40"]) == (2.5, 1)
    assert mean_distance(["no"], ["1"]) == (None, 1)
