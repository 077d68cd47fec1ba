"""The scaling law: loss of a model of N parameters after D tokens; the best N and D of a budget.

L(N, D) = E + A/N^alpha + B/D^beta, Hoffmann et al. 2022 (arXiv 2203.15556), equation 2.
"""

import dataclasses
import math
from typing import TypeVar

from jaxtyping import Float
import numpy as np

Number = TypeVar("Number", float, Float[np.ndarray, " points"])
LARGEST = 90.0  # logarithm of 1e39, beyond any size


@dataclasses.dataclass(frozen=True)
class Law:
    """The five constants of a law, named as in the paper."""

    E: float  # noqa: N815  nats a token that no model and no data remove
    A: float  # noqa: N815  nats a token, of a model of one parameter
    B: float  # noqa: N815  nats a token, after one token
    alpha: float
    beta: float

    @property
    def a(self) -> float:
        """Exponent of the best N in the budget."""
        return self.beta / (self.alpha + self.beta)

    @property
    def b(self) -> float:
        """Exponent of the best D in the budget."""
        return self.alpha / (self.alpha + self.beta)

    def loss(self, n: Number, d: Number) -> Number:
        """Loss in nats a token of a model of `n` parameters after `d` tokens."""
        return self.E + self.A * n**-self.alpha + self.B * d**-self.beta

    def best(self, flops: Number, per: float) -> tuple[Number, Number]:
        """N and D of least loss where training takes `per`·N·D = `flops`: equation 4."""
        ratio = math.log(self.alpha * self.A) - math.log(self.beta * self.B)
        # It may overflow for a resample that leaves the law undetermined, whose value matters as a
        # percentile only.
        scale = math.exp(min(max(ratio / (self.alpha + self.beta), -LARGEST), LARGEST))
        product = flops / per
        return scale * product**self.a, product**self.b / scale
