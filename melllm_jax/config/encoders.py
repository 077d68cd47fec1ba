"""Sizes of the speech encoders that a front end may have. Plain data, no JAX."""

import dataclasses

from melllm_jax.config.validation import require


@dataclasses.dataclass(frozen=True)
class Conformer:
    """Phi-4-multimodal's Conformer. Its width is that of the conv stem before it, `model.c`."""

    l: int = 24  # num_blocks
    n: int = 16  # num_attention_heads, which share the width evenly
    f: int = 1536  # intermediate_size of both MLPs of a block
    taps: int = 3  # kernel_size: positions that the depth-wise convolution sees, itself the last
    chunk: int = 0  # chunk_size: positions of a chunk; 0 (theirs: -1) is a clip as one chunk
    left: int = 18  # left_chunk: chunks before its own that a position sees
    distance: int = 500  # bias_max_distance: positions apart that still have a bias of their own

    def __post_init__(self) -> None:
        for name in ("l", "n", "f", "taps", "distance"):
            value = getattr(self, name)
            require(f"model.conformer.{name}", value, value > 0, "must be positive")
        for name in ("chunk", "left"):
            value = getattr(self, name)
            require(f"model.conformer.{name}", value, value >= 0, "must be 0 or more")
