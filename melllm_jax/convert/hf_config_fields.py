"""The fields that config.json and adapter_config.json may have in each dialect, and their check.

Each table maps a field's name to the values that we follow, the rule in words and its default; any
field that no table names is refused, but for bookkeeping: what begins with _ or unsloth_.
"""

from collections.abc import Callable, Mapping
import dataclasses
import json
import math
from typing import Any, NoReturn

from melllm_jax.errors import Mistake

BOOKKEEPING_PREFIXES = ("_", "unsloth_")
UNKNOWN_FIELD = "no rule knows this field: take it out of the file if it changes no result"
REQUIRED = object()  # the default of a field that a file must say itself


@dataclasses.dataclass(frozen=True)
class Field:
    """What one field of a foreign config may be."""

    accepts: Callable[[Any], bool]
    rule: str  # the same in words
    default: Any = None  # what the field's absence means


def _show_value(value: Any) -> str:
    """A value for a message, 60 letters at most: a word as it is, all else as JSON has it.

    So 3 and "3" differ.
    """
    if isinstance(value, str):
        try:
            json.loads(value)
        except ValueError:
            return value[:60]
    return json.dumps(value)[:60]


def refuse_field(where: str, name: str, value: Any, rule: str) -> NoReturn:
    """Raises Mistake that names the file, the field, its value and the rule."""
    raise Mistake(f"{where}: {name}={_show_value(value)}: {rule}")


def _real(x: Any) -> bool:
    return type(x) in (int, float) and math.isfinite(x)


def size_field(default: Any = None, least: int = 1) -> Field:
    """A count; null where its default is None."""
    accepts = lambda x: type(x) is int and x >= least or x is default is None
    return Field(accepts, f"must be a whole number of {least} or more", default)


def _number_field(default: Any = None, most: float = math.inf) -> Field:
    """A positive number; null where its default is None."""
    accepts = lambda x: _real(x) and 0 < x <= most or x is default is None
    rule = "must be a number above 0" + (f" and at most {most:g}" if most < math.inf else "")
    return Field(accepts, rule, default)


def _only_field(*options: Any, default: Any = None) -> Field:
    """One of the values that we have code for; the first is the default unless another is said."""
    shown = " or ".join("absent" if x is None else _show_value(x) for x in options)
    accepts = lambda x: any(type(x) is type(option) and x == option for option in options)
    return Field(accepts, f"must be {shown}", options[0] if default is None else default)


def _ignored_fields(names: str) -> dict[str, Field]:
    """Fields that leave the forward pass alone."""
    return dict.fromkeys(names.split(), Field(lambda _: True, ""))


def _neutral_fields(names: str, *options: Any) -> dict[str, Field]:
    """Fields that we follow where they change nothing, and nowhere else."""
    return dict.fromkeys(names.split(), _only_field(*options))


FLAG = Field(lambda x: type(x) is bool, "must be true or false", False)
OBJECT = Field(lambda x: x is None or isinstance(x, Mapping), "must be an object of fields")
REQUIRED_OBJECT = dataclasses.replace(
    OBJECT, accepts=lambda x: isinstance(x, Mapping), default=REQUIRED
)
FRACTION = Field(lambda x: _real(x) and 0 <= x < 1, "must lie in [0, 1)", REQUIRED)
FACTORS = Field(
    lambda x: x is None or isinstance(x, list) and all(_real(y) and y > 0 for y in x),
    "must be a list of numbers above 0",
)

UNQUANTISED = Field(
    lambda x: x is None, "must be absent: import the model as it was before it was quantised"
)
FULL_ATTENTION = Field(  # no Phi model reads it: its window, if any, is of every layer
    lambda x: x is None or isinstance(x, list) and all(y == "full_attention" for y in x),
    "must be full_attention in every layer",
)

# Training alone: nothing of it is carried over, so a run trained on says its own dropout.
TRAINING = _ignored_fields(
    "attention_dropout embd_pdrop resid_pdrop initializer_range gradient_checkpointing"
)
# Generation: the tokenizer has the ids of its tokens, and what decodes has its own settings.
GENERATION = _ignored_fields(
    """use_cache bos_token_id eos_token_id pad_token_id sep_token_id decoder_start_token_id
    max_length min_length do_sample early_stopping num_beams num_beam_groups diversity_penalty
    temperature top_k top_p typical_p repetition_penalty length_penalty no_repeat_ngram_size
    encoder_no_repeat_ngram_size bad_words_ids num_return_sequences output_scores suppress_tokens
    return_dict_in_generate forced_bos_token_id forced_eos_token_id remove_invalid_values
    exponential_decay_length_penalty begin_suppress_tokens"""
)
# Bookkeeping: names, versions, the dtype (which the tensors say themselves), forms of output, and
# settings of transformers' base class that no Phi model reads.
BOOKKEEPING = _ignored_fields(
    """_name_or_path _commit_hash _attn_implementation _attn_implementation_autoset architectures
    auto_map model_type transformers_version torch_dtype dtype return_dict output_hidden_states
    output_attentions id2label label2id num_labels problem_type chunk_size_feed_forward is_decoder
    is_encoder_decoder add_cross_attention cross_attention_hidden_size tie_encoder_decoder
    finetuning_task task_specific_params tokenizer_class prefix torchscript tf_legacy_loss
    use_bfloat16 pruned_heads"""
)
COMMON = {**TRAINING, **GENERATION, **BOOKKEEPING}

SIZES = {
    "vocab_size": size_field(32064),
    "hidden_size": size_field(3072),
    "intermediate_size": size_field(8192),
    "num_hidden_layers": size_field(32),
    "num_attention_heads": size_field(32),
    "max_position_embeddings": size_field(4096),
    "original_max_position_embeddings": size_field(
        4096, least=2
    ),  # its logarithm divides in LongRoPE
    "rms_norm_eps": _number_field(1e-5),
}
PHI3 = {
    **COMMON,
    **SIZES,
    "num_key_value_heads": size_field(),  # null: as many as query heads
    "head_dim": size_field(),
    "tie_word_embeddings": FLAG,
    "sliding_window": size_field(),
    "rope_theta": _number_field(),
    "partial_rotary_factor": _number_field(most=1.0),
    "rope_scaling": OBJECT,
    "rope_parameters": OBJECT,
    "hidden_act": _only_field("silu"),
    "attention_bias": _only_field(False),
    "mlp_bias": _only_field(False),
    "lm_head_bias": _only_field(False),
    "full_attn_mod": _only_field(1),  # attention over all positions in each layer
    "interpolate_factor": _only_field(1),  # positions as they are
    **dict.fromkeys(("quantization_config", "quantization"), UNQUANTISED),
    "layer_types": FULL_ATTENTION,
}
TRANSFORMERS = {
    **PHI3,
    **_ignored_fields("vision_config"),
    "vocab_size": size_field(200064),
    "num_key_value_heads": dataclasses.replace(size_field(), default=8),
    "max_position_embeddings": size_field(131072),
    "audio_config": OBJECT,
}
MICROSOFT = {
    **PHI3,
    **_ignored_fields("vision_lora img_processor"),
    # The class with their defaults is Microsoft's remote code, so its files must say these.
    **{name: dataclasses.replace(field, default=REQUIRED) for name, field in SIZES.items()},
    "num_key_value_heads": size_field(REQUIRED),
    "speech_lora": REQUIRED_OBJECT,
    "audio_processor": REQUIRED_OBJECT,
    "embd_layer": REQUIRED_OBJECT,
}
TOP_LEVEL = {"phi3": PHI3, "microsoft": MICROSOFT, "transformers": TRANSFORMERS}

# su is what LongRoPE was called at first; transformers 5 calls plain rotary "default".
LONGROPE = ("longrope", "su")
ROPE_TYPE = Field(lambda x: x in (None, "default", *LONGROPE), "must be longrope (or absent)")
ROPE = {
    "type": ROPE_TYPE,
    "rope_type": ROPE_TYPE,
    "rope_theta": _number_field(),
    "partial_rotary_factor": _number_field(most=1.0),
    "original_max_position_embeddings": size_field(),
    "short_factor": FACTORS,
    "long_factor": FACTORS,
    "factor": _number_field(),
    "attention_factor": _number_field(),
    # Other scales of short and long rows than LongRoPE's own: Phi-3.5-MoE's, which is no Phi-3.
    "short_mscale": _only_field(None),
    "long_mscale": _only_field(None),
}
CONFORMER = _ignored_fields(
    """num_blocks intermediate_size num_attention_heads attention_heads linear_units activation
    chunk_size left_chunk dropout_rate ext_pw_out_channel ext_pw_kernel_size kernel_size
    depthwise_separable_out_channel depthwise_seperable_out_channel depthwise_multiplier
    conv_activation conv_glu_type bias_in_glu batch_norm cnn_layer_norm causal bias_max_distance
    bias_symmetric relative_attention_bias_args activation_checkpointing"""
)
STEM = {"input_size": _only_field(80), "time_reduction": _only_field(8)}
AUDIO = {
    **COMMON,
    **CONFORMER,
    **STEM,
    # The first is the tokenizer's; no audio tower reads the others.
    **_ignored_fields("audio_token_id feature_layer tie_word_embeddings"),
    "hidden_size": size_field(1024),
    "nemo_conv_channels": size_field(1024),
    "nemo_activation": _only_field("relu"),
    "nemo_final_size": _only_field(10),  # bands left of 80 after three halvings
    "downsample_rate": _only_field(1),
}
CASCADES = {
    **CONFORMER,
    **STEM,
    "attention_dim": size_field(REQUIRED),
    "input_layer": _only_field("nemo_conv", default=REQUIRED),
    "nemo_conv_settings": REQUIRED_OBJECT,
    "encoder_embedding_config": REQUIRED_OBJECT,
}
PROCESSOR = {"name": _only_field("cascades", default=REQUIRED), "config": REQUIRED_OBJECT}
EMBEDDING = {
    **_ignored_fields("image_embd_layer"),
    "embedding_cls": _only_field("image_audio", default=REQUIRED),
    "audio_embd_layer": REQUIRED_OBJECT,
}
AUDIO_EMBEDDING = {
    **_ignored_fields("enable_gradient_checkpointing"),
    "embedding_cls": _only_field("audio", default=REQUIRED),
    "projection_cls": _only_field("mlp", default=REQUIRED),
    "compression_rate": _only_field(8, default=REQUIRED),
    "downsample_rate": _only_field(1, default=REQUIRED),
    "use_qformer": _only_field(False),
    "use_conv_downsample": _only_field(False),
}

REGEX = Field(lambda x: isinstance(x, str), "must be a regular expression", REQUIRED)
SPEECH_LORA = {
    "r": size_field(REQUIRED),
    "lora_alpha": _number_field(REQUIRED),
    "dp": FRACTION,
    "layer": REGEX,
}
TARGET_MODULES = Field(
    lambda x: isinstance(x, str | list), "must be a list or a regular expression", REQUIRED
)
OPTIONAL_FLAG = dataclasses.replace(FLAG, accepts=lambda x: x is None or type(x) is bool)
RANKS = Field(
    lambda x: not x or isinstance(x, Mapping) and all(type(r) is int and r > 0 for r in x.values()),
    "must map patterns of names to whole numbers of 1 or more",
)
ALPHAS = Field(
    lambda x: not x or isinstance(x, Mapping) and all(_real(a) and a > 0 for a in x.values()),
    "must map patterns of names to numbers above 0",
)
PEFT = {
    **_ignored_fields(
        """task_type base_model_name_or_path revision inference_mode auto_mapping peft_version
        megatron_core qalora_group_size runtime_config"""
    ),
    "peft_type": _only_field("LORA", default=REQUIRED),
    "r": size_field(REQUIRED),
    "lora_alpha": _number_field(REQUIRED),
    "lora_dropout": FRACTION,
    "target_modules": TARGET_MODULES,
    "bias": _only_field("none"),
    # The other ways to start change the matrices that the adapter stands beside.
    "init_lora_weights": _only_field(True, False, "gaussian"),
    **dict.fromkeys(("use_rslora", "use_dora"), OPTIONAL_FLAG),
    "rank_pattern": RANKS,
    "alpha_pattern": ALPHAS,
    **_neutral_fields("use_qalora lora_bias fan_in_fan_out ensure_weight_tying", False, None),
    **_neutral_fields(
        """modules_to_save layers_to_transform layers_pattern exclude_modules layer_replication
        target_parameters trainable_token_indices loftq_config eva_config corda_config
        lora_ga_config velora_config alora_invocation_tokens arrow_config kasa_config
        monteclora_config megatron_config use_bdlora""",
        *(None, {}, []),
    ),
}


def read_fields(
    tree: Mapping[str, Any], known: Mapping[str, Field], where: str, path: str = ""
) -> dict[str, Any]:
    """The values of the fields `known`, defaults filled in. Raises Mistake for any other field."""
    path = f"{path}." if path else ""
    for name in tree:
        if name not in known and not name.startswith(BOOKKEEPING_PREFIXES):
            refuse_field(where, f"{path}{name}", tree[name], UNKNOWN_FIELD)
    values = {name: tree.get(name, field.default) for name, field in known.items()}
    for name, value in values.items():
        if value is REQUIRED:
            raise Mistake(f"{where}: {path}{name} is missing: {known[name].rule}")
        if not known[name].accepts(value):
            refuse_field(where, f"{path}{name}", value, known[name].rule)
    return values
