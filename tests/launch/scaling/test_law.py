"""A law's best N and D are where its loss is least, and grow as its exponents say."""

import numpy as np
import pytest

from tests.support.laws import BESIROGLU, HOFFMANN


@pytest.mark.parametrize("law", [HOFFMANN, BESIROGLU])
@pytest.mark.parametrize("per", [6.0, 8.5])
def test_best_of_a_budget_is_where_loss_along_it_is_least(law, per):
    n, d = law.best(1e21, per)
    assert per * n * d == pytest.approx(1e21)
    sizes = n * np.geomspace(0.5, 2, 2001)
    along = law.loss(sizes, 1e21 / (per * sizes))
    assert sizes[along.argmin()] == pytest.approx(n, rel=1e-3)
    assert law.loss(n, d) <= along.min() * (1 + 1e-12)


def test_best_grows_with_the_budget_as_the_exponents_say():
    small, large = HOFFMANN.best(1e20, 6.0), HOFFMANN.best(1e24, 6.0)
    assert HOFFMANN.a == pytest.approx(0.28 / 0.62) and HOFFMANN.a + HOFFMANN.b == pytest.approx(1)
    assert large[0] / small[0] == pytest.approx(1e4**HOFFMANN.a)
    assert large[1] / small[1] == pytest.approx(1e4**HOFFMANN.b)


def test_loss_of_the_published_constants_is_that_of_chinchilla():
    # 70 B parameters on 1.4 T tokens: 1.69 + 0.083 + 0.163, as in the paper's figure 4.
    assert HOFFMANN.loss(70e9, 1.4e12) == pytest.approx(1.936, abs=0.001)
