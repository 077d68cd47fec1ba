"""What cannot be used, with a reason: as an exception where it is found, as a record where counted.

Reasons are a few fixed words, the same in training, evaluation and preparing; messages are one line
for a reader.
"""

import dataclasses
from typing import Generic, TypeVar

from melllm_jax.errors import Mistake

Corpus = TypeVar("Corpus", int, str)
MALFORMED = "malformed row"  # the reason of a line of a manifest that says what cannot be


class Unusable(Mistake):
    """An utterance, its sound or its text that cannot be used; `reason` is what is counted."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason

    def __reduce__(self) -> tuple[type["Unusable"], tuple[str, str]]:
        """Pickles with its reason, to cross processes: by default only the message would."""
        return type(self), (self.reason, str(self))


@dataclasses.dataclass(frozen=True)
class Reject(Generic[Corpus]):
    """Stands for an unusable utterance in a stream of examples or among prepared records."""

    source: Corpus  # index in Data.sources while training, name of the corpus while preparing
    id: str
    reason: str  # few fixed words, to count by
    detail: str  # one line for a reader


def first_line(error: Exception) -> str:
    """The first line of a library's error message, to put into one line of ours."""
    return next(iter(str(error).splitlines()), repr(error))
