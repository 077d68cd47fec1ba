"""Sentences are cut where readers would, kept as written, and shared out by their words alone."""

import pytest

from data_pipelines.synthetic.grammar import split_of
from data_pipelines.synthetic.text_sentences import find_sentences, spoken_words
from melllm_jax.errors import Mistake

NUMBERS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
# 100 different sentences.
MANY = [f"The {first}  are not {second}." for first in NUMBERS for second in NUMBERS]


def cut(*documents, fewest=1, most=6):
    """All sentences of the documents, sorted."""
    found = find_sentences(documents, fewest, most).splits.values()
    return sorted(sentence for some in found for sentence in some)


@pytest.mark.parametrize(
    "document,sentences",
    [
        ("So it was.  And\tso it is!", ["And so it is!", "So it was."]),
        ('"Is it?" he said. "Yes." She left.', ['"Is it?" he said.', '"Yes."', "She left."]),
        ("Mr. Fox met J. R. Hare.", ["Mr. Fox met J. R. Hare."]),
        ("I shall go. -- Ann", ["Ann", "I shall go."]),
        ("Well... he went", ["Well... he went"]),
        # As many clauses as fit in six words, each with the mark that ends it.
        ("one, two three, four; five six seven", ["five six seven", "one, two three, four;"]),
        ("one two three four -- five six seven", ["five six seven", "one two three four"]),
    ],
)
def test_document_is_cut_at_ends_of_sentences_and_long_ones_at_marks(document, sentences):
    assert cut(document) == sentences


def test_sentences_that_cannot_be_used_are_counted_by_reason():
    documents = [
        *("Well then.", "We were here.", "we WERE here", "We were 2 here.", "We were @ home."),
        *("We were at café.", "we were all here and none of us knew it", "* * *"),
    ]
    found = find_sentences(documents, 3, 6)
    assert [some for some in found.splits.values() if some] == [("We were here.",)]
    assert found.left_out == {
        "of fewer than 3 words": 1,
        "repeated": 1,
        "with a digit": 1,
        "with a sign that is not read": 2,
        "with a letter that is not English": 1,
        "of more than 6 words": 1,
    }


@pytest.mark.parametrize("documents,words", [([], "empty"), (["1 2 3", " "], "1 with a digit")])
def test_text_without_a_sentence_is_refused(documents, words):
    with pytest.raises(Mistake, match=f"has no sentence of 3 to 9 words: {words}"):
        find_sentences(documents, 3, 9)


def test_split_of_a_sentence_follows_from_its_words_alone():
    found = find_sentences(MANY, 3, 9)
    assert sum(map(len, found.splits.values())) == 100
    assert min(map(len, found.splits.values())) > 3
    for split, some in found.splits.items():
        assert {split_of(" ".join(spoken_words(one))) for one in some} == {split}
    shouted = [one.upper().replace(" ARE", ", ARE") for one in reversed(MANY)]
    for split, some in find_sentences(shouted, 3, 9).splits.items():
        assert {tuple(spoken_words(one)) for one in some} == {
            tuple(spoken_words(one)) for one in found.splits[split]
        }


def test_fewer_sentences_are_the_first_of_more_in_an_order_of_the_seed():
    found = find_sentences(MANY, 3, 9)
    some, more = (found.draw("train", count, 5) for count in (9, 40))
    assert some == more[:9] and len(set(more)) == 40
    assert set(more) <= set(found.splits["train"]) and more != found.splits["train"][:40]
    assert found.draw("train", 40, 6) != more
    there = len(found.splits["dev"])
    with pytest.raises(Mistake, match=f"dev=99: the text has {there} sentences"):
        found.draw("dev", 99, 0)


def test_words_have_neither_case_nor_marks():
    assert spoken_words("“Don’t,” said O'Neil -- the Un-do-er!") == [
        *("don't", "said", "o'neil", "the", "un", "do", "er")
    ]
