"""transformers' model of a Hugging Face folder, in float32: the reference of a conversion.

The only file that imports torch, and only `melllm convert check` imports it. Tensors go through
safetensors' own reader and transformers' own classes, not through ours.
"""

from collections.abc import Iterator, Sequence
import dataclasses
import json
import pathlib
from typing import Any

import numpy as np
from safetensors import safe_open
import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    Phi4MultimodalConfig,
    Phi4MultimodalFeatureExtractor,
    Phi4MultimodalForCausalLM,
    WhisperForConditionalGeneration,
)
from transformers.utils import logging

from melllm_jax.config.model import ModelSpec
from melllm_jax.convert.hf_config import writer
from melllm_jax.convert.tensor_names.phi_conformer import MICROSOFT

LOAD_OPTIONS: dict[str, Any] = {"dtype": torch.float32, "attn_implementation": "eager"}
# What Microsoft's files have that the model lacks: always, and where it has no Conformer.
LEFT_OUT = ("vision", "image_embed", ".lora_")
CONFORMER = ("encoder.encoders.", "relative_attention_bias_layer")


@dataclasses.dataclass(frozen=True)
class ReferenceOutput:
    """The outputs of a model for a row of tokens and sound."""

    layers: list[np.ndarray]  # float32 [t d] after each layer
    logits: np.ndarray  # float32 [t v]


def load_reference(folder: pathlib.Path, spec: ModelSpec, lora: bool) -> Any:
    """The model in `folder`, its Conformer where `spec` has it; `lora` merges its speech adapter.

    `spec` is the folder's as it was imported: Microsoft's own class is code from the hub, so
    transformers' class is made from the spec instead.
    """
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    tree = json.loads((folder / "config.json").read_bytes())
    whole = spec.model.front == "conformer"
    if tree["model_type"] == "phi4mm":
        theirs = Phi4MultimodalConfig(**writer.phi4_multimodal_config(spec, "float32"))
        left_out = LEFT_OUT if whole else LEFT_OUT + CONFORMER
        named_tensors = _tensors(folder)
        tensors = {
            _rename(name): x for name, x in named_tensors if not any(y in name for y in left_out)
        }
        model: Any = Phi4MultimodalForCausalLM.from_pretrained(
            None, config=theirs, state_dict=tensors, **LOAD_OPTIONS
        )
        adapter, named = tree["speech_lora"], "{}.lora_{}.speech.weight"
    else:
        theirs = AutoConfig.from_pretrained(folder)
        if tree["model_type"] == "phi4_multimodal" and not whole:
            theirs.audio_config.num_blocks = 0
        model = AutoModelForCausalLM.from_pretrained(folder, config=theirs, **LOAD_OPTIONS)
        folder, named = folder / "speech-lora", "base_model.model.{}.lora_{}.weight"
        described_by = folder / "adapter_config.json"
        adapter = json.loads(described_by.read_bytes()) if described_by.exists() else None
    if lora and adapter:
        _merge(model, dict(_tensors(folder, ".lora_")), named, adapter["lora_alpha"] / adapter["r"])
    return model.eval()


def run_reference(
    model: Any, tokens: np.ndarray, waves: Sequence[np.ndarray], audio: int
) -> ReferenceOutput:
    """The model's outputs for one row of ids [t], with 16 kHz clips at the placeholders `audio`.

    Each clip is encoded alone: in a padded batch the last patch of a shorter one sees the padding.
    """
    layers: list[np.ndarray] = []
    hooks = [
        layer.register_forward_hook(
            lambda module, given, out: layers.append(
                (out[0] if isinstance(out, tuple) else out)[0].numpy()
            )
        )
        for layer in model.model.layers
    ]
    with torch.no_grad():
        inner = model.model
        x = inner.embed_tokens(torch.tensor(tokens)[None].long())
        if waves:
            x[0, torch.tensor(tokens == audio)] = torch.cat(
                [_embed_speech(inner, w) for w in waves]
            )
        logits = model(inputs_embeds=x, use_cache=False).logits[0].float().numpy()
    for hook in hooks:
        hook.remove()
    return ReferenceOutput(layers, logits)


def run_whisper(folder: pathlib.Path, mels: np.ndarray, tokens: np.ndarray) -> ReferenceOutput:
    """A Whisper's outputs for one window [1 f m] and a row of ids [t].

    Its layers are what enters each of the encoder and the decoder and, normed, what leaves the last
    of either.
    """
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    model = WhisperForConditionalGeneration.from_pretrained(folder, **LOAD_OPTIONS).eval()
    with torch.no_grad():
        found = model(
            input_features=torch.tensor(mels).transpose(1, 2),
            decoder_input_ids=torch.tensor(tokens)[None].long(),
            output_hidden_states=True,
            use_cache=False,
        )
    layers = [*found.encoder_hidden_states, *found.decoder_hidden_states]
    return ReferenceOutput([x[0].numpy() for x in layers], found.logits[0].numpy())


def _embed_speech(inner: Any, wave: np.ndarray) -> torch.Tensor:
    """[t d] of one clip, by their extractor, stem and projector."""
    extractor = Phi4MultimodalFeatureExtractor()
    features = extractor([wave], sampling_rate=16_000, return_tensors="pt")
    embed = inner.embed_tokens_extend.audio_embed
    x = embed.encoder(features["audio_input_features"], None)
    x = embed.down_proj_for_speech(nn.functional.gelu(embed.up_proj_for_speech(x)))
    first: torch.Tensor = x[0]
    return first


def _tensors(folder: pathlib.Path, part: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    for path in sorted(folder.glob("[!.]*.safetensors")):
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118 no mapping: it has no iterator
                if part in name:
                    yield name, file.get_tensor(name)


def _merge(model: Any, tensors: dict[str, torch.Tensor], named: str, scale: float) -> None:
    for name, module in model.named_modules():
        if name.startswith("model.layers.") and isinstance(module, nn.Linear):
            a, b = (tensors[named.format(name, x)].float() for x in "AB")
            with torch.no_grad():
                module.weight += scale * (b @ a)


def _rename(name: str) -> str:
    name = name.replace(".base_layer.", ".")
    for theirs, microsoft in MICROSOFT.items():
        name = name.replace(f".{microsoft}.", f".{theirs}.")
    name = name.replace("audio_projection.speech.0.", "up_proj_for_speech.")
    return name.replace("audio_projection.speech.2.", "down_proj_for_speech.")
