"""The ladder's foot on synthetic speech in noise: four sizes × four budgets of updates.

Layers of 0.12 to 1 M weights, 400 to 3,200 updates of 8 rows of 128 positions. Each update reads 26
utterances, so that 84,000 of them are never read twice; a smaller corpus is, and the law then
holds for repeated data. Noise from 20 dB over the speech to 10 dB below it makes some words easy
and some hopeless: without it, losses of so small a language fall to 0 and follow no power law.
About 8e13 FLOPs: half an hour on two cores.

melllm data speak NOISE --train 84000 --dev 500 --test 2000 --noise -20 10
melllm data tokenizer NOISE --size 0 --out PIECES
melllm sweep run synthetic --data NOISE --set text.tokenizer=PIECES --workdir sweeps/synthetic
"""

from launch.sweep import budgets, spec

PIECES = 128  # ids of the quickstart's tokenizer, rounded up
COUNTS = (0.12e6, 0.25e6, 0.5e6, 1e6)
UPDATES = (400, 800, 1600, 3200)


def cells() -> list[spec.Cell]:
    """16 cells: every size at every number of updates, the rate by the ladder's rule."""
    lengths = {"optim.steps": UPDATES, "model.v": [PIECES], "checkpoints.every": [100]}
    return budgets.with_ladder_rate(spec.grid(budgets.sizes(COUNTS), lengths))
