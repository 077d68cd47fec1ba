"""A speech language model that writes mel patches beside tokens, and reads those that it wrote."""

from flax import nnx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from melllm_jax.batch import Batch
from melllm_jax.config.features import Mel
from melllm_jax.config.model import Lora, Model
from melllm_jax.models.mel_head import MelPatchHead
from melllm_jax.models.speech_lm import SpeechLM
from melllm_jax.nn.noise import Draw


class SpeakingLM(SpeechLM):
    """`SpeechLM` with the head that writes; without it, it is the model of the same seed."""

    def __init__(self, cfg: Model, mel: Mel, lora: Lora, *, rngs: nnx.Rngs):
        super().__init__(cfg, mel, lora, rngs=rngs)
        self.mel_head = MelPatchHead(rngs, cfg, mel)

    def lora_at(self, batch: Batch) -> Bool[Array, "b t"] | None:
        """That of `SpeechLM`, at which patches that the model writes count as speech too."""
        at: Bool[Array, "b t"] = batch.clips != 0
        return at if self.lora.at == "speech" else None

    def inputs(self, batch: Batch, draw: Draw | None = None) -> Float[Array, "b t d"]:
        """That of `SpeechLM`, and the pre-net's output at patches that the model wrote.

        `draw` drops what the pre-net drops, in generation as in training; None drops nothing.
        """
        inputs = super().inputs(batch)
        own = self.mel_head.prenet(batch.patches, draw)
        return jnp.where(batch.is_written[..., None], own.astype(inputs.dtype), inputs)


def make_model(cfg: Model, mel: Mel, lora: Lora, *, rngs: nnx.Rngs) -> SpeechLM:
    """The model of these sizes, which speaks if `cfg` says so."""
    kind = SpeakingLM if cfg.writes == "speech" else SpeechLM
    return kind(cfg, mel, lora, rngs=rngs)
