"""How SmolLM2-135M is compared with its teacher: loss, head and time, each changed by itself.

From 1 - cosine through a norm and a matrix, of the mean of the teacher's states within a position:
squares of normalised states, or both; a matrix alone; the first state, or what lies between the
middle two. The last cell of `aura_systems` is where all begin, and says what makes checkpoints and
corpus. 800 updates.

melllm sweep run aura_loss --workdir sweeps/aura_loss
"""

from launch.sweep import spec
from launch.sweep.specs.aura.aura_systems import COMMON, TAUGHT

CHANGES: list[spec.Cell] = [
    {},
    {"distill.loss": "mse"},
    {"distill.loss": "both"},
    {"distill.head": "linear"},
    {"distill.time": "strided"},
    {"distill.time": "linear"},
]


def cells() -> list[spec.Cell]:
    """6 cells."""
    return spec.grid([COMMON], [TAUGHT], CHANGES)
