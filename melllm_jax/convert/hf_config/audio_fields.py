"""The fields of Phi-4-multimodal's speech encoder, in Microsoft's layout and in transformers'."""

import dataclasses

from melllm_jax.convert.hf_config.fields import (
    COMMON,
    REQUIRED,
    REQUIRED_OBJECT,
    Field,
    ignored_fields,
    only_field,
    size_field,
)

NO_CONFORMER = ignored_fields(  # where the blocks are left out
    """num_blocks intermediate_size num_attention_heads attention_heads linear_units activation
    chunk_size left_chunk dropout_rate ext_pw_out_channel ext_pw_kernel_size kernel_size
    depthwise_separable_out_channel depthwise_seperable_out_channel depthwise_multiplier
    conv_activation conv_glu_type bias_in_glu batch_norm cnn_layer_norm causal bias_max_distance
    bias_symmetric relative_attention_bias_args activation_checkpointing"""
)
STEM = {"input_size": only_field(80), "time_reduction": only_field(8)}
AUDIO = {
    **COMMON,
    **NO_CONFORMER,
    **STEM,
    # The first is the tokenizer's; no audio tower reads the others.
    **ignored_fields("audio_token_id feature_layer tie_word_embeddings"),
    "hidden_size": size_field(1024),
    "nemo_conv_channels": size_field(1024),
    "nemo_activation": only_field("relu"),
    "nemo_final_size": only_field(10),  # bands left of 80 after three halvings
    "downsample_rate": only_field(1),
}
CASCADES = {
    **NO_CONFORMER,
    **STEM,
    "attention_dim": size_field(REQUIRED),
    "input_layer": only_field("nemo_conv", default=REQUIRED),
    "nemo_conv_settings": REQUIRED_OBJECT,
    "encoder_embedding_config": REQUIRED_OBJECT,
}
PROCESSOR = {"name": only_field("cascades", default=REQUIRED), "config": REQUIRED_OBJECT}
EMBEDDING = {
    **ignored_fields("image_embd_layer"),
    "embedding_cls": only_field("image_audio", default=REQUIRED),
    "audio_embd_layer": REQUIRED_OBJECT,
}
AUDIO_EMBEDDING = {
    **ignored_fields("enable_gradient_checkpointing"),
    "embedding_cls": only_field("audio", default=REQUIRED),
    "projection_cls": only_field("mlp", default=REQUIRED),
    "compression_rate": only_field(8, default=REQUIRED),
    "downsample_rate": only_field(1, default=REQUIRED),
    "use_qformer": only_field(False),
    "use_conv_downsample": only_field(False),
}

# Where the blocks are read. Dropout is of training alone, and no window is wider than its bias.
CHUNK = Field(
    lambda x: type(x) is int and (x == -1 or x > 0), "must be -1 (a clip is one chunk) or above 0"
)
CHUNKS_SEEN = Field(lambda x: type(x) is int and x >= 0, "must be a whole number of 0 or more")
BLOCKS = Field(
    lambda x: type(x) is int and x > 0, "must be 1 or more: --front conv reads no Conformer"
)


def _default(field: Field, value: object) -> Field:
    return dataclasses.replace(field, default=value)


TRANSFORMERS_CONFORMER = {
    "num_blocks": _default(BLOCKS, 24),
    "num_attention_heads": size_field(16),
    "intermediate_size": size_field(1536),
    "kernel_size": size_field(3),
    "chunk_size": _default(CHUNK, -1),
    "left_chunk": _default(CHUNKS_SEEN, 18),
    "bias_max_distance": size_field(1000),
    "bias_symmetric": only_field(False),
    "ext_pw_out_channel": size_field(1024),
    "depthwise_separable_out_channel": size_field(1024),
    "depthwise_multiplier": only_field(1),
    **{
        name: only_field("swish", "silu")
        for name in ("activation", "conv_activation", "conv_glu_type")
    },
}
# The class with their defaults is Microsoft's remote code, so its files must say these.
MICROSOFT_CONFORMER = {
    "num_blocks": _default(BLOCKS, REQUIRED),
    "attention_heads": size_field(REQUIRED),
    "linear_units": size_field(REQUIRED),
    "kernel_size": size_field(REQUIRED),
    # Of chunks, Microsoft's code may hide what transformers' only makes lighter.
    "chunk_size": only_field(-1, default=REQUIRED),
    "left_chunk": _default(CHUNKS_SEEN, REQUIRED),
    "relative_attention_bias_args": REQUIRED_OBJECT,
    "ext_pw_out_channel": size_field(REQUIRED),
    "ext_pw_kernel_size": only_field(1, default=REQUIRED),
    "depthwise_seperable_out_channel": size_field(REQUIRED),
    "depthwise_multiplier": only_field(1, default=REQUIRED),
    "bias_in_glu": only_field(True, default=REQUIRED),
    "batch_norm": only_field(False, default=REQUIRED),
    "cnn_layer_norm": only_field(True, default=REQUIRED),
    "causal": only_field(True, default=REQUIRED),
    **{
        name: only_field("swish", default=REQUIRED)
        for name in ("activation", "conv_activation", "conv_glu_type")
    },
}
MICROSOFT_BIAS = {
    "type": only_field("t5", default=REQUIRED),
    "t5_bias_max_distance": size_field(REQUIRED),
    "t5_bias_num_buckets": only_field(-1),
    "t5_bias_symmetric": only_field(False),
}
