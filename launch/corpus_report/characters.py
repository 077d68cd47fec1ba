"""Counts the characters of texts and marks those that are seldom intended."""

from collections import Counter
from collections.abc import Mapping
import dataclasses
import unicodedata

# Control, format, surrogate, private use, unassigned; separators other than the blank.
ODD = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp", "Zs")
FOREIGN = 0.01  # share of the letters below which an alphabet is taken for foreign: а among a
BLANK, UNSEEN = "is another blank", "does not show"
HIDDEN = (BLANK, UNSEEN)  # why a character has no picture
REPLACEMENT = "\ufffd"  # where a decoder gave up


@dataclasses.dataclass(frozen=True)
class Letter:
    """A character that occurs in the texts."""

    character: str
    count: int
    odd: str  # why it is seldom intended; "" for an ordinary one


def letters(counts: Mapping[str, int]) -> tuple[Letter, ...]:
    """The characters counted, most frequent first.

    Odd are those that do not show (control characters, other blanks), U+FFFD, and the letters of
    an alphabet that fewer than 1 % of the letters belong to: Cyrillic in English, mostly.
    """
    scripts: Counter[str] = Counter()
    for character, count in counts.items():
        scripts[_script(character)] += count
    total = sum(count for script, count in scripts.items() if script)
    ordered = sorted(counts, key=lambda character: (-counts[character], character))
    rare = {script for script, count in scripts.items() if script and count < FOREIGN * total}
    return tuple(Letter(c, counts[c], _odd(c, rare)) for c in ordered)


def code_point(character: str) -> str:
    """U+0061, and its name in Unicode where it has one."""
    return f"U+{ord(character):04X} {unicodedata.name(character, '')}".rstrip()


def _odd(character: str, rare: set[str]) -> str:
    kind = unicodedata.category(character)
    if character == REPLACEMENT:
        return "stands for what could not be decoded"
    if kind in ODD and character != " ":
        return BLANK if kind.startswith("Z") else UNSEEN
    script = _script(character)
    return f"letters are seldom {script} here" if script in rare else ""


def _script(character: str) -> str:
    """The first word of a letter's name, such as LATIN; "" for what is no letter."""
    if not character.isalpha():
        return ""
    return unicodedata.name(character, "").partition(" ")[0]
