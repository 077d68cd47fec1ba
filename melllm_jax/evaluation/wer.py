"""Scores transcripts by word error rate, with the names of the normaliser and the scorer.

What must hold: a figure travels with both names and their versions, as rates under different ones
cannot be compared.
"""

from collections.abc import Callable, Sequence
import dataclasses
import importlib.metadata
from typing import Literal

from melllm_jax.errors import Mistake

Normalizer = Literal["whisper", "none"]
INSTALL = 'pip install "melllm_jax[eval]"'


@dataclasses.dataclass(frozen=True)
class Score:
    """Word errors over a set: wer = (substitutions + deletions + insertions) / words."""

    wer: float  # 0 is perfect; over 1 where more is inserted than was said
    substitutions: int
    deletions: int
    insertions: int
    hits: int  # words that are right
    words: int  # in the references that count
    utterances: int  # that count
    empty: int  # left out: nothing remains of their reference
    normalizer: str  # with its library's version, and that of what is mended
    scorer: str  # with its version


def score_transcripts(
    references: Sequence[str], hypotheses: Sequence[str], normalizer: Normalizer
) -> Score:
    """Word errors of the hypotheses, pooled over all utterances (not a mean of their rates).

    "whisper" is Whisper's English normaliser, which the Open ASR Leaderboard applies, mended as
    `normalizer` says; "none" takes the words between white space as they are. As on the
    leaderboard, an utterance whose reference is empty once normalised is left out with whatever its
    hypothesis holds, and counted in `empty`: a rate in words has nothing to divide by there. An
    empty hypothesis is all deletions. Raises Mistake where the lengths differ, where no reference
    has a word, and where the extra `eval` is not installed.
    """
    try:
        import jiwer
        from whisper_normalizer.english import EnglishTextNormalizer

        from melllm_jax.evaluation.normalizer import WhisperNormalizer
    except ImportError as error:
        raise Mistake(f"word error rates need the extra eval ({error}): {INSTALL}") from error
    if len(references) != len(hypotheses):
        raise Mistake(f"{len(references)} references cannot face {len(hypotheses)} hypotheses")
    rewritten: Callable[[str], str]
    if normalizer == "whisper":
        rewritten, name = WhisperNormalizer(EnglishTextNormalizer()), WhisperNormalizer.name
    else:
        rewritten, name = _single_spaced, "none"
    pairs = [(rewritten(r), rewritten(h)) for r, h in zip(references, hypotheses, strict=True)]
    spoken = [pair for pair in pairs if pair[0].split()]
    if not spoken:
        raise Mistake(f"none of {len(references)} references has a word (normalizer {name})")
    counted = jiwer.process_words([r for r, _ in spoken], [h for _, h in spoken])
    return Score(
        wer=counted.wer,
        substitutions=counted.substitutions,
        deletions=counted.deletions,
        insertions=counted.insertions,
        hits=counted.hits,
        words=counted.hits + counted.substitutions + counted.deletions,
        utterances=len(spoken),
        empty=len(pairs) - len(spoken),
        normalizer=name,
        scorer=f"jiwer {importlib.metadata.version('jiwer')}",
    )


def _single_spaced(text: str) -> str:
    """One space between words: jiwer would take a tab for a letter."""
    return " ".join(text.split())
