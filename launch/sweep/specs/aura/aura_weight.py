"""How much the teacher counts: no teacher, weights of 0.1 to 3, and weights that do not last.

A weight of 0 is the run without a teacher, whose loss it would have at a higher cost. Of weight 1
two schedules more: falling to 0 at the last update, and off after half of them. What `aura_systems`
says makes checkpoints and corpus. 800 updates.

melllm sweep run aura_weight --workdir sweeps/aura_weight
"""

from launch.sweep import spec
from launch.sweep.specs.aura.aura_systems import COMMON, TAUGHT, UNTAUGHT, UPDATES

WEIGHTS = (0.1, 0.3, 1.0, 3.0)
SCHEDULES: list[spec.Cell] = [
    {"distill.schedule": "linear"},
    {"distill.schedule": "off", "distill.until": UPDATES // 2},
]


def cells() -> list[spec.Cell]:
    """7 cells."""
    taught = spec.chain(spec.grid({"distill.weight": WEIGHTS}), SCHEDULES)
    return spec.grid([COMMON], spec.chain([UNTAUGHT], spec.grid([TAUGHT], taught)))
