"""Scores transcripts by word error rate, with the names of the normaliser and the scorer.

What must hold: a figure travels with both names and their versions, as rates under different ones
cannot be compared.
"""

from collections.abc import Callable, Sequence
import dataclasses
import importlib.metadata
import types
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


@dataclasses.dataclass(frozen=True)
class UtteranceErrors:
    """The word errors of each utterance, in their order, from which intervals are drawn."""

    errors: tuple[int, ...]  # substitutions, deletions and insertions
    words: tuple[int, ...]  # in the reference; 0 where nothing remains of it, and it counts not


@dataclasses.dataclass(frozen=True)
class CharacterErrors:
    """The character errors of each utterance, in their order; a blank between words is one."""

    errors: tuple[int, ...]  # substitutions, deletions and insertions
    characters: tuple[int, ...]  # in the reference; 0 where nothing remains of it


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
    jiwer, (pairs, name) = _load_jiwer(), normalize_pairs(references, hypotheses, normalizer)
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


def count_utterance_errors(
    references: Sequence[str], hypotheses: Sequence[str], normalizer: Normalizer
) -> UtteranceErrors:
    """What `score_transcripts` pools, utterance by utterance. Raises Mistake as that does."""
    jiwer, (pairs, _) = _load_jiwer(), normalize_pairs(references, hypotheses, normalizer)
    errors, words = list[int](), list[int]()
    for reference, hypothesis in pairs:
        length = len(reference.split())
        found = jiwer.process_words(reference, hypothesis) if length else None
        errors.append(found.substitutions + found.deletions + found.insertions if found else 0)
        words.append(length)
    return UtteranceErrors(tuple(errors), tuple(words))


def count_character_errors(
    references: Sequence[str], hypotheses: Sequence[str], normalizer: Normalizer
) -> CharacterErrors:
    """What a character error rate pools, of the texts that word errors are counted in.

    Raises Mistake as `score_transcripts`, but for references that normalise to nothing.
    """
    jiwer, (pairs, _) = _load_jiwer(), normalize_pairs(references, hypotheses, normalizer)
    errors, characters = list[int](), list[int]()
    for reference, hypothesis in pairs:
        found = jiwer.process_characters(reference, hypothesis) if reference else None
        errors.append(found.substitutions + found.deletions + found.insertions if found else 0)
        characters.append(len(reference))
    return CharacterErrors(tuple(errors), tuple(characters))


def normalize_pairs(
    references: Sequence[str], hypotheses: Sequence[str], normalizer: Normalizer
) -> tuple[list[tuple[str, str]], str]:
    """Reference and hypothesis of each utterance as they are compared; the normaliser's name.

    Raises Mistake where the lengths differ, and where the extra `eval` is not installed.
    """
    if len(references) != len(hypotheses):
        raise Mistake(f"{len(references)} references cannot face {len(hypotheses)} hypotheses")
    rewritten: Callable[[str], str] = _single_spaced
    name = "none"
    if normalizer == "whisper":
        try:
            from whisper_normalizer.english import EnglishTextNormalizer

            from melllm_jax.evaluation.normalizer import WhisperNormalizer
        except ImportError as error:
            raise _missing(error) from error
        rewritten, name = WhisperNormalizer(EnglishTextNormalizer()), WhisperNormalizer.name
    pairs = [(rewritten(r), rewritten(h)) for r, h in zip(references, hypotheses, strict=True)]
    return pairs, name


def _load_jiwer() -> types.ModuleType:
    try:
        import jiwer
    except ImportError as error:
        raise _missing(error) from error
    return jiwer


def _missing(error: ImportError) -> Mistake:
    return Mistake(f"word error rates need the extra eval ({error}): {INSTALL}")


def _single_spaced(text: str) -> str:
    """One space between words: jiwer would take a tab for a letter."""
    return " ".join(text.split())
