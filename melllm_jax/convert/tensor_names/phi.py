"""Maps the tensors of Phi-3, Phi-3.5, Phi-4, Phi-4-mini and Phi-4-multimodal to our names.

Phi-4-multimodal comes in two layouts: Microsoft's own, with LoRA in the main files, and
transformers', whose LoRA is a PEFT adapter of its own. Sources: transformers' `modeling_phi3.py`
and `modeling_phi4_multimodal.py`. Microsoft's names are the published ones of
microsoft/Phi-4-multimodal-instruct, not yet held against its files.
"""

from collections.abc import Mapping
import dataclasses

from melllm_jax.config.model import Model
from melllm_jax.convert.tensor_names import decoder
from melllm_jax.convert.tensor_names.decoder import HEADS, MATRIX, Projection, TensorNames
from melllm_jax.convert.tensor_names.phi_conformer import MICROSOFT, conformer_rules
from melllm_jax.convert.weight_map import IgnoredTensors, Rule

AUDIO = "model.embed_tokens_extend.audio_embed."
CONFORMER = "Conformer blocks"
PROJECTIONS = {
    "self_attn.qkv_proj": Projection(
        "attn",
        ("q", "k", "v"),
        (HEADS,) * 3,
        "qkv_lora",
        "r d -> d r",
        ("(n h) r -> r n h",) * 3,
    ),
    "self_attn.o_proj": Projection(
        "attn", ("o",), ("d (n h) -> n h d",), "o_lora", "r (n h) -> n h r", ("d r -> r d",)
    ),
    "mlp.gate_up_proj": Projection(
        "mlp", ("gate", "up"), (MATRIX,) * 2, "gate_up_lora", "r d -> d r", ("f r -> r f",) * 2
    ),
    "mlp.down_proj": Projection(
        "mlp", ("down",), ("d f -> f d",), "down_lora", "r f -> f r", ("d r -> r d",)
    ),
}
IGNORED_TENSORS = (
    decoder.ROTARY_RATES,
    IgnoredTensors("model.embed_tokens_extend.image_embed.*", "vision tower"),
    IgnoredTensors("model.layers.*.lora_[AB].vision.*", "vision LoRA"),
    IgnoredTensors(f"{AUDIO}audio_projection.vision.*", "projector of speech beside images"),
    IgnoredTensors(f"{AUDIO}*_proj_for_vision_speech.*", "projector of speech beside images"),
    IgnoredTensors(f"{AUDIO}encoder.encoders.*", CONFORMER),
    IgnoredTensors(f"{AUDIO}encoder.relative_attention_bias_layer.*", CONFORMER),
)


@dataclasses.dataclass(frozen=True)
class PhiTensorNames(TensorNames):
    """Names of one of Phi's layouts, which may hear."""

    up: str = "up_proj_for_speech"
    down: str = "down_proj_for_speech"
    conformer: Mapping[str, str] = dataclasses.field(
        default_factory=dict
    )  # modules of a Conformer block, by transformers' names

    def weights(self, model: Model) -> list[Rule]:
        """Rules of all tensors but LoRA's."""
        rules = super().weights(model)
        if model.front in ("conv", "conformer"):
            rules += front_rules(self.up, self.down)
        if model.front == "conformer":
            rules += conformer_rules(f"{AUDIO}encoder.", self.conformer)
        return rules


PEFT_NAMES = PhiTensorNames(PROJECTIONS, ignored=IGNORED_TENSORS)
MICROSOFT_NAMES = PhiTensorNames(
    PROJECTIONS,
    ".base_layer",
    "",
    ".speech",
    IGNORED_TENSORS,
    "audio_projection.speech.0",
    "audio_projection.speech.2",
    MICROSOFT,
)


def decoder_rules(tied: bool, base: str = "") -> list[Rule]:
    """Embedding, blocks and head; `base` is ".base_layer" where LoRA stands beside the matrices."""
    return decoder.decoder_rules(PROJECTIONS, tied, base)


def lora_rules(prefix: str = "", adapter: str = ".speech") -> list[Rule]:
    """The low-rank additions: Microsoft's names, or, with other arguments, those of PEFT's files.

    PEFT writes an adapter on its own as prefix "base_model.model." and adapter "".
    """
    return decoder.lora_rules(PROJECTIONS, prefix, adapter)


def front_rules(up: str = "up_proj_for_speech", down: str = "down_proj_for_speech") -> list[Rule]:
    """The conv front end: mean and deviation, stem, projector.

    transformers' names; Microsoft calls the projector's matrices audio_projection.speech.0 and .2.
    """
    stem = "encoder.embed.conv"
    depth, point = "c 1 x y -> x y c", "u c 1 1 -> c u"
    rows = [
        ("encoder.encoder_embedding.global_mean", "mean", "m -> m"),
        ("encoder.encoder_embedding.global_invstd", "invstd", "m -> m"),
    ]
    matrices = [
        (f"{stem}.0", "first", depth, ""),
        (f"{stem}.2", "depth", depth, ".0"),
        (f"{stem}.3", "point", point, ".0"),
        (f"{stem}.5", "depth", depth, ".1"),
        (f"{stem}.6", "point", point, ".1"),
        ("encoder.embed.out", "out", "u (c j) -> j c u", ""),
        (up, "up", "d u -> u d", ""),
        (down, "down", "d e -> e d", ""),
    ]
    for theirs, ours, pattern, number in matrices:
        rows.append((f"{theirs}.weight", f"{ours}{number}", pattern))
        rows.append((f"{theirs}.bias", f"{ours}_bias{number}", "d -> d"))
    return [Rule(AUDIO + theirs, (f"front.{ours}",), (pattern,)) for theirs, ours, pattern in rows]
