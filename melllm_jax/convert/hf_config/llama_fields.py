"""The fields of config.json of Llama and of its kin: Mistral, Qwen2 and Qwen3.

Defaults are those of transformers 5.24's config classes.
"""

import dataclasses

from melllm_jax.convert.hf_config.fields import (
    COMMON,
    FLAG,
    FULL_ATTENTION,
    OBJECT,
    UNQUANTISED,
    Field,
    RopeScalings,
    ignored_fields,
    neutral_fields,
    number_field,
    only_field,
    size_field,
)

SHARED = {
    **COMMON,
    # Splits the sums of a matrix as several devices would, and leaves the result as it is.
    **ignored_fields("pretraining_tp"),
    "vocab_size": size_field(32000),
    "hidden_size": size_field(4096),
    "intermediate_size": size_field(11008),
    "num_hidden_layers": size_field(32),
    "num_attention_heads": size_field(32),
    "num_key_value_heads": size_field(),  # null: as many as query heads
    "head_dim": size_field(),
    "max_position_embeddings": size_field(2048),
    "original_max_position_embeddings": size_field(),
    "rms_norm_eps": number_field(1e-6),
    "tie_word_embeddings": FLAG,
    "rope_theta": number_field(),
    "rope_scaling": OBJECT,
    "rope_parameters": OBJECT,
    "hidden_act": only_field("silu"),
    "attention_bias": only_field(False),
    "mlp_bias": only_field(False),
    "lm_head_bias": only_field(False),
    # transformers rotates whole heads, whatever a file says.
    "partial_rotary_factor": only_field(None, 1.0, 1),
    "sliding_window": only_field(None),
    **dict.fromkeys(("quantization_config", "quantization"), UNQUANTISED),
}
LLAMA = {
    **SHARED,
    # Of SmolLM2's published files.
    **ignored_fields("is_llama_config transformers.js_config"),
    **neutral_fields("rope_interleaved", False),
    "layer_types": FULL_ATTENTION,
}
MISTRAL = {
    **SHARED,
    "intermediate_size": size_field(14336),
    "num_key_value_heads": dataclasses.replace(size_field(), default=8),
    "max_position_embeddings": size_field(131072),
    "sliding_window": dataclasses.replace(size_field(), default=4096),
}
ATTENTION_OF_LAYERS = ("full_attention", "sliding_attention")
LAYER_TYPES = Field(
    lambda x: x is None or isinstance(x, list) and {*map(str, x)} <= {*ATTENTION_OF_LAYERS},
    "must be a list of full_attention or sliding_attention",
)
QWEN2 = {
    **SHARED,
    **neutral_fields("use_mrope", False),
    "vocab_size": size_field(151936),
    "intermediate_size": size_field(22016),
    "num_key_value_heads": dataclasses.replace(size_field(), default=32),
    "max_position_embeddings": size_field(32768),
    "use_sliding_window": FLAG,
    "sliding_window": dataclasses.replace(size_field(), default=4096),
    "max_window_layers": size_field(28, least=0),
    "layer_types": LAYER_TYPES,
}
QWEN3 = {**QWEN2, "head_dim": dataclasses.replace(size_field(), default=128)}
TOP_LEVEL = {"llama": LLAMA, "mistral": MISTRAL, "qwen2": QWEN2, "qwen3": QWEN3}

SCALINGS: RopeScalings = {
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
}
ROPE_TYPE = Field(
    lambda x: x is None or x == "default" or x in SCALINGS,
    f"must be {' or '.join(SCALINGS)} (or absent)",
)
ROPE = {
    "type": ROPE_TYPE,
    "rope_type": ROPE_TYPE,
    "rope_theta": number_field(),
    "partial_rotary_factor": only_field(None, 1.0, 1),
    "original_max_position_embeddings": size_field(),
    "factor": number_field(),
    "low_freq_factor": number_field(),
    "high_freq_factor": number_field(),
}
