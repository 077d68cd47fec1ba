"""The fields of Phi-4-multimodal's speech encoder, in Microsoft's layout and in transformers'."""

from melllm_jax.convert.hf_config.fields import (
    COMMON,
    REQUIRED,
    REQUIRED_OBJECT,
    ignored_fields,
    only_field,
    size_field,
)

CONFORMER = ignored_fields(
    """num_blocks intermediate_size num_attention_heads attention_heads linear_units activation
    chunk_size left_chunk dropout_rate ext_pw_out_channel ext_pw_kernel_size kernel_size
    depthwise_separable_out_channel depthwise_seperable_out_channel depthwise_multiplier
    conv_activation conv_glu_type bias_in_glu batch_norm cnn_layer_norm causal bias_max_distance
    bias_symmetric relative_attention_bias_args activation_checkpointing"""
)
STEM = {"input_size": only_field(80), "time_reduction": only_field(8)}
AUDIO = {
    **COMMON,
    **CONFORMER,
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
    **CONFORMER,
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
