"""The fields of config.json in Phi's three layouts."""

import dataclasses

from melllm_jax.convert.hf_config.fields import (
    COMMON,
    FACTORS,
    FLAG,
    FULL_ATTENTION,
    OBJECT,
    REQUIRED,
    REQUIRED_OBJECT,
    UNQUANTISED,
    Field,
    RopeScalings,
    ignored_fields,
    number_field,
    only_field,
    size_field,
)

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
    "rms_norm_eps": number_field(1e-5),
}
PHI3 = {
    **COMMON,
    **SIZES,
    "num_key_value_heads": size_field(),  # null: as many as query heads
    "head_dim": size_field(),
    "tie_word_embeddings": FLAG,
    "sliding_window": size_field(),
    "rope_theta": number_field(),
    "partial_rotary_factor": number_field(most=1.0),
    "rope_scaling": OBJECT,
    "rope_parameters": OBJECT,
    "hidden_act": only_field("silu"),
    "attention_bias": only_field(False),
    "mlp_bias": only_field(False),
    "lm_head_bias": only_field(False),
    "full_attn_mod": only_field(1),  # attention over all positions in each layer
    "interpolate_factor": only_field(1),  # positions as they are
    **dict.fromkeys(("quantization_config", "quantization"), UNQUANTISED),
    "layer_types": FULL_ATTENTION,
}
TRANSFORMERS = {
    **PHI3,
    **ignored_fields("vision_config"),
    "vocab_size": size_field(200064),
    "num_key_value_heads": dataclasses.replace(size_field(), default=8),
    "max_position_embeddings": size_field(131072),
    "audio_config": OBJECT,
}
MICROSOFT = {
    **PHI3,
    **ignored_fields("vision_lora img_processor"),
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
SCALINGS: RopeScalings = {"longrope": ("short_factor", "long_factor", "factor", "attention_factor")}
ROPE_TYPE = Field(lambda x: x in (None, "default", *LONGROPE), "must be longrope (or absent)")
ROPE = {
    "type": ROPE_TYPE,
    "rope_type": ROPE_TYPE,
    "rope_theta": number_field(),
    "partial_rotary_factor": number_field(most=1.0),
    "original_max_position_embeddings": size_field(),
    "short_factor": FACTORS,
    "long_factor": FACTORS,
    "factor": number_field(),
    "attention_factor": number_field(),
    # Other scales of short and long rows than LongRoPE's own: Phi-3.5-MoE's, which is no Phi-3.
    "short_mscale": only_field(None),
    "long_mscale": only_field(None),
}
