"""How many chips a rate of reading feeds: arithmetic on what an update costs and a chip can do."""

import dataclasses

from melllm_jax import flops
from melllm_jax.config import Run
from melllm_jax.errors import Mistake


@dataclasses.dataclass(frozen=True)
class Feeding:
    """What a rate of positions is to chips that train a run."""

    chip: str
    mfu: float  # share of the chip's peak that training is assumed to reach
    positions: float  # that one chip trains on in a second, padding included
    chips: float  # that the rate feeds


def feeding(run: Run, positions: float, chip: str, mfu: float) -> Feeding:
    """`positions` a second against what a chip trains on: peak · mfu / FLOPs a position.

    FLOPs a position are those of `flops.step`, which counts every position of a row. Raises
    Mistake for a chip that is not known and a share that is none.
    """
    found = flops.chip(chip)
    if found is None:
        raise Mistake(f"chip={chip}: is none of {', '.join(flops.CHIPS)}")
    if not 0 < mfu <= 1:
        raise Mistake(f"mfu={mfu}: must lie in (0, 1]")
    trained = found.flops * mfu * run.data.b * run.data.t / flops.step(run)
    return Feeding(chip, mfu, trained, positions / trained)
