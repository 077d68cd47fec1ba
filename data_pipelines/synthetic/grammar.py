"""The sentences of the synthetic corpus: short orders and news about a fixed set of words.

What must hold: a sentence always belongs to the same split, which its own letters alone decide, so
that no seed and no corpus size can put a test sentence into training.
"""

from collections.abc import Mapping
import hashlib
import math
from typing import Literal

import numpy as np

Split = Literal["train", "dev", "test"]

WORDS: Mapping[str, tuple[str, ...]] = {
    slot: tuple(words.split())
    for slot, words in {
        "please": "please",
        "the": "the",
        "name": "alice henry martha oscar peter susan",
        "met": "bought lost saw wanted",
        "tend": "catch count draw feed follow wash",
        "shift": "bring clean hide move paint sell",
        "number": "two three five six seven eight nine ten twelve twenty",
        "colour": "black blue golden green orange purple red silver white yellow",
        "animals": "camels dolphins monkeys pigeons rabbits spiders tigers turtles",
        "thing": "basket bottle candle ladder piano sofa table window",
        "when": "again outside today tomorrow tonight upstairs",
    }.items()
}
FORMS: tuple[tuple[str, ...], ...] = (
    ("tend", "number", "animals"),
    ("tend", "number", "colour", "animals"),
    ("please", "tend", "number", "colour", "animals"),
    ("tend", "number", "colour", "animals", "when"),
    ("shift", "the", "colour", "thing"),
    ("please", "shift", "the", "colour", "thing", "when"),
    ("name", "met", "number", "colour", "animals"),
    ("name", "met", "number", "colour", "animals", "when"),
    ("name", "met", "the", "colour", "thing", "when"),
)


def sentence_count() -> int:
    """How many different sentences there are; no sentence has two forms."""
    return sum(math.prod(len(WORDS[slot]) for slot in form) for form in FORMS)


def split_of(text: str) -> Split:
    """The split that a sentence belongs to.

    The rule: read the first 8 bytes of the SHA-256 of its UTF-8 letters as a big-endian number; by
    its last decimal digit, 0 is test, 1 is dev, and 2 to 9 are train.
    """
    digit = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") % 10
    return "test" if digit == 0 else "dev" if digit == 1 else "train"


def sentence(split: Split, rng: np.random.Generator) -> str:
    """A sentence of the split: 3 to 6 lower-case words, the forms about equally often.

    Draws until the text falls into the split, which takes ten draws on average for dev and test.
    """
    while True:
        form = FORMS[rng.integers(len(FORMS))]
        text = " ".join(WORDS[slot][rng.integers(len(WORDS[slot]))] for slot in form)
        if split_of(text) == split:
            return text
