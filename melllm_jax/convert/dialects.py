"""config.json of Phi checkpoints, read into a Spec.

Three layouts, each in the dialects of transformers 4 and 5: Phi-3's text models, Phi-4-multimodal
as Microsoft wrote it (its own code, LoRA in the main files) and as transformers writes it (LoRA as
a PEFT adapter). A field is read, or holds the only value we have code for, or is passed over by
name since it leaves the forward pass alone; any other field is refused.
Defaults are those of transformers 5.23's config classes, which those of 4.57 equal. Microsoft's
fields are those of microsoft/Phi-4-multimodal-instruct, by copies of its config.json in others'
code, not yet held against the file itself.
"""

from collections.abc import Callable, Mapping
import dataclasses
import json
import math
import re
from typing import Any, Literal, NoReturn

from melllm_jax import config
from melllm_jax.errors import Mistake

Layout = Literal["phi3", "microsoft", "transformers"]
LAYOUTS: dict[str, Layout] = {
    "phi3": "phi3",
    "phi4mm": "microsoft",
    "phi4_multimodal": "transformers",
}
OTHER_MODELS = {"phi3small": "has block-sparse attention and a GEGLU with muP: "}
# Of each layer: the modules that LoRA stands beside, and others that it must leave alone.
MODULES = ("self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj")
OTHERS = ("self_attn", "mlp", "mlp.activation_fn", "input_layernorm", "post_attention_layernorm")
TARGETS = [module.split(".")[1] for module in MODULES]
REQUIRED = object()  # the default of a field that a file must say itself


@dataclasses.dataclass(frozen=True)
class Found:
    """What a config.json describes."""

    spec: config.Spec  # without the tokenizer's path, which no config.json knows
    layout: Layout


@dataclasses.dataclass(frozen=True)
class Field:
    """What one field of a foreign config may be."""

    holds: Callable[[Any], bool]
    rule: str  # the same in words
    default: Any = None  # what the field's absence means


def _shown(value: Any) -> str:
    """A word as it is, all else as JSON has it, so that 3 and "3" differ; 60 letters at most."""
    if isinstance(value, str):
        try:
            json.loads(value)
        except ValueError:
            return value[:60]
    return json.dumps(value)[:60]


def _refuse(where: str, name: str, value: Any, rule: str) -> NoReturn:
    raise Mistake(f"{where}: {name}={_shown(value)}: {rule}")


def _real(x: Any) -> bool:
    return type(x) in (int, float) and math.isfinite(x)


def _size(default: Any = None, least: int = 1) -> Field:
    """A count; null where its default is None."""
    holds = lambda x: type(x) is int and x >= least or x is default is None
    return Field(holds, f"must be a whole number of {least} or more", default)


def _number(default: Any = None, most: float = math.inf) -> Field:
    """A positive number; null where its default is None."""
    holds = lambda x: _real(x) and 0 < x <= most or x is default is None
    rule = "must be a number above 0" + (f" and at most {most:g}" if most < math.inf else "")
    return Field(holds, rule, default)


def _only(*options: Any, default: Any = None) -> Field:
    """One of the values that we have code for; the first is the default unless another is said."""
    shown = " or ".join("absent" if x is None else _shown(x) for x in options)
    holds = lambda x: any(type(x) is type(option) and x == option for option in options)
    return Field(holds, f"must be {shown}", options[0] if default is None else default)


def _passed(names: str) -> dict[str, Field]:
    """Fields that leave the forward pass alone."""
    return dict.fromkeys(names.split(), Field(lambda _: True, ""))


def _neutral(names: str, *options: Any) -> dict[str, Field]:
    """Fields that we follow where they change nothing, and nowhere else."""
    return dict.fromkeys(names.split(), _only(*options))


FLAG = Field(lambda x: type(x) is bool, "must be true or false", False)
OBJECT = Field(lambda x: x is None or isinstance(x, Mapping), "must be an object of fields")
NEEDED = dataclasses.replace(OBJECT, holds=lambda x: isinstance(x, Mapping), default=REQUIRED)
SHARE = Field(lambda x: _real(x) and 0 <= x < 1, "must lie in [0, 1)", REQUIRED)
FACTORS = Field(
    lambda x: x is None or isinstance(x, list) and all(_real(y) and y > 0 for y in x),
    "must be a list of numbers above 0",
)

# Training alone: nothing of it is carried over, so a run trained on says its own dropout.
TRAINING = _passed(
    "attention_dropout embd_pdrop resid_pdrop initializer_range gradient_checkpointing"
)
# Generation: the tokenizer has the ids of its tokens, and what decodes has its own settings.
GENERATION = _passed(
    """use_cache bos_token_id eos_token_id pad_token_id sep_token_id decoder_start_token_id
    max_length min_length do_sample early_stopping num_beams num_beam_groups diversity_penalty
    temperature top_k top_p typical_p repetition_penalty length_penalty no_repeat_ngram_size
    encoder_no_repeat_ngram_size bad_words_ids num_return_sequences output_scores suppress_tokens
    return_dict_in_generate forced_bos_token_id forced_eos_token_id remove_invalid_values
    exponential_decay_length_penalty begin_suppress_tokens"""
)
# Bookkeeping: names, versions, the dtype (which the tensors say themselves), forms of output, and
# settings of transformers' base class that no Phi model reads.
BOOKKEEPING = _passed(
    """_name_or_path _commit_hash _attn_implementation _attn_implementation_autoset architectures
    auto_map model_type transformers_version torch_dtype dtype return_dict output_hidden_states
    output_attentions id2label label2id num_labels problem_type chunk_size_feed_forward is_decoder
    is_encoder_decoder add_cross_attention cross_attention_hidden_size tie_encoder_decoder
    finetuning_task task_specific_params tokenizer_class prefix torchscript tf_legacy_loss
    use_bfloat16 pruned_heads"""
)
COMMON = {**TRAINING, **GENERATION, **BOOKKEEPING}

SIZES = {
    "vocab_size": _size(32064),
    "hidden_size": _size(3072),
    "intermediate_size": _size(8192),
    "num_hidden_layers": _size(32),
    "num_attention_heads": _size(32),
    "max_position_embeddings": _size(4096),
    "original_max_position_embeddings": _size(4096, least=2),  # its logarithm divides in LongRoPE
    "rms_norm_eps": _number(1e-5),
}
PHI3 = {
    **COMMON,
    **SIZES,
    "num_key_value_heads": _size(),  # null: as many as query heads
    "head_dim": _size(),
    "tie_word_embeddings": FLAG,
    "sliding_window": _size(),
    "rope_theta": _number(),
    "partial_rotary_factor": _number(most=1.0),
    "rope_scaling": OBJECT,
    "rope_parameters": OBJECT,
    "hidden_act": _only("silu"),
    "attention_bias": _only(False),
    "mlp_bias": _only(False),
    "lm_head_bias": _only(False),
    "full_attn_mod": _only(1),  # attention over all positions in each layer
    "interpolate_factor": _only(1),  # positions as they are
    "quantization_config": _only(None),
    "quantization": _only(None),
}
TRANSFORMERS = {
    **PHI3,
    **_passed("vision_config"),
    "vocab_size": _size(200064),
    "num_key_value_heads": dataclasses.replace(_size(), default=8),
    "max_position_embeddings": _size(131072),
    "audio_config": OBJECT,
}
MICROSOFT = {
    **PHI3,
    **_passed("vision_lora img_processor"),
    # The class with their defaults is Microsoft's remote code, so its files must say these.
    **{name: dataclasses.replace(field, default=REQUIRED) for name, field in SIZES.items()},
    "num_key_value_heads": _size(REQUIRED),
    "speech_lora": NEEDED,
    "audio_processor": NEEDED,
    "embd_layer": NEEDED,
}
TOP = {"phi3": PHI3, "microsoft": MICROSOFT, "transformers": TRANSFORMERS}

# su is what LongRoPE was called at first; transformers 5 calls plain rotary "default".
LONGROPE = ("longrope", "su")
KIND = Field(lambda x: x in (None, "default", *LONGROPE), "must be longrope (or absent)")
ROPE = {
    "type": KIND,
    "rope_type": KIND,
    "rope_theta": _number(),
    "partial_rotary_factor": _number(most=1.0),
    "original_max_position_embeddings": _size(),
    "short_factor": FACTORS,
    "long_factor": FACTORS,
    "factor": _number(),
    "attention_factor": _number(),
    # Other scales of short and long rows than LongRoPE's own: Phi-3.5-MoE's, which is no Phi-3.
    "short_mscale": _only(None),
    "long_mscale": _only(None),
}
CONFORMER = _passed(
    """num_blocks intermediate_size num_attention_heads attention_heads linear_units activation
    chunk_size left_chunk dropout_rate ext_pw_out_channel ext_pw_kernel_size kernel_size
    depthwise_separable_out_channel depthwise_seperable_out_channel depthwise_multiplier
    conv_activation conv_glu_type bias_in_glu batch_norm cnn_layer_norm causal bias_max_distance
    bias_symmetric relative_attention_bias_args activation_checkpointing"""
)
STEM = {"input_size": _only(80), "time_reduction": _only(8)}
AUDIO = {
    **COMMON,
    **CONFORMER,
    **STEM,
    # The first is the tokenizer's; no audio tower reads the others.
    **_passed("audio_token_id feature_layer tie_word_embeddings"),
    "hidden_size": _size(1024),
    "nemo_conv_channels": _size(1024),
    "nemo_activation": _only("relu"),
    "nemo_final_size": _only(10),  # bands left of 80 after three halvings
    "downsample_rate": _only(1),
}
CASCADES = {
    **CONFORMER,
    **STEM,
    "attention_dim": _size(REQUIRED),
    "input_layer": _only("nemo_conv", default=REQUIRED),
    "nemo_conv_settings": NEEDED,
    "encoder_embedding_config": NEEDED,
}
PROCESSOR = {"name": _only("cascades", default=REQUIRED), "config": NEEDED}
EMBEDDING = {
    **_passed("image_embd_layer"),
    "embedding_cls": _only("image_audio", default=REQUIRED),
    "audio_embd_layer": NEEDED,
}
AUDIO_EMBEDDING = {
    **_passed("enable_gradient_checkpointing"),
    "embedding_cls": _only("audio", default=REQUIRED),
    "projection_cls": _only("mlp", default=REQUIRED),
    "compression_rate": _only(8, default=REQUIRED),
    "downsample_rate": _only(1, default=REQUIRED),
    "use_qformer": _only(False),
    "use_conv_downsample": _only(False),
}

WORDS = Field(lambda x: isinstance(x, str), "must be a regular expression", REQUIRED)
SPEECH_LORA = {"r": _size(REQUIRED), "lora_alpha": _number(REQUIRED), "dp": SHARE, "layer": WORDS}
TARGETED = Field(
    lambda x: isinstance(x, str | list), "must be a list or a regular expression", REQUIRED
)
PEFT = {
    **_passed(
        """task_type base_model_name_or_path revision inference_mode auto_mapping peft_version
        megatron_core qalora_group_size runtime_config"""
    ),
    "peft_type": _only("LORA", default=REQUIRED),
    "r": _size(REQUIRED),
    "lora_alpha": _number(REQUIRED),
    "lora_dropout": SHARE,
    "target_modules": TARGETED,
    "bias": _only("none"),
    # The other ways to start change the matrices that the adapter stands beside.
    "init_lora_weights": _only(True, False, "gaussian"),
    **_neutral(
        "use_rslora use_dora use_qalora lora_bias fan_in_fan_out ensure_weight_tying", False, None
    ),
    **_neutral(
        """modules_to_save layers_to_transform layers_pattern rank_pattern alpha_pattern
        exclude_modules layer_replication target_parameters trainable_token_indices loftq_config
        eva_config corda_config lora_ga_config velora_config alora_invocation_tokens arrow_config
        kasa_config monteclora_config megatron_config use_bdlora""",
        *(None, {}, []),
    ),
}


def read(
    tree: Mapping[str, Any], adapter: Mapping[str, Any] | None = None, where: str = "config.json"
) -> Found:
    """The spec that `tree`, a config.json, describes, with `adapter`, PEFT's adapter_config.json.

    Raises Mistake that names the first field that we cannot follow, its value and the rule.
    """
    kind = tree.get("model_type")
    if not isinstance(kind, str) or kind not in LAYOUTS:
        reason = OTHER_MODELS.get(kind, "") if isinstance(kind, str) else ""
        _refuse(where, "model_type", kind, f"{reason}must be one of {', '.join(LAYOUTS)}")
    layout = LAYOUTS[kind]
    if adapter is not None and layout == "microsoft":
        _refuse(where, "model_type", kind, "takes no adapter: its LoRA is in its main files")
    top = _fields(tree, TOP[layout], where)
    text = config.Text(template="phi3" if top["vocab_size"] == 32064 else "phi4")
    lora = _peft(adapter, top["num_hidden_layers"])
    if layout == "phi3":
        return Found(config.Spec(_model(top, where), text=text, lora=lora), layout)
    if layout == "microsoft":
        c, lora = _cascades(top, where), _speech_lora(top, where)
    else:
        c = _audio(top, where)
    # The front end subtracts the mean that the checkpoint itself holds.
    mel = config.Mel(kind="phi4", m=80, r=8, normalize="none")
    model = dataclasses.replace(_model(top, where), front="conv", c=c)
    return Found(config.Spec(model, mel, text, lora), layout)


def _model(top: Mapping[str, Any], where: str) -> config.Model:
    d, n = top["hidden_size"], top["num_attention_heads"]
    k = top["num_key_value_heads"] or n
    if n % k:
        _refuse(where, "num_key_value_heads", k, f"must divide num_attention_heads={n}")
    if d % n and not top["head_dim"]:
        _refuse(where, "hidden_size", d, f"must be a multiple of num_attention_heads={n}")
    h = top["head_dim"] or d // n
    return config.Model(
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


def _rope(top: Mapping[str, Any], h: int, where: str) -> config.Rope:
    """Rotary positions of heads of width h, as transformers 4 or 5 says them."""
    path = "rope_parameters" if top["rope_parameters"] else "rope_scaling"
    if top["rope_parameters"] and top["rope_scaling"]:
        _refuse(where, path, top[path], "must be absent beside rope_scaling")
    inside = _fields(top[path] or {}, ROPE, where, path)

    def agreed(name: str, default: Any = None) -> Any:
        if None not in (inside[name], top[name]) and inside[name] != top[name]:
            _refuse(where, f"{path}.{name}", inside[name], f"must equal {name}={top[name]}")
        return inside[name] or top[name] or default

    partial = agreed("partial_rotary_factor", 1.0)
    width = int(h * partial)
    if width % 2 or not width:
        _refuse(where, "partial_rotary_factor", partial, f"must turn an even part of {h} a head")
    rope = config.Rope(
        theta=float(agreed("rope_theta", 10_000.0)),
        partial=float(partial),
        original=agreed("original_max_position_embeddings"),
        longest=top["max_position_embeddings"],
    )
    return _scaled(rope, inside, width // 2, where, path)


def _scaled(
    rope: config.Rope, inside: Mapping[str, Any], pairs: int, where: str, path: str
) -> config.Rope:
    """`rope` with LongRoPE's factors, one a rotated pair, where `inside` has them."""
    kinds = {inside[name] in LONGROPE for name in ("type", "rope_type") if inside[name]}
    if len(kinds) == 2:
        _refuse(
            where, f"{path}.type", inside["type"], f"must equal rope_type={inside['rope_type']}"
        )
    if True not in kinds:
        for name in ("short_factor", "long_factor", "factor", "attention_factor"):
            if inside[name] is not None:
                _refuse(
                    where, f"{path}.{name}", inside[name], "must be absent without type=longrope"
                )
        return rope
    for name in ("short_factor", "long_factor"):
        if len(inside[name] or ()) != pairs:
            _refuse(where, f"{path}.{name}", inside[name], f"must be a list of {pairs} numbers")
    stretch = rope.longest / rope.original
    scale = math.sqrt(1 + math.log(stretch) / math.log(rope.original)) if stretch > 1 else 1.0
    for name, due in {"factor": stretch, "attention_factor": scale}.items():
        if inside[name] and not math.isclose(inside[name], due, rel_tol=1e-6):
            _refuse(where, f"{path}.{name}", inside[name], f"must be {due:.7g} (or absent)")
    short, long = (tuple(map(float, inside[name])) for name in ("short_factor", "long_factor"))
    return dataclasses.replace(rope, short=short, long=long)


def _audio(top: Mapping[str, Any], where: str) -> int:
    """Channels of the conv stem in transformers' audio_config."""
    audio = _fields(top["audio_config"] or {}, AUDIO, where, "audio_config")
    c, width = audio["nemo_conv_channels"], audio["hidden_size"]
    if c != width:
        _refuse(where, "audio_config.hidden_size", width, f"must equal nemo_conv_channels={c}")
    return int(c)


def _cascades(top: Mapping[str, Any], where: str) -> int:
    """Channels of the conv stem in Microsoft's audio_processor and embd_layer."""
    outer = _fields(top["embd_layer"], EMBEDDING, where, "embd_layer")
    _fields(outer["audio_embd_layer"], AUDIO_EMBEDDING, where, "embd_layer.audio_embd_layer")
    path = "audio_processor.config"
    processor = _fields(top["audio_processor"], PROCESSOR, where, "audio_processor")
    audio = _fields(processor["config"], CASCADES, where, path)
    mean = {"input_size": STEM["input_size"]}
    _fields(audio["encoder_embedding_config"], mean, where, f"{path}.encoder_embedding_config")
    stem = {"conv_channels": _size(REQUIRED)}
    settings = _fields(audio["nemo_conv_settings"], stem, where, f"{path}.nemo_conv_settings")
    c, width = settings["conv_channels"], audio["attention_dim"]
    if c != width:
        _refuse(where, f"{path}.attention_dim", width, f"must equal conv_channels={c}")
    return int(c)


def _speech_lora(top: Mapping[str, Any], where: str) -> config.Lora:
    lora = _fields(top["speech_lora"], SPEECH_LORA, where, "speech_lora")
    _four(lora["layer"], "layers.", top["num_hidden_layers"], where, "speech_lora.layer")
    return config.Lora(lora["r"], float(lora["lora_alpha"]), float(lora["dp"]))


def _peft(adapter: Mapping[str, Any] | None, layers: int) -> config.Lora:
    if adapter is None:
        return config.Lora(r=0)
    where = "adapter_config.json"
    lora = _fields(adapter, PEFT, where)
    targets = lora["target_modules"]
    if isinstance(targets, str):
        _four(targets, "model.layers.", layers, where, "target_modules")
    elif sorted(map(str, targets)) != sorted(TARGETS):
        _refuse(where, "target_modules", targets, f"must be {', '.join(TARGETS)}")
    return config.Lora(lora["r"], float(lora["lora_alpha"]), float(lora["lora_dropout"]))


def _four(pattern: str, prefix: str, layers: int, where: str, name: str) -> None:
    """Hold a regular expression of module names, matched whole as PEFT does, to our four."""
    try:
        match = re.compile(pattern).fullmatch
    except re.error as error:
        _refuse(where, name, pattern, f"is no regular expression: {error}")
    for i in range(layers):
        matched = [module for module in MODULES + OTHERS if match(f"{prefix}{i}.{module}")]
        if matched != list(MODULES):
            _refuse(where, name, pattern, f"must match just {', '.join(TARGETS)} of layer {i}")


def _fields(
    tree: Mapping[str, Any], known: Mapping[str, Field], where: str, path: str = ""
) -> dict[str, Any]:
    """Every field of `known` by its name, defaults filled in; raises Mistake for any other."""
    path = f"{path}." if path else ""
    for name in tree:
        if name not in known:
            _refuse(where, f"{path}{name}", tree[name], "no rule knows this field")
    values = {name: tree.get(name, field.default) for name, field in known.items()}
    for name, value in values.items():
        if value is REQUIRED:
            raise Mistake(f"{where}: {path}{name} is missing: {known[name].rule}")
        if not known[name].holds(value):
            _refuse(where, f"{path}{name}", value, known[name].rule)
    return values
