"""Which layers of SmolLM2-135M follow Whisper tiny.en's four: five choices among its 30.

Evenly spaced over all of them, over the first third, the middle and the last; and one alone, the
last of the first third, which follows the teacher's last. What `aura_systems` says makes
checkpoints and corpus, and its last cell has them evenly among the first eight. 800 updates.

melllm sweep run aura_layers --workdir sweeps/aura_layers
"""

from launch.sweep import spec
from launch.sweep.specs.aura.aura_systems import COMMON, TAUGHT

LAYERS, TEACHERS = 30, 4
THIRD = LAYERS // 3


def cells() -> list[spec.Cell]:
    """5 cells."""
    thirds = [_evenly(first, THIRD) for first in range(0, LAYERS, THIRD)]
    students: list[spec.Cell] = [
        {"distill.student_layers": layers} for layers in (_evenly(0, LAYERS), *thirds)
    ]
    one = {"distill.teacher_layers": [TEACHERS - 1], "distill.student_layers": [THIRD - 1]}
    return spec.grid([COMMON], [TAUGHT], [*students, one])


def _evenly(first: int, count: int) -> list[int]:
    """As many layers as the teacher has, evenly among `count` from `first` on."""
    return [first + -(-(i + 1) * count // TEACHERS) - 1 for i in range(TEACHERS)]
