"""What a vocoder is without its weights: sizes and the mel that it reads. Plain data, no JAX."""

import dataclasses
import math
from typing import Literal

from melllm_jax.config.features import Mel
from melllm_jax.config.validation import require


def _require_positive(name: str, values: tuple[int, ...]) -> None:
    require(name, values, all(value > 0 for value in values), "must be positive")


@dataclasses.dataclass(frozen=True)
class HifiGan:
    """A HiFi-GAN generator; by default transformers' SpeechT5HifiGanConfig, 256 samples a frame.

    A stage makes `rates` samples of one and halves the channels; then its residual blocks, one for
    each of `resblock_kernels`, see it side by side and their mean goes on.
    """

    channels: int = 512  # upsample_initial_channel, before the first stage
    rates: tuple[int, ...] = (4, 4, 4, 4)  # upsample_rates, of each stage
    kernels: tuple[int, ...] = (8, 8, 8, 8)  # upsample_kernel_sizes, in samples of its output
    resblock_kernels: tuple[int, ...] = (3, 7, 11)  # resblock_kernel_sizes, of each block
    dilations: tuple[tuple[int, ...], ...] = ((1, 3, 5),) * 3  # of the first convolutions of each
    slope: float = 0.1  # leaky_relu_slope; 0.01 before the last convolution
    normalize: bool = True  # normalize_before: (mel - mean) / scale by the checkpoint's statistics
    causal: bool = False  # nothing reads a later frame: sound can be made as frames come

    def __post_init__(self) -> None:
        name = "hifi_gan"
        stages, blocks = len(self.rates), len(self.resblock_kernels)
        require(f"{name}.rates", self.rates, stages > 0, "needs a stage at least")
        _require_positive(f"{name}.rates", self.rates)
        require(f"{name}.kernels", self.kernels, len(self.kernels) == stages, f"needs {stages}")
        for rate, kernel in zip(self.rates, self.kernels, strict=True):
            fits = kernel >= rate and (kernel - rate) % 2 == 0
            require(f"{name}.kernels", kernel, fits, f"must be {rate} or an even number more")
        halves = self.channels > 0 and self.channels % 2**stages == 0
        rule = f"must be halved {stages} times"
        require(f"{name}.channels", self.channels, halves, rule)
        require(f"{name}.resblock_kernels", self.resblock_kernels, blocks > 0, "needs a block")
        odd = all(kernel > 0 and kernel % 2 for kernel in self.resblock_kernels)
        require(f"{name}.resblock_kernels", self.resblock_kernels, odd, "must be odd numbers")
        fits = len(self.dilations) == blocks and all(self.dilations)
        require(f"{name}.dilations", self.dilations, fits, f"needs {blocks} lists, none empty")
        for dilations in self.dilations:
            _require_positive(f"{name}.dilations", dilations)
        require(f"{name}.slope", self.slope, 0 <= self.slope < 1, "must lie in [0, 1)")

    @property
    def hop(self) -> int:
        """Samples that are made of a frame."""
        return math.prod(self.rates)

    def samples(self, frames: int) -> int:
        """Samples that are made of so many frames."""
        return frames * self.hop


@dataclasses.dataclass(frozen=True)
class Vocos:
    """A Vocos: ConvNeXt blocks and an inverse STFT; by default charactr/vocos-mel-24khz."""

    d: int = 512  # dim
    f: int = 1536  # intermediate_dim
    l: int = 8  # num_layers
    n_fft: int = 1024  # samples of a frame's Fourier transform
    hop: int = 256  # hop_length: samples from one frame to the next
    padding: Literal["center", "same"] = "center"  # frame i lies about sample i · hop, or hop/2 on
    causal: bool = False  # no convolution reads a later frame

    def __post_init__(self) -> None:
        for name in ("d", "f", "l", "n_fft", "hop"):
            size = getattr(self, name)
            require(f"vocos.{name}", size, size > 0, "must be positive")
        fits = self.n_fft % 2 == 0 and self.n_fft >= 2 * self.hop
        rule = f"must be even, and 2 or more times vocos.hop={self.hop}"
        require("vocos.n_fft", self.n_fft, fits, rule)
        same = self.padding == "center" or (self.n_fft - self.hop) % 2 == 0
        rule = f'must differ from vocos.n_fft by an even number for padding="{self.padding}"'
        require("vocos.hop", self.hop, same, rule)

    @property
    def edge(self) -> int:
        """Samples that are cut off either end of the overlapping frames."""
        return self.n_fft // 2 if self.padding == "center" else (self.n_fft - self.hop) // 2

    def samples(self, frames: int) -> int:
        """Samples that are made of so many frames."""
        return max(frames - (self.padding == "center"), 0) * self.hop


@dataclasses.dataclass(frozen=True)
class VocoderSpec:
    """What a vocoder is without its weights: `vocoder.json` beside its checkpoint.

    The statistics that a HiFi-GAN normalises by are weights, which no training moves.
    """

    kind: Literal["hifi_gan", "vocos"]
    mel: Mel  # that it reads, in the log units of the extractor; r is no part of it
    hifi_gan: HifiGan = HifiGan()  # where it is the kind
    vocos: Vocos = Vocos()

    def __post_init__(self) -> None:
        plain = self.mel.normalize == "none"
        require("mel.normalize", self.mel.normalize, plain, 'must be "none" of a vocoder\'s mel')
        own, hop = self.network.hop, self.mel.hop
        rule = f"makes another number of samples than the {hop} from one {self.mel.kind} frame on"
        require(f"{self.kind}.hop", own, own == hop, rule)

    @property
    def network(self) -> HifiGan | Vocos:
        """The sizes of its kind."""
        return self.hifi_gan if self.kind == "hifi_gan" else self.vocos

    @property
    def rate(self) -> int:
        """Hz of the sound that it makes."""
        return self.mel.rate

    @property
    def hop(self) -> int:
        """Samples from one frame to the next."""
        return self.mel.hop

    def samples(self, frames: int) -> int:
        """Samples that are made of so many frames."""
        return self.network.samples(frames)
