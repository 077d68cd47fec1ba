"""Sizes of the speech codec, FocalCodec-Stream: plain data, no JAX.

Della Libera et al. 2025 (arXiv 2509.16195). A size is named by its letter, each of the part's own
network. Defaults are those of the package focalcodec 0.0.2 in its causal form, which is the only
one here; of the released names the bits differ: 11, 12 and 16.
"""

import dataclasses

from melllm_jax.config.encoders import WavLM
from melllm_jax.config.validation import require

WAVLM_RATE = 16_000  # samples a second of the sound that any WavLM hears
CAUSAL_WAVLM = WavLM(  # the first six layers of wavlm-large, whose last norm is not among them
    d=1024,
    n=16,
    f=4096,
    l=6,
    norm="layer",
    stable=True,
    last_norm=False,
    causal=True,
)


@dataclasses.dataclass(frozen=True)
class Focal:
    """A stack of focal modulation blocks (arXiv 2203.11926), of the compressor or its inverse.

    A block's context is that of `levels` convolutions, one upon the other, and of a last one that
    stands for the whole past.
    """

    widths: tuple[int, ...] = (1024,) * 3  # hidden_dims, of each block
    pasts: tuple[int, ...] = (512,) * 3  # window_size: positions that each block's last one sees
    levels: int = 2  # focal_level: convolutions before the last
    taps: int = 14  # focal_window: positions that the first of them sees
    growth: int = 4  # focal_factor: how many more each of the others sees than the one before
    post_norm: bool = False  # use_post_norm: squashed after modulation and MLP, not before
    mean: bool = False  # normalize_modulator: contexts are averaged, not summed
    gain: float | None = None  # layerscale_init: of what a block adds; None (no layer scale) is 1
    slope: float = 0.5  # tanhscale_init: a tanh of slope · x stands where others have a norm

    def __post_init__(self) -> None:
        count = len(self.widths)
        for name in ("widths", "pasts"):
            sizes = getattr(self, name)
            fits = len(sizes) == count > 0 and all(size > 0 for size in sizes)
            rule = f"must be positive numbers, {max(count, 1)} as focal.widths has"
            require(f"focal.{name}", sizes, fits, rule)
        for name in ("levels", "taps"):
            value = getattr(self, name)
            require(f"focal.{name}", value, value > 0, "must be positive")
        require("focal.growth", self.growth, self.growth >= 0, "must be 0 or more")

    def reach(self, i: int) -> tuple[int, ...]:
        """Positions that each convolution of block `i` sees, itself the last."""
        return (*(self.taps + self.growth * level for level in range(self.levels)), self.pasts[i])


@dataclasses.dataclass(frozen=True)
class WaveNext:
    """A WaveNeXt: ConvNeXt blocks, and a matrix that makes the samples of a position."""

    d: int = 1024  # dim
    f: int = 2048  # ffn_dim
    l: int = 8  # num_layers
    taps: int = 7  # kernel_size: positions that a convolution sees, itself the last
    hop: int = 480  # hop_length: samples of a position, of 20 ms: sound of 24 kHz

    def __post_init__(self) -> None:
        for name in ("d", "f", "l", "taps", "hop"):
            size = getattr(self, name)
            require(f"wavenext.{name}", size, size > 0, "must be positive")


@dataclasses.dataclass(frozen=True)
class CodecSpec:
    """All sizes of a codec."""

    wavlm: WavLM = CAUSAL_WAVLM
    compressor: Focal = Focal()
    bits: int = 12  # log2 of codebook_size
    decompressor: Focal = Focal()
    refined: int = 4  # lookahead_size + 1: positions that are refined together; 1 refines none
    wavenext: WaveNext = WaveNext()

    def __post_init__(self) -> None:
        causal, rule = self.wavlm.causal, "must be true: the codec has the causal form alone"
        require("codec.wavlm.causal", causal, causal, rule)
        fits = not self.wavlm.last_norm
        rule = "must be false: the codec reads a layer's output"
        require("codec.wavlm.last_norm", self.wavlm.last_norm, fits, rule)
        require("codec.bits", self.bits, 0 < self.bits <= 16, "must be 1 to 16")
        fits = self.refined > 0 and self.wavlm.chunk % self.refined == 0
        rule = f"must divide the {self.wavlm.chunk} positions of a chunk of codec.wavlm"
        require("codec.refined", self.refined, fits, rule)

    @property
    def codes(self) -> int:
        """How many codes there are."""
        return 2**self.bits

    @property
    def rate(self) -> float:
        """Samples a second of the sound that comes out."""
        return WAVLM_RATE * self.wavenext.hop / self.wavlm.hop
