"""Reads the sizes of Phi-4-multimodal's speech encoder from config.json, in both layouts."""

from collections.abc import Mapping
import dataclasses
from typing import Any, Literal

from melllm_jax.config.encoders import Conformer
from melllm_jax.convert.hf_config.audio_fields import (
    AUDIO,
    AUDIO_EMBEDDING,
    CASCADES,
    EMBEDDING,
    MICROSOFT_BIAS,
    MICROSOFT_CONFORMER,
    PROCESSOR,
    STEM,
    TRANSFORMERS_CONFORMER,
)
from melllm_jax.convert.hf_config.fields import REQUIRED, read_fields, refuse_field, size_field

FrontChoice = Literal["conv", "conformer"]  # of a speech encoder, what is read


@dataclasses.dataclass(frozen=True)
class SpeechEncoder:
    """The sizes of what is read of a speech encoder."""

    c: int  # channels of the conv stem, and the Conformer's width
    conformer: Conformer = Conformer()


def transformers_encoder(top: Mapping[str, Any], where: str, front: FrontChoice) -> SpeechEncoder:
    """The encoder that transformers' audio_config describes."""
    path = "audio_config"
    fields = AUDIO | (TRANSFORMERS_CONFORMER if front == "conformer" else {})
    audio = read_fields(top["audio_config"] or {}, fields, where, path)
    c = _same_width(audio, "hidden_size", "nemo_conv_channels", audio, where, path)
    if front == "conv":
        return SpeechEncoder(c)
    for name in ("ext_pw_out_channel", "depthwise_separable_out_channel"):
        _same_width(audio, name, "hidden_size", audio, where, path)
    n = _shared_width(c, audio, "num_attention_heads", where, path)
    return SpeechEncoder(
        c, _conformer(audio, n, audio["intermediate_size"], audio["bias_max_distance"])
    )


def microsoft_encoder(top: Mapping[str, Any], where: str, front: FrontChoice) -> SpeechEncoder:
    """The encoder that Microsoft's audio_processor and embd_layer describe."""
    outer = read_fields(top["embd_layer"], EMBEDDING, where, "embd_layer")
    read_fields(outer["audio_embd_layer"], AUDIO_EMBEDDING, where, "embd_layer.audio_embd_layer")
    path = "audio_processor.config"
    processor = read_fields(top["audio_processor"], PROCESSOR, where, "audio_processor")
    fields = CASCADES | (MICROSOFT_CONFORMER if front == "conformer" else {})
    audio = read_fields(processor["config"], fields, where, path)
    mean = {"input_size": STEM["input_size"]}
    read_fields(audio["encoder_embedding_config"], mean, where, f"{path}.encoder_embedding_config")
    stem = {"conv_channels": size_field(REQUIRED)}
    settings = read_fields(audio["nemo_conv_settings"], stem, where, f"{path}.nemo_conv_settings")
    c = _same_width(audio, "attention_dim", "conv_channels", settings, where, path)
    if front == "conv":
        return SpeechEncoder(c)
    for name in ("ext_pw_out_channel", "depthwise_seperable_out_channel"):
        _same_width(audio, name, "attention_dim", audio, where, path)
    n = _shared_width(c, audio, "attention_heads", where, path)
    inside = f"{path}.relative_attention_bias_args"
    bias = read_fields(audio["relative_attention_bias_args"], MICROSOFT_BIAS, where, inside)
    return SpeechEncoder(
        c, _conformer(audio, n, audio["linear_units"], bias["t5_bias_max_distance"])
    )


def _conformer(audio: Mapping[str, Any], n: int, f: int, distance: int) -> Conformer:
    """The Conformer of fields that both layouts call the same, and of those that they do not."""
    return Conformer(
        l=audio["num_blocks"],
        n=n,
        f=f,
        taps=audio["kernel_size"],
        chunk=max(audio["chunk_size"], 0),
        left=audio["left_chunk"],
        distance=distance,
    )


def _same_width(
    tree: Mapping[str, Any], name: str, other: str, others: Mapping[str, Any], where: str, path: str
) -> int:
    """The width that two fields must both say. Raises Mistake where they differ."""
    width, due = tree[name], others[other]
    if width != due:
        refuse_field(where, f"{path}.{name}", width, f"must equal {other}={due}")
    return int(width)


def _shared_width(c: int, tree: Mapping[str, Any], name: str, where: str, path: str) -> int:
    """The heads that share a width of `c` evenly. Raises Mistake where they do not."""
    n = int(tree[name])
    if c % n:
        refuse_field(where, f"{path}.{name}", n, f"must divide the width of {c}")
    return n
