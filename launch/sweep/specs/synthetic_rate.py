"""Token rate on synthetic speech in noise: r 1, 2, 4, 8, 16 at equal audio, one size.

Layers of 0.5 M weights, 800 updates. Rows shrink with the rate so that each holds the same
utterances, see `budgets.token_rates`: measured, 44.1 to 44.6 s of sound an update at every r.
3.8e13 FLOPs together, half of them at r 1.

The corpus and its tokenizer are those of `synthetic`.

melllm sweep run synthetic_rate --data NOISE --set text.tokenizer=PIECES --workdir sweeps/rate
"""

from launch.sweep import budgets, spec

PIECES = 128  # ids of the quickstart's tokenizer, rounded up
TEXT = 9.2  # positions of text, ends included, a second of sound: measured on that corpus


def cells() -> list[spec.Cell]:
    """5 cells."""
    lengths = {"optim.steps": [800], "model.v": [PIECES], "checkpoints.every": [100]}
    (cell,) = budgets.with_ladder_rate(spec.grid(budgets.sizes([0.5e6]), lengths))
    return budgets.token_rates(cell, (1, 2, 4, 8, 16), TEXT)
