"""Where LoRA matters in SmolLM2-135M: as it starts on the upper 7, 15 and 22 of 30 layers.

The linear front end and the rest of `smollm2_front`, whose first cell trains LoRA on all. 800
updates, about an hour a cell on two cores.

melllm sweep run smollm2_layers --workdir sweeps/smollm2_layers
"""

from launch.sweep import spec
from launch.sweep.specs.smollm2.smollm2_front import COMMON

LAYERS = 30
UPPER = (7, 15, 22)  # layers whose LoRA stays as it starts


def cells() -> list[spec.Cell]:
    """3 cells."""
    frozen = [list(range(LAYERS - upper, LAYERS)) for upper in UPPER]
    return spec.grid([COMMON], {"optim.freeze": frozen})
