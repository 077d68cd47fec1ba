"""Cuts documents into sentences to be read aloud, and shares these out to the splits.

What must hold: the words of a sentence alone decide its split, whatever its case and punctuation,
so that no file, order or number of sentences can put held-out words into training.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
import dataclasses
import re
import typing

import numpy as np

from data_pipelines.synthetic.grammar import Split, split_of
from melllm_jax.errors import Mistake

ORDER = 2  # in the seed: separates the order of sentences from what else is drawn

# A sentence ends in white space that follows its last mark and comes before no small letter.
END = re.compile(r"[.!?…]+[\"'”’)]*( +)(?=[-–—]* ?[\"'“‘(]*[A-Z0-9])")
ABBREVIATION = re.compile(
    r"(?:^|[ (\"“'‘])(?:[A-Z]|Mrs?|Ms|Drs?|St|Prof|Rev|Hon|Gen|Col|Capt|Sgt)\.$"
)
CLAUSE = re.compile(r"(?<=[,;:—–])[\"'”’)]* +| +(?=--)|(?<=--) +")
EDGE = " -–—"  # what is no part of a sentence at either end
WORD = re.compile(r"[a-z]+(?:'[a-z]+)*")
UNREAD = re.compile(r"[^A-Za-z0-9 .,;:!?'\"()…‘’“”–—-]")


@dataclasses.dataclass(frozen=True)
class Sentences:
    """The sentences of a text."""

    splits: Mapping[Split, tuple[str, ...]]  # each in the order of the text
    left_out: Mapping[str, int]  # by reason, most first

    def draw(self, split: Split, count: int, seed: int) -> tuple[str, ...]:
        """The first `count` sentences of a split, in an order that the seed alone decides.

        Raises Mistake where the text has fewer.
        """
        found = self.splits[split]
        if count > len(found):
            raise Mistake(f"{split}={count}: the text has {len(found)} sentences of that split")
        rng = np.random.default_rng((seed, typing.get_args(Split).index(split), ORDER))
        return tuple(found[place] for place in rng.permutation(len(found))[:count])


def find_sentences(documents: Iterable[str], fewest: int, most: int) -> Sentences:
    """The sentences of `fewest` to `most` words, each once, as they are written.

    A longer sentence is cut after its commas, semicolons, colons and dashes, into parts that each
    take as many words as fit. Left out, and counted by reason: what has too few words, or too many
    without such a mark; what has a digit, which may be read in several ways, or a character that is
    neither an English letter nor a mark of prose; and repeated words. Raises Mistake where nothing
    is left.
    """
    splits: dict[Split, list[str]] = {"train": [], "dev": [], "test": []}
    left_out: Counter[str] = Counter()
    known = set[str]()
    for sentence in _cut_documents(documents, most):
        words = " ".join(spoken_words(sentence))
        reason = _flaw(sentence, fewest, most) or ("repeated" if words in known else "")
        if reason:
            left_out[reason] += 1
            continue
        known.add(words)
        splits[split_of(words)].append(sentence)
    if not known:
        parts = ", ".join(f"{count} {reason}" for reason, count in left_out.most_common())
        raise Mistake(f"the text has no sentence of {fewest} to {most} words: {parts or 'empty'}")
    found = {split: tuple(some) for split, some in splits.items()}
    return Sentences(found, dict(left_out.most_common()))


def spoken_words(text: str) -> list[str]:
    """The words of a text in small letters, without its marks: "Don't, Ann." is don't, ann."""
    return WORD.findall(text.lower().replace("’", "'"))


def _cut_documents(documents: Iterable[str], most: int) -> Iterator[str]:
    for document in documents:
        for sentence in _cut_sentences(" ".join(document.split())):
            for part in _cut_clauses(sentence, most):
                if part := part.strip(EDGE):
                    yield part


def _cut_sentences(text: str) -> Iterator[str]:
    start = 0
    for end in END.finditer(text):
        if not ABBREVIATION.search(text, start, end.start(1)):
            yield text[start : end.start(1)]
            start = end.end()
    yield text[start:]


def _cut_clauses(sentence: str, most: int) -> Iterator[str]:
    """The sentence, or where it has more than `most` words its clauses, as many at once as fit."""
    if len(spoken_words(sentence)) <= most:
        yield sentence
        return
    cuts = [0, *(mark.end() for mark in CLAUSE.finditer(sentence)), len(sentence)]
    start = 0
    for stop, following in zip(cuts[1:], [*cuts[2:], len(sentence)], strict=True):
        longer = len(spoken_words(sentence[start:following])) > most
        if longer or stop == len(sentence):
            yield sentence[start:stop]
            start = stop


def _flaw(sentence: str, fewest: int, most: int) -> str:
    """Why a sentence is left out; empty where it is not."""
    if unread := UNREAD.search(sentence):
        kind = "letter that is not English" if unread[0].isalpha() else "sign that is not read"
        return f"with a {kind}"
    if re.search(r"[0-9]", sentence):
        return "with a digit"
    count = len(spoken_words(sentence))
    if count < fewest:
        return f"of fewer than {fewest} words"
    return f"of more than {most} words" if count > most else ""
