"""Computes how many chips a data rate feeds, from the FLOPs of an update and of a chip."""

import dataclasses

from melllm_jax import chips, flops
from melllm_jax.config.run import Run
from melllm_jax.errors import Mistake


@dataclasses.dataclass(frozen=True)
class FeedRate:
    """How many chips that train a run a rate of positions feeds."""

    chip: str
    mfu: float  # share of the chip's peak that training is assumed to reach
    positions: float  # that one chip trains on in a second, padding included
    chips: float  # that the rate feeds


def feed_rate(run: Run, positions: float, chip: str, mfu: float) -> FeedRate:
    """`positions` a second against what a chip trains on: peak · mfu / FLOPs a position.

    FLOPs a position are those of `flops.update_flops`, which counts every position of a row, and of
    a teacher. Raises Mistake for a chip that is not known and a share that is none.
    """
    known = chips.find_chip(chip)
    if known is None:
        raise Mistake(f"chip={chip}: is none of {', '.join(chips.CHIPS)}")
    if not 0 < mfu <= 1:
        raise Mistake(f"mfu={mfu}: must lie in (0, 1]")
    work = flops.update_flops(run) + flops.distillation_flops(run)
    trained = known.flops * mfu * run.data.b * run.data.t / work
    return FeedRate(chip, mfu, trained, positions / trained)
