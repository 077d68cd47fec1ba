"""The config of a vocoder's training: what makes sound of mel, and what judges it. No JAX."""

import dataclasses
from typing import Literal

from melllm_jax.config.run import BaseRun
from melllm_jax.config.validation import require
from melllm_jax.config.vocoder import HifiGan, VocoderSpec, Vocos

GENERATOR = "generator."  # what the names of the vocoder's own weights begin with, in a run
REAL_WIRE = "float32"  # sound has 16 bits, bfloat16 keeps 8


@dataclasses.dataclass(frozen=True)
class Vocoder:
    """The sizes of a vocoder, without the mel that it reads."""

    kind: Literal["hifi_gan", "vocos"]
    hifi_gan: HifiGan = HifiGan()  # where it is the kind
    vocos: Vocos = Vocos()


@dataclasses.dataclass(frozen=True)
class Adversarial:
    """The losses of a vocoder and the discriminators that it learns against.

    One kind of discriminator sees sound folded to rows of so many samples (HiFi-GAN, arXiv
    2010.05646), the other its spectra in five bands (of the Descript codec, arXiv 2306.06546, as
    the package vocos 0.1.0 has it). Weights are those of Vocos (arXiv 2306.00814) by default. A
    weight multiplies the mean over the discriminators of a kind: HiFi-GAN adds its own up, which is
    a weight of as many as there are.
    """

    loss: Literal["hinge", "least_squares"] = "hinge"  # of what a discriminator says: least_squares
    # is HiFi-GAN's
    mel: float = 45.0  # weight of the mel's mean distance, in natural log of magnitude
    feature: float = 1.0  # weight of the distance of the discriminators' hidden layers; HiFi-GAN: 2
    start: int = 0  # updates of mel alone, before the discriminators learn and count
    periods: tuple[int, ...] = (2, 3, 5, 7, 11)  # samples in a row; () is none of this kind
    period_channels: tuple[int, ...] = (32, 128, 512, 1024, 1024)  # of each layer
    period_weight: float = 1.0
    resolutions: tuple[int, ...] = (2048, 1024, 512)  # samples of a spectrum; () is none
    resolution_channels: int = 32  # of every layer
    resolution_weight: float = 0.1

    def __post_init__(self) -> None:
        for name in ("mel", "feature", "start", "period_weight", "resolution_weight"):
            number = getattr(self, name)
            require(f"adversarial.{name}", number, number >= 0, "must be 0 or more")
        folds = all(period > 0 for period in self.periods)
        require("adversarial.periods", self.periods, folds, "must be positive")
        layers = bool(self.period_channels) and all(c > 0 for c in self.period_channels)
        require("adversarial.period_channels", self.period_channels, layers, "needs a layer")
        whole = all(width > 0 and width % 32 == 0 for width in self.resolutions)
        rule = "must be multiples of 32"  # five bands, each halved three times
        require("adversarial.resolutions", self.resolutions, whole, rule)
        channels = self.resolution_channels
        require("adversarial.resolution_channels", channels, channels > 0, "must be positive")


@dataclasses.dataclass(frozen=True, kw_only=True)
class VocoderRun(BaseRun):
    """A run of a vocoder: all that decides its result, and where and how it runs.

    A row is a crop of data.t frames of one clip, with mel.hop samples of sound in each frame's
    patch; the mel is made of it where the vocoder is.
    """

    vocoder: Vocoder
    adversarial: Adversarial = Adversarial()

    ORDER = (
        *("name", "vocoder", "adversarial", "data", "optim", "mel", "init", "seed"),
        *("mesh", "checkpoints", "metrics", "scoring"),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        _ = self.spec  # which checks that the network and the mel fit together
        require("mel.r", self.mel.r, self.mel.r == 1, "must be 1: a vocoder's row has every frame")
        wire = self.data.wire
        require("data.wire", wire, wire == REAL_WIRE, f"sound needs {REAL_WIRE}")
        for name in ("warp", "mask", "shift"):
            value, rule = getattr(self.data.augment, name), "changes mel, and a vocoder's is made"
            require(f"data.augment.{name}", value, not value, f"{rule} of the sound: give 0")
        self._check_optim()
        rule = "a vocoder says no words to be scored: give 0"
        require("scoring.every", self.scoring.every, not self.scoring.every, rule)
        require("init.front", self.init.front, not self.init.front, "a vocoder has no front end")
        shortest = max((*self.adversarial.resolutions, *self.adversarial.periods), default=1)
        samples, rule = self.data.t * self.mel.hop, f"a discriminator needs more than {shortest}"
        require("data.t", f"{self.data.t}: {samples} samples", samples > shortest, rule)

    def _check_optim(self) -> None:
        """Raises Mistake for what only a decoder's layers can be trained with."""
        optim, rule = self.optim, "is for the layers of a decoder"
        for name, plain in (("kind", "adamw"), ("train", "all"), ("encoder", "trained")):
            value = getattr(optim, name)
            require(f"optim.{name}", f'"{value}"', value == plain, f'{rule}: give "{plain}"')
        require("optim.freeze", optim.freeze, not optim.freeze, rule)

    @property
    def spec(self) -> VocoderSpec:
        """The vocoder with the mel that it reads, as an export has them."""
        parts = {field.name: getattr(self.vocoder, field.name) for field in FIELDS}
        return VocoderSpec(mel=self.mel, **parts)

    @property
    def patch_width(self) -> int:
        """Samples of a position: those of one frame."""
        return self.mel.hop


FIELDS = dataclasses.fields(Vocoder)
