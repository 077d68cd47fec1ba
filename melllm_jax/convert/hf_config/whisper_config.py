"""Reads the encoder's sizes from the config.json of a Whisper checkpoint.

Defaults are those of transformers 5.24's WhisperConfig. What is of the decoder or of training
leaves the encoder's forward pass alone; so does scale_embedding, which no encoder reads.
"""

from collections.abc import Mapping
from typing import Any

from melllm_jax.config.encoders import Whisper
from melllm_jax.config.features import Mel
from melllm_jax.config.model import FrontSpec
from melllm_jax.convert.hf_config.fields import (
    COMMON,
    ignored_fields,
    only_field,
    read_fields,
    refuse_field,
    size_field,
)

MODEL_TYPE = "whisper"
FIELDS = {
    **COMMON,
    "d_model": size_field(384),
    "encoder_layers": size_field(4),
    "encoder_attention_heads": size_field(6),
    "encoder_ffn_dim": size_field(1536),
    "max_source_positions": size_field(1500),
    "num_mel_bins": only_field(80, 128),
    "activation_function": only_field("gelu"),
    **ignored_fields(
        """vocab_size num_hidden_layers decoder_layers decoder_attention_heads decoder_ffn_dim
        max_target_positions scale_embedding tie_word_embeddings use_weighted_layer_sum
        classifier_proj_size median_filter_width forced_decoder_ids alignment_heads lang_to_id
        task_to_id is_multilingual no_timestamps_token_id max_initial_timestamp_index
        dropout activation_dropout encoder_layerdrop decoder_layerdrop init_std
        apply_spec_augment mask_time_prob mask_time_length mask_time_min_masks mask_feature_prob
        mask_feature_length mask_feature_min_masks"""
    ),
}


def encoder_spec(tree: Mapping[str, Any], where: str) -> FrontSpec:
    """The front end that a Whisper checkpoint's encoder is. Raises Mistake for what we lack."""
    top = read_fields(tree, FIELDS, where)
    d, n = top["d_model"], top["encoder_attention_heads"]
    if d % n or d % 2 or d < 4:
        rule = f"must be even, and a multiple of encoder_attention_heads={n}"
        refuse_field(where, "d_model", d, rule)
    sizes = Whisper(
        d=d,
        n=n,
        f=top["encoder_ffn_dim"],
        l=top["encoder_layers"],
        positions=top["max_source_positions"],
    )
    return FrontSpec("whisper", Mel("whisper", m=top["num_mel_bins"], normalize="none"), sizes)
