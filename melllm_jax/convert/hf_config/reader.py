"""Reads the config.json of a checkpoint into a ModelSpec.

Each layout comes in the dialects of transformers 4 and 5: Llama, Mistral, Qwen2, Qwen3, Phi-3's
text models, Phi-4-multimodal as Microsoft wrote it (its own code, LoRA in the main files) and as
transformers writes it (LoRA as a PEFT adapter). A field is read, or holds the only value we have
code for, or is passed over by name since it leaves the forward pass alone; any other is refused.
Defaults of Phi are those of transformers 5.23's config classes, which those of 4.57 equal.
Microsoft's fields are those of microsoft/Phi-4-multimodal-instruct, by copies of its config.json in
others' code, not yet held against the file itself.
"""

from collections.abc import Mapping
import dataclasses
from typing import Any, Literal

from melllm_jax.config.features import Mel, Text
from melllm_jax.config.model import Lora, ModelSpec
from melllm_jax.convert.hf_config import llama_fields, phi_fields
from melllm_jax.convert.hf_config.audio_config import (
    FrontChoice,
    microsoft_encoder,
    transformers_encoder,
)
from melllm_jax.convert.hf_config.decoder_config import llama_model, phi_model
from melllm_jax.convert.hf_config.fields import read_fields, refuse_field
from melllm_jax.convert.hf_config.peft_adapter import (
    PeftAdapter,
    check_lora_pattern,
    parse_adapter,
)
from melllm_jax.convert.hf_config.peft_fields import SPEECH_LORA
from melllm_jax.convert.tensor_names.layouts import TENSOR_NAMES

LayoutName = Literal["phi3", "microsoft", "transformers", "llama", "mistral", "qwen2", "qwen3"]
LAYOUT_OF_MODEL_TYPE: dict[str, LayoutName] = {
    "phi3": "phi3",
    "phi4mm": "microsoft",
    "phi4_multimodal": "transformers",
    "llama": "llama",
    "mistral": "mistral",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
}
TOP_LEVEL = {**phi_fields.TOP_LEVEL, **llama_fields.TOP_LEVEL}
AUDIO_TOKEN = 200_011  # <|endoftext11|>
_EXPERTS = "routes tokens to experts: "
UNSUPPORTED_MODELS = {
    "phi3small": "has block-sparse attention and a GEGLU with muP: ",
    **dict.fromkeys(("phimoe", "mixtral", "qwen2_moe", "qwen3_moe"), _EXPERTS),
}


@dataclasses.dataclass(frozen=True)
class HfConfig:
    """What a config.json describes."""

    spec: ModelSpec  # without the tokenizer's path, which no config.json knows
    layout: LayoutName
    adapter: PeftAdapter | None = None  # beside the model, where it is not to be kept


def parse_config(
    tree: Mapping[str, Any],
    adapter: Mapping[str, Any] | None = None,
    where: str = "config.json",
    lora: Literal["keep", "merge", "drop"] = "keep",
    front: FrontChoice = "conv",
) -> HfConfig:
    """The spec that `tree`, a config.json, describes, with `adapter`, PEFT's adapter_config.json.

    The spec has the adapter as its LoRA where it is to be kept, and of a speech encoder what
    `front` says. Raises Mistake that names the first field that we cannot follow, its value and the
    rule.
    """
    kind = tree.get("model_type")
    if not isinstance(kind, str) or kind not in LAYOUT_OF_MODEL_TYPE:
        reason = UNSUPPORTED_MODELS.get(kind, "") if isinstance(kind, str) else ""
        refuse_field(
            where, "model_type", kind, f"{reason}must be one of {', '.join(LAYOUT_OF_MODEL_TYPE)}"
        )
    layout = LAYOUT_OF_MODEL_TYPE[kind]
    if adapter is not None and layout == "microsoft":
        refuse_field(where, "model_type", kind, "takes no adapter: its LoRA is in its main files")
    if front == "conformer" and layout not in ("microsoft", "transformers"):
        refuse_field(where, "model_type", kind, "has no Conformer for --front conformer")
    top = read_fields(tree, TOP_LEVEL[layout], where)
    modules = tuple(TENSOR_NAMES[layout].projections)
    beside = None if adapter is None else parse_adapter(adapter, top["num_hidden_layers"], modules)
    low_rank = beside.lora() if beside is not None and lora == "keep" else Lora()
    beside = beside if lora != "keep" else None
    if layout in llama_fields.TOP_LEVEL:
        model = llama_model(top, layout, where)
        return HfConfig(
            ModelSpec(model, text=Text(template="plain"), lora=low_rank), layout, beside
        )
    text = Text(template="phi3" if top["vocab_size"] == 32064 else "phi4")
    if layout == "phi3":
        spec = ModelSpec(phi_model(top, where), text=text, lora=low_rank)
        return HfConfig(spec, layout, beside)
    if layout == "microsoft":
        encoder, low_rank = microsoft_encoder(top, where, front), _speech_lora(top, where)
    else:
        encoder = transformers_encoder(top, where, front)
    # The front end subtracts the mean that the checkpoint itself holds.
    mel = Mel(kind="phi4", m=80, r=8, normalize="none", telephone="native")
    model = dataclasses.replace(
        phi_model(top, where), front=front, c=encoder.c, conformer=encoder.conformer
    )
    return HfConfig(ModelSpec(model, mel, text, low_rank), layout, beside)


def audio_token_id(tree: Mapping[str, Any]) -> int | None:
    """The placeholder of a speech position that a config.json names; None where it names none.

    Microsoft's is in its code, not in its config, and transformers' the default of its class.
    """
    if tree.get("model_type") not in ("phi4mm", "phi4_multimodal"):
        return None
    audio = tree.get("audio_config")
    named = audio.get("audio_token_id") if isinstance(audio, Mapping) else None
    named = AUDIO_TOKEN if named is None else named
    v = tree.get("vocab_size", 0)
    return named if type(named) is int and type(v) is int and 0 <= named < v else None


def _speech_lora(top: Mapping[str, Any], where: str) -> Lora:
    """LoRA as Microsoft's speech_lora says it."""
    lora = read_fields(top["speech_lora"], SPEECH_LORA, where, "speech_lora")
    modules = tuple(TENSOR_NAMES["microsoft"].projections)
    layers = top["num_hidden_layers"]
    check_lora_pattern(lora["layer"], "layers.", layers, modules, where, "speech_lora.layer")
    return Lora(lora["r"], float(lora["lora_alpha"]), float(lora["dp"]))
