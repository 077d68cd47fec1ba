"""Sizes of the encoders that a front end may have: plain data, no JAX.

A size is named by its letter of the one alphabet (see `melllm_jax.sharding`), here of the encoder's
own network: its d is not the LLM's.
"""

import dataclasses

from melllm_jax.config.validation import require


@dataclasses.dataclass(frozen=True)
class Whisper:
    """Sizes of a Whisper encoder; by default those of tiny and tiny.en."""

    d: int = 384  # d_model
    n: int = 6  # encoder_attention_heads
    f: int = 1536  # encoder_ffn_dim
    l: int = 4  # encoder_layers
    positions: int = 1500  # max_source_positions, of 20 ms: longer clips are heard in windows

    def __post_init__(self) -> None:
        for name in ("d", "n", "f", "l", "positions"):
            size = getattr(self, name)
            require(f"model.whisper.{name}", size, size > 0, "must be positive")
        heads = self.d % self.n == 0
        require("model.whisper.n", self.n, heads, f"heads cannot share d={self.d} evenly")
        pairs = self.d % 2 == 0 and self.d >= 4
        require("model.whisper.d", self.d, pairs, "must be an even number of 4 or more")

    @property
    def h(self) -> int:
        """Width of a head."""
        return self.d // self.n


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
