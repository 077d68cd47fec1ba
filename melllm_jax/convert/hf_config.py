"""Reads the config.json of Phi checkpoints into a ModelSpec.

Three layouts, each in the dialects of transformers 4 and 5: Phi-3's text models, Phi-4-multimodal
as Microsoft wrote it (its own code, LoRA in the main files) and as transformers writes it (LoRA as
a PEFT adapter). A field is read, or holds the only value we have code for, or is passed over by
name since it leaves the forward pass alone; any other field is refused.
Defaults are those of transformers 5.23's config classes, which those of 4.57 equal. Microsoft's
fields are those of microsoft/Phi-4-multimodal-instruct, by copies of its config.json in others'
code, not yet held against the file itself.
"""

from collections.abc import Mapping
import dataclasses
import math
from typing import Any, Literal

from melllm_jax.config.features import Mel, Text
from melllm_jax.config.model import Lora, Model, ModelSpec, Rope
from melllm_jax.convert.hf_config_fields import (
    AUDIO,
    AUDIO_EMBEDDING,
    CASCADES,
    EMBEDDING,
    LONGROPE,
    PROCESSOR,
    REQUIRED,
    ROPE,
    SPEECH_LORA,
    STEM,
    TOP_LEVEL,
    read_fields,
    refuse_field,
    size_field,
)
from melllm_jax.convert.peft_adapter import PeftAdapter, check_lora_pattern, parse_adapter

LayoutName = Literal["phi3", "microsoft", "transformers"]
LAYOUT_OF_MODEL_TYPE: dict[str, LayoutName] = {
    "phi3": "phi3",
    "phi4mm": "microsoft",
    "phi4_multimodal": "transformers",
}
AUDIO_TOKEN = 200_011  # <|endoftext11|>
UNSUPPORTED_MODELS = {"phi3small": "has block-sparse attention and a GEGLU with muP: "}


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
) -> HfConfig:
    """The spec that `tree`, a config.json, describes, with `adapter`, PEFT's adapter_config.json.

    The spec has the adapter as its LoRA where it is to be kept. Raises Mistake that names the first
    field that we cannot follow, its value and the rule.
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
    top = read_fields(tree, TOP_LEVEL[layout], where)
    text = Text(template="phi3" if top["vocab_size"] == 32064 else "phi4")
    beside = None if adapter is None else parse_adapter(adapter, top["num_hidden_layers"])
    low_rank = beside.lora() if beside is not None and lora == "keep" else Lora()
    beside = beside if lora != "keep" else None
    if layout == "phi3":
        spec = ModelSpec(_model(top, where), text=text, lora=low_rank)
        return HfConfig(spec, layout, beside)
    if layout == "microsoft":
        c, low_rank = _microsoft_channels(top, where), _speech_lora(top, where)
    else:
        c = _transformers_channels(top, where)
    # The front end subtracts the mean that the checkpoint itself holds.
    mel = Mel(kind="phi4", m=80, r=8, normalize="none", telephone="native")
    model = dataclasses.replace(_model(top, where), front="conv", c=c)
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


def _model(top: Mapping[str, Any], where: str) -> Model:
    """The decoder that the top-level fields describe, without a front end."""
    d, n = top["hidden_size"], top["num_attention_heads"]
    k = top["num_key_value_heads"] or n
    if n % k:
        refuse_field(where, "num_key_value_heads", k, f"must divide num_attention_heads={n}")
    if d % n and not top["head_dim"]:
        refuse_field(where, "hidden_size", d, f"must be a multiple of num_attention_heads={n}")
    h = top["head_dim"] or d // n
    return Model(
        d=d,
        n=n,
        k=k,
        h=h,
        f=top["intermediate_size"],
        l=top["num_hidden_layers"],
        v=top["vocab_size"],
        eps=float(top["rms_norm_eps"]),
        rope=_rope(top, h, where),
        tied=top["tie_word_embeddings"],
        window=top["sliding_window"] or 0,
        front="none",
    )


def _rope(top: Mapping[str, Any], h: int, where: str) -> Rope:
    """Rotary positions of heads of width h, as transformers 4 or 5 says them."""
    path = "rope_parameters" if top["rope_parameters"] else "rope_scaling"
    if top["rope_parameters"] and top["rope_scaling"]:
        refuse_field(where, path, top[path], "must be absent beside rope_scaling")
    inside = read_fields(top[path] or {}, ROPE, where, path)

    def agreed(name: str, default: Any = None) -> Any:
        """A field that may stand at the top, inside, or at both if equal."""
        if None not in (inside[name], top[name]) and inside[name] != top[name]:
            refuse_field(where, f"{path}.{name}", inside[name], f"must equal {name}={top[name]}")
        return inside[name] or top[name] or default

    partial = agreed("partial_rotary_factor", 1.0)
    width = int(h * partial)
    if width % 2 or not width:
        refuse_field(
            where, "partial_rotary_factor", partial, f"must turn an even part of {h} a head"
        )
    rope = Rope(
        theta=float(agreed("rope_theta", 10_000.0)),
        partial=float(partial),
        original=agreed("original_max_position_embeddings"),
        longest=top["max_position_embeddings"],
    )
    return _with_longrope(rope, inside, width // 2, where, path)


def _with_longrope(
    rope: Rope, inside: Mapping[str, Any], pairs: int, where: str, path: str
) -> Rope:
    """`rope` with LongRoPE's factors, one a rotated pair, where `inside` has them."""
    kinds = {inside[name] in LONGROPE for name in ("type", "rope_type") if inside[name]}
    if len(kinds) == 2:
        refuse_field(
            where, f"{path}.type", inside["type"], f"must equal rope_type={inside['rope_type']}"
        )
    if True not in kinds:
        for name in ("short_factor", "long_factor", "factor", "attention_factor"):
            if inside[name] is not None:
                refuse_field(
                    where, f"{path}.{name}", inside[name], "must be absent without type=longrope"
                )
        return rope
    for name in ("short_factor", "long_factor"):
        if len(inside[name] or ()) != pairs:
            refuse_field(
                where, f"{path}.{name}", inside[name], f"must be a list of {pairs} numbers"
            )
    stretch = rope.longest / rope.original
    scale = math.sqrt(1 + math.log(stretch) / math.log(rope.original)) if stretch > 1 else 1.0
    for name, due in {"factor": stretch, "attention_factor": scale}.items():
        if inside[name] and not math.isclose(inside[name], due, rel_tol=1e-6):
            refuse_field(where, f"{path}.{name}", inside[name], f"must be {due:.7g} (or absent)")
    short, long = (tuple(map(float, inside[name])) for name in ("short_factor", "long_factor"))
    return dataclasses.replace(rope, short=short, long=long)


def _transformers_channels(top: Mapping[str, Any], where: str) -> int:
    """Channels of the conv stem in transformers' audio_config."""
    audio = read_fields(top["audio_config"] or {}, AUDIO, where, "audio_config")
    c, width = audio["nemo_conv_channels"], audio["hidden_size"]
    if c != width:
        refuse_field(where, "audio_config.hidden_size", width, f"must equal nemo_conv_channels={c}")
    return int(c)


def _microsoft_channels(top: Mapping[str, Any], where: str) -> int:
    """Channels of the conv stem in Microsoft's audio_processor and embd_layer."""
    outer = read_fields(top["embd_layer"], EMBEDDING, where, "embd_layer")
    read_fields(outer["audio_embd_layer"], AUDIO_EMBEDDING, where, "embd_layer.audio_embd_layer")
    path = "audio_processor.config"
    processor = read_fields(top["audio_processor"], PROCESSOR, where, "audio_processor")
    audio = read_fields(processor["config"], CASCADES, where, path)
    mean = {"input_size": STEM["input_size"]}
    read_fields(audio["encoder_embedding_config"], mean, where, f"{path}.encoder_embedding_config")
    stem = {"conv_channels": size_field(REQUIRED)}
    settings = read_fields(audio["nemo_conv_settings"], stem, where, f"{path}.nemo_conv_settings")
    c, width = settings["conv_channels"], audio["attention_dim"]
    if c != width:
        refuse_field(where, f"{path}.attention_dim", width, f"must equal conv_channels={c}")
    return int(c)


def _speech_lora(top: Mapping[str, Any], where: str) -> Lora:
    """LoRA as Microsoft's speech_lora says it."""
    lora = read_fields(top["speech_lora"], SPEECH_LORA, where, "speech_lora")
    check_lora_pattern(
        lora["layer"], "layers.", top["num_hidden_layers"], where, "speech_lora.layer"
    )
    return Lora(lora["r"], float(lora["lora_alpha"]), float(lora["dp"]))
