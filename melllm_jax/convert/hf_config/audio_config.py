"""Reads the sizes of Phi-4-multimodal's speech encoder from config.json, in both layouts."""

from collections.abc import Mapping
from typing import Any

from melllm_jax.convert.hf_config.audio_fields import (
    AUDIO,
    AUDIO_EMBEDDING,
    CASCADES,
    EMBEDDING,
    PROCESSOR,
    STEM,
)
from melllm_jax.convert.hf_config.fields import REQUIRED, read_fields, refuse_field, size_field


def transformers_channels(top: Mapping[str, Any], where: str) -> int:
    """Channels of the conv stem in transformers' audio_config."""
    audio = read_fields(top["audio_config"] or {}, AUDIO, where, "audio_config")
    c, width = audio["nemo_conv_channels"], audio["hidden_size"]
    if c != width:
        refuse_field(where, "audio_config.hidden_size", width, f"must equal nemo_conv_channels={c}")
    return int(c)


def microsoft_channels(top: Mapping[str, Any], where: str) -> int:
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
