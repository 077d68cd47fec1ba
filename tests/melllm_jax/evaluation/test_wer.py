"""Word error rates equal counts made by hand, and say what counted them."""

import importlib.metadata
import sys

import pytest

from melllm_jax.errors import Mistake
from melllm_jax.evaluation.wer import (
    count_character_errors,
    count_utterance_errors,
    score_transcripts,
)

jiwer = pytest.importorskip("jiwer", reason="the extra eval brings the scorer")


def test_score_of_a_hand_counted_set_has_each_kind_of_error():
    references = ["the cat sat on the mat", "we went home", "yes"]
    hypotheses = ["the hat sat on mat", "we all went home", ""]
    result = score_transcripts(references, hypotheses, "none")
    # hat for cat; "the" and "yes" dropped; "all" put in; 7 of 10 words are right.
    assert (result.substitutions, result.deletions, result.insertions) == (1, 2, 1)
    assert (result.hits, result.words, result.utterances, result.empty) == (7, 10, 3, 0)
    assert result.wer == pytest.approx(4 / 10)
    assert result.wer == pytest.approx(jiwer.wer(references, hypotheses))


def test_errors_of_each_utterance_are_those_that_are_pooled():
    references = ["the cat sat on the mat", "um", "we went home", "yes"]
    hypotheses = ["the hat sat on mat", "more words", "we all went home", ""]
    found = count_utterance_errors(references, hypotheses, "whisper")
    assert (found.errors, found.words) == ((2, 0, 1, 1), (6, 0, 3, 1))
    pooled = score_transcripts(references, hypotheses, "whisper")
    assert sum(found.errors) == pooled.substitutions + pooled.deletions + pooled.insertions


def test_character_errors_are_counted_in_the_normalised_texts_with_their_blanks():
    references = ["The cat.", "um", "we went", "yes"]
    hypotheses = ["the hat", "more", "wewents", ""]
    found = count_character_errors(references, hypotheses, "whisper")
    assert (found.errors, found.characters) == ((1, 0, 2, 3), (7, 0, 7, 3))
    assert count_character_errors(["A b"], ["a  b"], "none").errors == (1,)


def test_score_pools_words_instead_of_averaging_rates():
    assert score_transcripts(["a b c d", "e"], ["a b c d", "x"], "none").wer == pytest.approx(1 / 5)


def test_score_of_more_insertions_than_words_exceeds_one():
    assert score_transcripts(["a"], ["a b c d"], "none").wer == 3


def test_score_under_whisper_forgives_case_marks_spelling_and_numerals():
    references = ["The colour, Mr. Smith: twenty-two!"]
    hypotheses = ["the color mister smith 22"]
    assert score_transcripts(references, hypotheses, "whisper").wer == 0
    assert score_transcripts(references, hypotheses, "none").substitutions == 5


def test_score_leaves_out_and_counts_references_that_normalise_to_nothing():
    result = score_transcripts(["Hmm, uh!", "yes sir"], ["many words here", "yes"], "whisper")
    assert (result.empty, result.utterances, result.words) == (1, 1, 2)
    assert (result.insertions, result.deletions, result.wer) == (0, 1, 0.5)


def test_score_without_normaliser_ignores_only_white_space():
    assert score_transcripts([" a\tb "], ["a  b"], "none").wer == 0
    assert score_transcripts(["A b"], ["a b"], "none").wer == 0.5


def test_score_names_normaliser_and_scorer_with_versions():
    result = score_transcripts(["a"], ["a"], "whisper")
    version = importlib.metadata.version
    library = f"whisper-normalizer {version('whisper-normalizer')} English"
    assert result.normalizer == f"{library} + melllm_jax 1"
    assert result.scorer == f"jiwer {version('jiwer')}"
    assert score_transcripts(["a"], ["a"], "none").normalizer == "none"


@pytest.mark.parametrize(
    "references,hypotheses,rule",
    [
        (["a", "b"], ["a"], "2 references cannot face 1 hypotheses"),
        (["", "  "], ["a", ""], "none of 2 references has a word"),
        ([], [], "none of 0 references has a word"),
    ],
)
def test_score_of_an_impossible_set_says_the_rule(references, hypotheses, rule):
    with pytest.raises(Mistake, match=rule):
        score_transcripts(references, hypotheses, "none")


def test_score_without_the_extra_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "jiwer", None)
    with pytest.raises(Mistake, match=r"melllm_jax\[eval\]"):
        score_transcripts(["a"], ["a"], "none")
