"""What a teacher is worth by the amount of sound: 0.5, 2 and 8 h, with and without it.

400 updates, which read some 2.8 h of sound: the least is read six times, the most in part. What
`aura_systems` says makes checkpoints and corpus.

melllm sweep run aura_data --workdir sweeps/aura_data
"""

from launch.sweep import spec
from launch.sweep.specs.aura.aura_systems import CORPUS, LLM, TAUGHT, UNTAUGHT

HOURS = (0.5, 2.0, 8.0)
COMMON = {"init": LLM, "optim.steps": 400, "optim.warmup": 20}


def cells() -> list[spec.Cell]:
    """6 cells."""
    amounts = [{"data.sources": [{"path": CORPUS, "hours": hours}]} for hours in HOURS]
    return spec.grid([COMMON], amounts, [UNTAUGHT, TAUGHT])
