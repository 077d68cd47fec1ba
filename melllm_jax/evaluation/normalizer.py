"""Whisper's English normaliser, mended where it would hide or invent errors.

The library's own drops the marks that are the vowels of Hindi, Tamil, Thai and others, or makes
blanks of them; it leaves the last of some dots, or a symbol at an end, behind as a word; and it
fails on a number too long for Python. Any other text comes out as from the library.
"""

from collections.abc import Callable, Iterator
import contextlib
import importlib.metadata
import sys
import unicodedata

import regex

LIBRARY = "whisper-normalizer"
VERSION = 1  # of what is mended here: a change of any result is a new one
# A letter that is not Latin with its marks, joiners between them. Accents of Latin letters go, as
# the library has it: it writes café as cafe.
_CLUSTER = regex.compile(r"[\p{L}--\p{Script=Latin}][\p{M}\p{Cf}]*", regex.V1)
# Marks that choose a glyph, such as variation selectors, are ignorable: they go as well.
_MARK = regex.compile(r"[\p{M}--\p{Default_Ignorable_Code_Point}]", regex.V1)
_PRIVATE = 0xF0000  # plus a mark's number (below 0x20000): a character of private use
_SYMBOLS = frozenset(".%$¢€£")  # what the library keeps for the sake of numbers


class WhisperNormalizer:
    """Makes words of a text that may be compared: case, punctuation, spelling and numerals go."""

    name = f"{LIBRARY} {importlib.metadata.version(LIBRARY)} English + melllm_jax {VERSION}"

    def __init__(self, english: Callable[[str], str]) -> None:
        """Mends `english`, the library's `EnglishTextNormalizer`, which an extra brings."""
        self._english = english

    def __call__(self, text: str) -> str:
        """Its words with a blank between each two; a mark that counts is of private use in them."""
        text = _protect_marks(text)
        try:
            found = self._english(text)
        except (AssertionError, ValueError):  # how the library fails on over 4,300 digits
            with _numbers_of_any_length():
                found = self._english(text)
        words = (word.rstrip(".") for word in found.split())
        return " ".join(word for word in words if not _SYMBOLS.issuperset(word))


def _protect_marks(text: str) -> str:
    """The text with a character that the library leaves alone for each mark that counts."""
    if text.isascii():
        return text
    # Lower case first: what a capital sigma becomes depends on the letters after its marks.
    return _CLUSTER.sub(lambda found: _protect_cluster(found[0]), text.lower())


def _protect_cluster(cluster: str) -> str:
    private = lambda mark: chr(_PRIVATE + ord(mark[0]))
    replaced, count = _MARK.subn(private, unicodedata.normalize("NFKD", cluster))
    return replaced if count else cluster


@contextlib.contextmanager
def _numbers_of_any_length() -> Iterator[None]:
    """A context without Python's limit on the digits of a number that is read or written."""
    limit = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(0)
    try:
        yield
    finally:
        sys.set_int_max_str_digits(limit)
