"""Tells whether runs can show apart what parameters and what tokens do to the loss.

Where the tokens of all runs follow from their parameters, D = c·N^p, a law and the one with its two
terms exchanged, A/N^alpha for B·c^-beta/N^(p·beta), have the same loss in every run: a may then be
any of two values, or of all between them where the terms have nearly one exponent. A fit ends at
one of them, and resamples that are searched from there do not see the others. Only how far the runs
lie off that line in log N and log D speaks for one or the other.
"""

import dataclasses
import math

from jaxtyping import Float
import numpy as np

from launch.scaling.parametric_fit import DELTA

# Of standard errors: a 95 % interval of the share that tokens have in the loss's fall is then as
# wide as from none of it to all of it, so that the runs rule nothing out.
CLEAR = 2 * 1.96
NARROW = 0.3  # of the spread of log D along the line, that off it: beyond, the runs are no line

Vector = Float[np.ndarray, " points"]


@dataclasses.dataclass(frozen=True)
class DesignLine:
    """The line through log D over log N by least squares, and what lies off it."""

    power: float  # p of D = c·N^p
    factor: float  # c
    spread: float  # root mean square of log D off the line
    length: float  # standard deviation of log D along it
    apart: float  # of log loss: see `design_line`
    hidden: float  # of log loss: what noise hides in as many runs

    @property
    def reason(self) -> str:
        """Why the runs do not determine a law; empty where they do.

        On a line that does not rise, as that of one budget, one term falls where the other grows,
        and they are told apart by that.
        """
        narrow = self.power > 0 and self.spread <= NARROW * self.length
        if not narrow or self.apart >= self.hidden:
            return ""
        return (
            f"tokens: are {self.factor:.3g} · params^{self.power:.3g} to {100 * self.spread:.2f} "
            "%, a line in logarithms: what tokens do to the loss and what parameters do cannot be "
            "told apart, so that a and the best split of a budget are undetermined (off the line "
            f"they differ by {100 * self.apart:.2f} % of the loss, and noise hides up to "
            f"{100 * self.hidden:.2f} %): train some sizes on other numbers of tokens"
        )


def design_line(n: Vector, d: Vector, loss: Vector, off: Vector, constants: int) -> DesignLine:
    """The line of runs with `n` parameters and `d` tokens, and whether their noise hides the rest.

    `off` is log loss less that of a law of so many constants. Of all laws with the same losses on
    the line, the two that are furthest apart let the loss fall by parameters alone and by tokens
    alone. In a run that lies log D = delta off the line they differ by delta times the slope of log
    loss over log D along it, whatever the law: `apart` is the root mean square of that. Of n runs,
    the share that tokens have in the fall is known to a standard error of noise / (√n · apart), and
    must be known to better than between none and all.

    The noise is that of `off`, and at least the DELTA below which the fit itself knows none:
    runs of rounded tokens are off the line by next to nothing.
    """
    x, y, z = np.log(n), np.log(d), np.log(loss)
    power, height = (float(value) for value in np.polyfit(x, y, 1))
    spread = float(np.sqrt(np.mean((y - power * x - height) ** 2)))
    fall = abs(float(np.polyfit(x, z, 1)[0]))  # of log loss over log N
    freedom = max(len(n) - constants, 1)
    noise = max(float(np.sqrt(np.sum(off**2) / freedom)), DELTA)
    return DesignLine(
        power=power,
        factor=math.exp(height),
        spread=spread,
        length=abs(power) * float(x.std()),
        apart=spread * fall / abs(power) if power else math.inf,
        hidden=CLEAR * noise / math.sqrt(len(n)),
    )
