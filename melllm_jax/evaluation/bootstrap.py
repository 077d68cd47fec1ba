"""How sure a word error rate is, and a difference of two: bootstrap over utterances.

Utterances are drawn again with replacement, as many as there are, and the rate of each draw is the
errors in it over the words in it. Source: Bisani and Ney, "Bootstrap estimates for confidence
intervals in ASR performance evaluation" (ICASSP 2004), whose "probability of improvement" is
`below` here. Utterances count as independent: those of one speaker are not, and then an interval is
too narrow.
"""

from collections.abc import Iterator
import dataclasses

from jaxtyping import Float, Int
import numpy as np

from melllm_jax.errors import Mistake

RESAMPLES, LEVEL = 10_000, 0.95
_BLOCK = 1 << 20  # indices drawn at once
Counts = Int[np.ndarray, "utterances"]


@dataclasses.dataclass(frozen=True)
class Interval:
    """Where a rate lies."""

    low: float
    high: float
    level: float  # share of the resamples between both
    resamples: int


@dataclasses.dataclass(frozen=True)
class PairedDifference:
    """A rate less another over the same utterances."""

    difference: float
    low: float
    high: float
    below: float  # share of the resamples in which it is below 0: how sure "better" is
    level: float
    resamples: int
    utterances: int


def wer_interval(
    errors: Counts, words: Counts, *, resamples: int = RESAMPLES, seed: int = 0
) -> Interval:
    """The interval of sum(errors) / sum(words).

    Raises Mistake where no utterance has a word.
    """
    counted = _counted(errors, words)
    drawn = np.concatenate([e / w for e, w in _resamples(counted, resamples, seed)])
    low, high = _quantiles(drawn)
    return Interval(low, high, LEVEL, resamples)


def mean_interval(
    values: Float[np.ndarray, "utterances"], *, resamples: int = RESAMPLES, seed: int = 0
) -> Interval:
    """The interval of the mean of a score that each utterance has. Raises Mistake for no value."""
    if not len(values):
        raise Mistake("none of 0 utterances has a score: there is nothing to draw from")
    counted = values, np.ones_like(values)
    drawn = np.concatenate([e / w for e, w in _resamples(counted, resamples, seed)])
    low, high = _quantiles(drawn)
    return Interval(low, high, LEVEL, resamples)


def paired_difference(
    errors: Counts,
    others: Counts,
    words: Counts,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> PairedDifference:
    """The rate of `errors` less that of `others` on the same utterances, each drawn for both.

    Raises Mistake where no utterance has a word.
    """
    counted = _counted(errors - others, words)
    drawn = np.concatenate([e / w for e, w in _resamples(counted, resamples, seed)])
    low, high = _quantiles(drawn)
    return PairedDifference(
        difference=float(counted[0].sum() / counted[1].sum()),
        low=low,
        high=high,
        below=float(np.mean(drawn < 0)),
        level=LEVEL,
        resamples=resamples,
        utterances=len(counted[0]),
    )


def _counted(errors: Counts, words: Counts) -> tuple[np.ndarray, np.ndarray]:
    """Errors and words of the utterances that have a word."""
    spoken = words > 0
    if not spoken.any():
        raise Mistake(f"none of {len(words)} references has a word: there is nothing to draw from")
    return errors[spoken], words[spoken]


def _resamples(
    counted: tuple[np.ndarray, np.ndarray], resamples: int, seed: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Errors and words [some] of each draw; the draws depend on seed and number alone."""
    errors, words = counted
    rng, size = np.random.default_rng(seed), len(errors)
    some = max(_BLOCK // size, 1)
    for start in range(0, resamples, some):
        drawn = rng.integers(size, size=(min(some, resamples - start), size))
        yield errors[drawn].sum(1), words[drawn].sum(1)


def _quantiles(drawn: np.ndarray) -> tuple[float, float]:
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
