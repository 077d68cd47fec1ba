"""Sizes of the speech encoders: plain data, no JAX.

A size is named by its letter of the one alphabet (see `melllm_jax.sharding`), here of the encoder's
own network: its d is not the LLM's.
"""

import dataclasses
import math
from typing import Literal

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


@dataclasses.dataclass(frozen=True)
class WavLM:
    """Sizes of a WavLM; by default those of wavlm-base and wavlm-base-plus.

    The large one has layer norms in its stem and before attention and MLP. The causal form is that
    of FocalCodec-Stream (see `encoders.wavlm_stream`): it has the same weights.
    """

    d: int = 768  # hidden_size
    n: int = 12  # num_attention_heads
    f: int = 3072  # intermediate_size
    l: int = 12  # num_hidden_layers
    channels: tuple[int, ...] = (512,) * 7  # conv_dim, of each convolution of the stem
    kernels: tuple[int, ...] = (10, 3, 3, 3, 3, 2, 2)  # conv_kernel
    strides: tuple[int, ...] = (5, 2, 2, 2, 2, 2, 2)  # conv_stride: 320 samples a position
    bias: bool = False  # conv_bias
    norm: Literal["group", "layer"] = "group"  # feat_extract_norm: of the first alone, or of each
    taps: int = 128  # num_conv_pos_embeddings: positions that the convolution of positions sees
    groups: int = 16  # num_conv_pos_embedding_groups
    buckets: int = 320  # num_buckets: distances with a bias of their own, of both signs
    distance: int = 800  # max_bucket_distance: beyond it all distances are one
    stable: bool = False  # do_stable_layer_norm: norms stand before attention and MLP, not after
    last_norm: bool = True  # stable: a norm after the last block, which a codec's first layers lack
    causal: bool = False  # no position sees beyond its chunk
    window: int = 512  # causal: positions that one sees, up to the end of its chunk
    look_ahead: int = 3  # causal: positions of a chunk after its first; 20 ms each

    def __post_init__(self) -> None:
        for name in ("d", "n", "f", "l", "taps", "groups", "window"):
            size = getattr(self, name)
            require(f"wavlm.{name}", size, size > 0, "must be positive")
        count = len(self.channels)
        for name in ("channels", "kernels", "strides"):
            sizes = getattr(self, name)
            fits = len(sizes) == count > 0 and all(size > 0 for size in sizes)
            rule = f"must be positive numbers, {max(count, 1)} as wavlm.channels has"
            require(f"wavlm.{name}", sizes, fits, rule)
        for name in ("n", "groups"):
            size = getattr(self, name)
            rule = f"cannot share d={self.d} evenly"
            require(f"wavlm.{name}", size, self.d % size == 0, rule)
        fits = self.buckets > 0 and self.buckets % 4 == 0
        require("wavlm.buckets", self.buckets, fits, "must be a multiple of 4")
        rule = f"must be more than a quarter of wavlm.buckets={self.buckets}"
        require("wavlm.distance", self.distance, self.distance > self.buckets // 4, rule)
        fits = self.last_norm or self.stable
        rule = "may be false of wavlm.stable alone: the other's stands before the first block"
        require("wavlm.last_norm", self.last_norm, fits, rule)
        if self.causal:
            rule = "takes statistics of the whole sound: wavlm.causal needs layer"
            require("wavlm.norm", self.norm, self.norm == "layer", rule)
            fits = 0 <= self.look_ahead < self.window
            rule = f"must be 0 or more, and less than wavlm.window={self.window}"
            require("wavlm.look_ahead", self.look_ahead, fits, rule)

    @property
    def h(self) -> int:
        """Width of a head."""
        return self.d // self.n

    @property
    def hop(self) -> int:
        """Samples from one position to the next."""
        return math.prod(self.strides)

    @property
    def chunk(self) -> int:
        """Positions that the causal form hears at once."""
        return self.look_ahead + 1
