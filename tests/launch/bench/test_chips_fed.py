import pytest

from launch.bench.chips_fed import feed_rate
from melllm_jax import flops
from melllm_jax.errors import Mistake
from melllm_jax.presets import mel_llm, small


def test_feeding_is_what_a_chip_does_over_what_a_position_costs():
    run = mel_llm.mel_llm_asr_full_v5p_128()
    found = feed_rate(run, 1e6, "TPU v5p", 0.5)
    a_position = flops.update_flops(run) / (run.data.b * run.data.t)
    assert a_position == pytest.approx(
        6 * flops.count_parameters(run).total, rel=0.2
    )  # 6 N, the rule
    assert found.positions == pytest.approx(0.5 * 459e12 / a_position)
    assert found.chips == pytest.approx(1e6 / found.positions)
    half = feed_rate(run, 1e6, "TPU v5p", 0.25)
    assert half.chips == pytest.approx(2 * found.chips)


@pytest.mark.parametrize(
    ("chip", "mfu", "rule"),
    [
        ("v5q", 0.5, "chip=v5q: is none of TPU v4, "),
        ("H100", 0.0, r"mfu=0.0: must lie in \(0, 1\]"),
        ("H100", 1.5, r"mfu=1.5: must lie in \(0, 1\]"),
    ],
)
def test_feeding_refuses_what_is_no_chip_and_no_share(chip, mfu, rule):
    with pytest.raises(Mistake, match=rule):
        feed_rate(small.quickstart(), 1.0, chip, mfu)
