"""Reads a Whisper's sizes from its config.json, and the tokens around a transcript.

Defaults are those of transformers 5.24's WhisperConfig. What is of training leaves the forward pass
alone; so does scale_embedding, which nothing in transformers reads.
"""

from collections.abc import Mapping
from typing import Any

from melllm_jax.config.encoders import Whisper
from melllm_jax.config.features import Mel
from melllm_jax.config.model import FrontSpec
from melllm_jax.config.whisper import WhisperDecoder, WhisperSpec
from melllm_jax.convert.hf_config.fields import (
    COMMON,
    ignored_fields,
    only_field,
    read_fields,
    refuse_field,
    size_field,
)
from melllm_jax.convert.hf_config.whisper_generation import FALLBACK_FIELDS, transcript_rules
from melllm_jax.errors import Mistake

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
    "decoder_layers": size_field(4),
    "decoder_attention_heads": size_field(6),
    "decoder_ffn_dim": size_field(1536),
    "max_target_positions": size_field(448),
    "vocab_size": size_field(51865),
    "tie_word_embeddings": only_field(True),
    **FALLBACK_FIELDS,
    **ignored_fields(
        """num_hidden_layers scale_embedding use_weighted_layer_sum classifier_proj_size
        median_filter_width alignment_heads lang_to_id task_to_id is_multilingual
        no_timestamps_token_id max_initial_timestamp_index dropout activation_dropout
        encoder_layerdrop decoder_layerdrop init_std apply_spec_augment mask_time_prob
        mask_time_length mask_time_min_masks mask_feature_prob mask_feature_length
        mask_feature_min_masks"""
    ),
}


def encoder_spec(tree: Mapping[str, Any], where: str) -> FrontSpec:
    """The front end that a Whisper checkpoint's encoder is. Raises Mistake for what we lack."""
    return _front(read_fields(tree, FIELDS, where), where)


def whisper_spec(
    tree: Mapping[str, Any], generation: Mapping[str, Any] | None, where: str
) -> WhisperSpec:
    """The Whisper that a config.json says, with its generation_config.json where there is one.

    `where` names the config. Raises Mistake for what we lack, and for ids beyond the vocabulary.
    """
    top = read_fields(tree, FIELDS, where)
    front = _front(top, where)
    decoder = WhisperDecoder(
        n=top["decoder_attention_heads"],
        f=top["decoder_ffn_dim"],
        l=top["decoder_layers"],
        v=top["vocab_size"],
        positions=top["max_target_positions"],
    )
    rules = transcript_rules(top, generation, where)
    try:
        return WhisperSpec(front.mel, front.whisper, decoder, rules)
    except Mistake as error:
        raise Mistake(f"{where}: {error}") from error


def _front(top: Mapping[str, Any], where: str) -> FrontSpec:
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
