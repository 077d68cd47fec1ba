"""Scores answers in words against those that are right: equal, held, or near as numbers.

Answers are compared as SQuAD compares them (Rajpurkar et al. 2016, `evaluate-v1.1.py`): lower case,
without punctuation and the articles a, an and the, one blank between words. Punctuation is
Unicode's, not ASCII's alone.
"""

from collections.abc import Sequence
import math
import re
import unicodedata

NORMALIZER = "SQuAD v1.1: lower case, no punctuation, no a, an, the"
_ARTICLES = frozenset({"a", "an", "the"})
_NUMBER = re.compile(r"-?\d+(?:[.,]\d+)?")


def normalize_answer(text: str) -> str:
    """The words that are compared; where they are articles alone these stay: an option may be A."""
    letters = "".join(x for x in text.lower() if not unicodedata.category(x).startswith("P"))
    words = letters.split()
    return " ".join([word for word in words if word not in _ARTICLES] or words)


def matches(hypothesis: str, answers: Sequence[str]) -> bool:
    """Whether it is one of the answers, once normalised."""
    return normalize_answer(hypothesis) in {normalize_answer(answer) for answer in answers}


def contains(hypothesis: str, answers: Sequence[str]) -> bool:
    """Whether the words of one of the answers stand in it, one after another."""
    said = f" {normalize_answer(hypothesis)} "
    return any(f" {normalize_answer(answer)} " in said for answer in answers)


def first_number(text: str) -> float | None:
    """The first number in digits in a text, or None; a comma is the point of its decimals."""
    found = _NUMBER.search(text)
    return float(found[0].replace(",", ".")) if found else None


def mean_distance(hypotheses: Sequence[str], references: Sequence[str]) -> tuple[float | None, int]:
    """Mean absolute error over the hypotheses that hold a number, and how many hold none.

    It is None where no hypothesis holds one. References are numbers.
    """
    pairs = [(first_number(h), float(r)) for h, r in zip(hypotheses, references, strict=True)]
    errors = [abs(said - right) for said, right in pairs if said is not None]
    mean = math.fsum(errors) / len(errors) if errors else None
    return mean, len(pairs) - len(errors)
