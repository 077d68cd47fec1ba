"""Sizes of the head that writes mel patches, and what its losses weigh: plain data, no JAX.

Source: the next-token VAE of Mel-LLM (arXiv 2606.10231) after MELLE (arXiv 2407.08551). Its latent
has the width of a patch, since the KL term draws it towards the patch. The widths of pre-net and
MLP are not published, nor is what a post-net has between its convolutions: they are ours.
"""

import dataclasses

from melllm_jax.config.validation import require


@dataclasses.dataclass(frozen=True)
class MelHead:
    """Sizes of pre-net, latent head and post-net."""

    prenet: int = 256  # width of the pre-net's two hidden layers
    dropout: float = 0.5  # share of each that is dropped, in generation too
    hidden: int = 256  # width of the two hidden layers of the residual MLP
    channels: int = 256  # of the post-net's convolutions
    convolutions: int = 5  # of the post-net; 0: there is none
    taps: int = 5  # frames that each of them reads
    causal: bool = False  # its convolutions read no later frames: sound can be made as it comes
    sample: bool = True  # the latent is drawn; else it is its mean (an ablation of MELLE)

    def __post_init__(self) -> None:
        for name in ("prenet", "hidden", "channels"):
            size = getattr(self, name)
            require(f"model.mel_head.{name}", size, size > 0, "must be positive")
        share = self.dropout
        require("model.mel_head.dropout", share, 0 <= share < 1, "must lie in [0, 1)")
        count = self.convolutions
        require("model.mel_head.convolutions", count, count >= 0, "must be 0 or more")
        odd = self.taps > 0 and self.taps % 2 == 1
        require("model.mel_head.taps", self.taps, odd, "must be an odd number")


@dataclasses.dataclass(frozen=True)
class SpeechLoss:
    """What each term of a written patch weighs, beside the 1 of its absolute and squared error.

    The defaults are Mel-LLM's; `kl_after` is MELLE's. Every term is a mean over the cells of a
    patch, then over patches.
    """

    kl: float = 0.05  # divergence of the latent from N(patch, I)
    kl_after: int = 10_000  # updates before the divergence counts at all
    flux: float = 0.5  # minus the distance of the latent's mean from the patch before
    stop: float = 1.0  # cross-entropy of whether a patch is its clip's last
    stop_positive: float = 100.0  # how much more the last patch counts in it than any other

    def __post_init__(self) -> None:
        for name in ("kl", "kl_after", "flux", "stop"):
            value = getattr(self, name)
            require(f"speech_loss.{name}", value, value >= 0, "must be 0 or more")
        positive = self.stop_positive
        require("speech_loss.stop_positive", positive, positive > 0, "must be above 0")
