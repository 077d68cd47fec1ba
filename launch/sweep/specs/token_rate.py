"""Token rate: r 1, 2, 4, 8, 16 (100 to 6.25 Hz) at equal audio, one size of 64 M weights.

Every cell reads 20,000 h of sound, as many hours an update: rows hold the same utterances and are
as long as these are at that r (`budgets.token_rates`). r 1 costs four times r 8.

melllm sweep run token_rate --data DIR --workdir sweeps/rate --dry-run
"""

from launch.sweep import budgets, spec

HOURS = 20_000.0  # read in all, epochs together
ROWS = budgets.RowShares(speech=0.43, fill=0.97)  # at r 8
TEXT = 16.0  # bytes of text a second of sound


def cells() -> list[spec.Cell]:
    """5 cells."""
    (cell,) = budgets.with_ladder_rate([budgets.hours({"preset": "ladder_64m"}, HOURS, ROWS)])
    return budgets.token_rates(cell, (1, 2, 4, 8, 16), TEXT)
