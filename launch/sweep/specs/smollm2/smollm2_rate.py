"""Token rates before a pretrained LLM: SmolLM2-135M at 25 and 6.25 Hz, with the same sound.

12.5 Hz is the first cell of `smollm2_front`, whose corpus and updates these have. r 4 costs 1.6
times as much as r 8.

melllm sweep run smollm2_rate --workdir sweeps/smollm2_rate
"""

from launch.sweep import budgets, spec
from launch.sweep.specs.smollm2.smollm2_front import COMMON

TEXT = 11.0  # positions of text and of the chat template a second of sound


def cells() -> list[spec.Cell]:
    """2 cells."""
    rates = budgets.token_rates({"preset": COMMON["preset"]}, (4, 16), TEXT)
    return [COMMON | rate for rate in rates]
