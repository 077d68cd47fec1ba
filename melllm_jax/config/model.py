"""Sizes of the decoder, its rotary positions and LoRA, and a model without its weights.

Plain data, no JAX. A size is named by its letter of the one alphabet (see `melllm_jax.sharding`).
"""

import dataclasses
from typing import Literal

from melllm_jax.config.encoders import Conformer, Whisper
from melllm_jax.config.features import Mel, Text
from melllm_jax.config.speech_output import MelHead
from melllm_jax.config.validation import LATER, WHERE, require


@dataclasses.dataclass(frozen=True)
class Rope:
    """Rotary positions: partial, long (LongRoPE: Phi-3-128k, Phi-4-mini) or scaled (Llama 3.1)."""

    theta: float = 10_000.0  # rope_theta
    partial: float = 1.0  # partial_rotary_factor: share of each head's width that rotates
    short: tuple[float, ...] = ()  # short_factor, one a rotated pair; () is plain rotary
    long: tuple[float, ...] = ()  # long_factor, used once a row is longer than `original`
    original: int = 4096  # original_max_position_embeddings
    longest: int = 4096  # max_position_embeddings
    factor: float = dataclasses.field(
        default=1.0, metadata=LATER
    )  # divides the rates: all (linear scaling), or with `high` those of long waves (Llama 3's)
    low: float = dataclasses.field(
        default=1.0, metadata=LATER
    )  # low_freq_factor: waves longer than original / low have their rates divided
    high: float = dataclasses.field(
        default=0.0, metadata=LATER
    )  # high_freq_factor: waves shorter than original / high keep theirs; 0 is linear scaling

    def __post_init__(self) -> None:
        require("model.rope.partial", self.partial, 0 < self.partial <= 1, "must lie in (0, 1]")
        require("model.rope.factor", self.factor, self.factor >= 1, "must be 1 or more")
        one = not self.short or self.factor == 1 and self.high == 0
        require("model.rope.factor", self.factor, one, "must be 1, and high 0, beside short")
        require("model.rope.low", self.low, self.low > 0, "must be above 0")
        above = self.high == 0 or self.high > self.low
        require("model.rope.high", self.high, above, f"must be 0 or above low={self.low}")
        same = len(self.short) == len(self.long)
        require(
            "model.rope.long", f"{len(self.long)} factors", same, f"short has {len(self.short)}"
        )


@dataclasses.dataclass(frozen=True)
class Model:
    """Sizes of the decoder and its front end.

    The decoder is Phi's, Llama's, Mistral's, or Qwen's with `qkv_bias` (2, 2.5) or `qk_norm` (3).
    """

    d: int  # hidden_size
    n: int  # num_attention_heads
    k: int  # num_key_value_heads
    h: int  # head_dim
    f: int  # intermediate_size
    l: int  # num_hidden_layers
    v: int  # vocab_size
    eps: float = 1e-5  # rms_norm_eps
    rope: Rope = Rope()
    tied: bool = True  # tie_word_embeddings
    window: int = 0  # sliding_window: positions seen back, itself included; 0 sees all
    # Text alone; patch → d; Phi-4-MM's stem; its stem and its Conformer; Whisper's encoder; its two
    # convolutions, of whose sizes `whisper` says d and positions.
    front: Literal["none", "linear", "conv", "conformer", "whisper", "whisper_conv"] = "linear"
    c: int = 1024  # channels of the conv stem, and the Conformer's width
    conformer: Conformer = dataclasses.field(default=Conformer(), metadata=LATER)
    whisper: Whisper = dataclasses.field(default=Whisper(), metadata=LATER)
    qkv_bias: bool = dataclasses.field(default=False, metadata=LATER)  # on q, k and v, as in Qwen2
    qk_norm: bool = dataclasses.field(
        default=False, metadata=LATER
    )  # RMSNorm of each head's q and k before they rotate, as in Qwen3
    # What is said of a position: the next token, or the next mel patch too, by a next-token VAE.
    writes: Literal["text", "speech"] = dataclasses.field(default="text", metadata=LATER)
    mel_head: MelHead = dataclasses.field(default=MelHead(), metadata=LATER)
    family: Literal["phi3", "llama", "mistral", "qwen2", "qwen3"] = dataclasses.field(
        default="phi3", metadata={**WHERE, **LATER}
    )  # model_type of an export: how transformers names and lays out the same weights
    speech: Literal["causal", "bidirectional"] = "causal"  # attention inside one clip
    attention: Literal["auto", "whole", "blocks", "splash", "cudnn"] = dataclasses.field(
        default="auto", metadata=WHERE
    )  # auto: splash on TPU, cuDNN on GPU, elsewhere [t, s] whole up to 1,024, blocks beyond
    remat: Literal["none", "full", "dots", "named", "offload"] = dataclasses.field(
        default="full", metadata=WHERE
    )  # what the backward pass computes again: nothing, all, all but products, all but `kept`
    kept: tuple[Literal["qkv", "attended", "gate_up", "out"], ...] = dataclasses.field(
        default=("qkv", "attended"), metadata=WHERE
    )  # activations of a layer that stay (remat named) or wait in the host's memory (offload)
    scan: bool = dataclasses.field(
        default=True, metadata=WHERE
    )  # one compiled layer run l times; False unrolls: faster on a CPU

    def __post_init__(self) -> None:
        for name in ("d", "n", "k", "h", "f", "l", "v", "c"):
            size = getattr(self, name)
            require(f"model.{name}", size, size > 0, "must be positive")
            require(f"model.{name}", size, size < 1 << 31, "must be below 2^31, as XLA counts")
        shares = self.n % self.k == 0
        require("model.n", self.n, shares, f"query heads cannot share k={self.k} KV heads evenly")
        require("model.window", self.window, self.window >= 0, "must be 0 or more positions")
        pairs = self.rotary_dims // 2
        fits = len(self.rope.short) in (0, pairs)
        require("model.rope.short", f"{len(self.rope.short)} factors", fits, f"needs {pairs}")
        if self.front == "conformer":
            n = self.conformer.n
            require("model.conformer.n", n, self.c % n == 0, f"does not divide model.c={self.c}")

    @property
    def rotary_dims(self) -> int:
        """Leading dimensions of each head that rotate: an even number."""
        return int(self.h * self.rope.partial) // 2 * 2


@dataclasses.dataclass(frozen=True)
class Lora:
    """Low-rank additions to the four projections of every layer; r = 0 is none."""

    r: int = 0  # rank
    alpha: float = 640.0  # the addition is scaled by alpha / r
    dropout: float = 0.0  # share of the low-rank input dropped in training
    at: Literal["all", "speech"] = dataclasses.field(
        default="all", metadata=LATER
    )  # positions that it adds at; speech: text alone is answered as by the LLM without it

    def __post_init__(self) -> None:
        require("lora.r", self.r, self.r >= 0, "must be 0 or more")
        require("lora.dropout", self.dropout, 0 <= self.dropout < 1, "must lie in [0, 1)")


@dataclasses.dataclass(frozen=True)
class ModelSpec:
    """What a model is without its weights: `model.json` beside a checkpoint that was imported."""

    model: Model
    mel: Mel = Mel()
    text: Text = Text()
    lora: Lora = Lora()


@dataclasses.dataclass(frozen=True)
class FrontSpec:
    """What a front end alone is, without its weights: `front.json` beside an imported encoder."""

    front: Literal["whisper"]
    mel: Mel  # that it hears; r is no part of the encoder
    whisper: Whisper
