"""Maps the tensors of Phi-3, Phi-3.5, Phi-4, Phi-4-mini and Phi-4-multimodal to our names.

The only file that knows foreign names. Phi-4-multimodal comes in two layouts: Microsoft's own,
with LoRA in the main files, and transformers', whose LoRA is a PEFT adapter of its own. Sources:
transformers' `modeling_phi3.py` and `modeling_phi4_multimodal.py`. Microsoft's names are the
published ones of microsoft/Phi-4-multimodal-instruct, not yet held against its files.
"""

from collections.abc import Mapping
import dataclasses

from melllm_jax.config.model import Model
from melllm_jax.convert.tensor_names.phi_conformer import MICROSOFT, conformer_rules
from melllm_jax.convert.weight_map import LAYER, IgnoredTensors, Rule

AUDIO = "model.embed_tokens_extend.audio_embed."
CONFORMER = "Conformer blocks"
BLOCK = f"model.layers.{LAYER}."
HEADS, MATRIX = "(n h) d -> d n h", "f d -> d f"

# Our weights inside each fused projection of theirs, and the patterns between.
PROJECTIONS: dict[str, tuple[str, tuple[str, ...], tuple[str, ...]]] = {
    "self_attn.qkv_proj": ("attn", ("q", "k", "v"), (HEADS,) * 3),
    "self_attn.o_proj": ("attn", ("o",), ("d (n h) -> n h d",)),
    "mlp.gate_up_proj": ("mlp", ("gate", "up"), (MATRIX,) * 2),
    "mlp.down_proj": ("mlp", ("down",), ("d f -> f d",)),
}
# Our low-rank addition to each of them: its name, the pattern of A and one of B for each output.
LORA_MATRICES: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "self_attn.qkv_proj": ("attn.qkv_lora", "r d -> d r", ("(n h) r -> r n h",) * 3),
    "self_attn.o_proj": ("attn.o_lora", "r (n h) -> n h r", ("d r -> r d",)),
    "mlp.gate_up_proj": ("mlp.gate_up_lora", "r d -> d r", ("f r -> r f",) * 2),
    "mlp.down_proj": ("mlp.down_lora", "r f -> f r", ("d r -> r d",)),
}


@dataclasses.dataclass(frozen=True)
class TensorNames:
    """How one kind of checkpoint names its tensors."""

    base: str = ""  # what follows a matrix's name where LoRA stands beside it
    prefix: str = "base_model.model."  # of LoRA's names: PEFT's, in files of its own
    adapter: str = ""
    up: str = "up_proj_for_speech"
    down: str = "down_proj_for_speech"
    conformer: Mapping[str, str] = dataclasses.field(
        default_factory=dict
    )  # modules of a Conformer block, by transformers' names

    def weights(self, model: Model) -> list[Rule]:
        """Rules of all tensors but LoRA's."""
        rules = decoder_rules(model.tied, self.base)
        if model.front in ("conv", "conformer"):
            rules += front_rules(self.up, self.down)
        if model.front == "conformer":
            rules += conformer_rules(f"{AUDIO}encoder.", self.conformer)
        return rules

    def lora(self) -> list[Rule]:
        """Rules of LoRA's tensors alone."""
        return lora_rules(self.prefix, self.adapter)

    def lora_pair(self, name: str) -> tuple[str, str] | None:
        """LoRA's A and B that are added to the matrix of that name; None for any other tensor."""
        stem = name.removesuffix(f"{self.base}.weight")
        if not stem.endswith(tuple(PROJECTIONS)):
            return None
        a, b = (f"{self.prefix}{stem}.lora_{x}{self.adapter}.weight" for x in "AB")
        return a, b


TENSOR_NAMES: Mapping[str, TensorNames] = {
    "phi3": TensorNames(),
    "transformers": TensorNames(),
    "microsoft": TensorNames(
        ".base_layer",
        "",
        ".speech",
        "audio_projection.speech.0",
        "audio_projection.speech.2",
        MICROSOFT,
    ),
}
IGNORED_TENSORS = (
    IgnoredTensors("model.layers.*.rotary_emb.inv_freq", "computed from the config"),
    IgnoredTensors("model.embed_tokens_extend.image_embed.*", "vision tower"),
    IgnoredTensors("model.layers.*.lora_[AB].vision.*", "vision LoRA"),
    IgnoredTensors(f"{AUDIO}audio_projection.vision.*", "projector of speech beside images"),
    IgnoredTensors(f"{AUDIO}*_proj_for_vision_speech.*", "projector of speech beside images"),
    IgnoredTensors(f"{AUDIO}encoder.encoders.*", CONFORMER),
    IgnoredTensors(f"{AUDIO}encoder.relative_attention_bias_layer.*", CONFORMER),
)


def decoder_rules(tied: bool, base: str = "") -> list[Rule]:
    """Embedding, blocks and head; `base` is ".base_layer" where LoRA stands beside the matrices."""
    rules = [
        Rule("model.embed_tokens.weight", ("embed",), ("v d -> v d",)),
        Rule("model.norm.weight", ("norm.scale",), ("d -> d",)),
        _norm_rule("input_layernorm", "attn_norm"),
        _norm_rule("post_attention_layernorm", "mlp_norm"),
    ]
    for theirs, (module, names, patterns) in PROJECTIONS.items():
        ours = tuple(f"stack.blocks.{module}.{name}" for name in names)
        rules.append(Rule(f"{BLOCK}{theirs}{base}.weight", ours, patterns))
    return rules if tied else [*rules, Rule("lm_head.weight", ("head",), ("v d -> d v",))]


def lora_rules(prefix: str = "", adapter: str = ".speech") -> list[Rule]:
    """The low-rank additions: Microsoft's names, or, with other arguments, those of PEFT's files.

    PEFT writes an adapter on its own as prefix "base_model.model." and adapter "".
    """
    rules = []
    for theirs, (module, a, bs) in LORA_MATRICES.items():
        matrix = f"{prefix}{BLOCK}{theirs}"
        ours = f"stack.blocks.{module}"
        rules.append(Rule(f"{matrix}.lora_A{adapter}.weight", (f"{ours}.a",), (a,)))
        outs = tuple(f"{ours}.b.{number}" for number in range(len(bs)))
        rules.append(Rule(f"{matrix}.lora_B{adapter}.weight", outs, bs))
    return rules


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


def _norm_rule(theirs: str, ours: str) -> Rule:
    return Rule(f"{BLOCK}{theirs}.weight", (f"stack.blocks.{ours}.scale",), ("d -> d",))
