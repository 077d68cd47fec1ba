"""Reads a vocoder's sizes from its config, and writes a HiFi-GAN's.

HiFi-GAN: config.json with the defaults of transformers 5.24's SpeechT5HifiGanConfig. Vocos:
config.yaml, which names classes of the package vocos and their arguments. Alone imports yaml here.
"""

from collections.abc import Mapping
import dataclasses
from typing import Any

import yaml

from melllm_jax.config.features import Mel
from melllm_jax.config.vocoder import HifiGan, VocoderSpec, Vocos
from melllm_jax.convert.hf_config.fields import (
    COMMON,
    REQUIRED,
    REQUIRED_OBJECT,
    Field,
    is_real,
    only_field,
    read_fields,
    refuse_field,
    size_field,
)
from melllm_jax.errors import Mistake

MODEL_TYPES = ("hifigan", "speecht5_hifigan")  # of microsoft/speecht5_hifigan, and of its class
VOCOS_FILE = "config.yaml"


def _sizes_field(*default: int) -> Field:
    """A list of counts."""
    accepts = lambda x: isinstance(x, list | tuple) and x and all(map(_is_size, x))
    return Field(lambda x: bool(accepts(x)), "must be a list of whole numbers above 0", default)


def _is_size(x: Any) -> bool:
    return type(x) is int and x > 0


def _are_dilations(x: Any) -> bool:
    lists = isinstance(x, list | tuple) and all(isinstance(y, list | tuple) and y for y in x)
    return lists and all(_is_size(z) for y in x for z in y)


HIFI_GAN_FIELDS = {
    **COMMON,
    "model_in_dim": only_field(80),
    "sampling_rate": only_field(16_000),
    "upsample_initial_channel": size_field(512),
    "upsample_rates": _sizes_field(4, 4, 4, 4),
    "upsample_kernel_sizes": _sizes_field(8, 8, 8, 8),
    "resblock_kernel_sizes": _sizes_field(3, 7, 11),
    "resblock_dilation_sizes": Field(
        _are_dilations, "must be a list of lists of whole numbers above 0", ((1, 3, 5),) * 3
    ),
    "leaky_relu_slope": Field(lambda x: is_real(x) and 0 <= x < 1, "must lie in [0, 1)", 0.1),
    "normalize_before": Field(lambda x: type(x) is bool, "must be true or false", True),
}
PADDING = only_field("same", "center")  # the package's default first
PARTS = ("feature_extractor", "backbone", "head")
VOCOS_FIELDS = dict.fromkeys(PARTS, REQUIRED_OBJECT)
CLASSES = {
    "feature_extractor": "vocos.feature_extractors.MelSpectrogramFeatures",
    "backbone": "vocos.models.VocosBackbone",
    "head": "vocos.heads.ISTFTHead",
}
VOCOS_ARGUMENTS: Mapping[str, Mapping[str, Field]] = {
    "feature_extractor": {
        "sample_rate": only_field(24_000),
        "n_fft": only_field(1024),
        "hop_length": only_field(256),
        "n_mels": only_field(100),
        "padding": only_field("center"),  # same: frames half a hop later, a mel that we have not
    },
    "backbone": {
        "input_channels": only_field(100, default=REQUIRED),
        "dim": size_field(REQUIRED),
        "intermediate_dim": size_field(REQUIRED),
        "num_layers": size_field(REQUIRED),
        "layer_scale_init_value": Field(
            lambda x: x is None or is_real(x) and x >= 0, "must be 0 or more: blocks have a gain"
        ),
        "adanorm_num_embeddings": only_field(None, 0),
    },
    "head": {
        "dim": size_field(REQUIRED),
        "n_fft": size_field(REQUIRED),
        "hop_length": size_field(REQUIRED),
        "padding": PADDING,
    },
}


def hifi_gan_spec(tree: Mapping[str, Any], where: str) -> VocoderSpec:
    """The HiFi-GAN that a config.json says. Raises Mistake for what we lack."""
    top = read_fields(tree, HIFI_GAN_FIELDS, where)
    try:
        sizes = HifiGan(
            channels=top["upsample_initial_channel"],
            rates=tuple(top["upsample_rates"]),
            kernels=tuple(top["upsample_kernel_sizes"]),
            resblock_kernels=tuple(top["resblock_kernel_sizes"]),
            dilations=tuple(map(tuple, top["resblock_dilation_sizes"])),
            slope=float(top["leaky_relu_slope"]),
            normalize=top["normalize_before"],
        )
        return VocoderSpec("hifi_gan", Mel("speecht5", r=1, normalize="none"), hifi_gan=sizes)
    except Mistake as error:
        raise Mistake(f"{where}: {error}") from error


def hifi_gan_config(spec: VocoderSpec, number: str) -> dict[str, Any]:
    """The config.json of a HiFi-GAN whose tensors are of the dtype `number`.

    Raises Mistake for one that transformers' class cannot be.
    """
    if spec.kind != "hifi_gan":
        rule = "goes out as no class of transformers: its import is what there is"
        raise Mistake(f"kind={spec.kind}: {rule}")
    cfg = spec.hifi_gan
    if cfg.causal:
        raise Mistake("hifi_gan.causal=True: transformers' SpeechT5HifiGan looks ahead")
    if spec.mel.kind != "speecht5":
        rule = "transformers' SpeechT5HifiGan is of speecht5"
        raise Mistake(f"mel.kind={spec.mel.kind}: {rule}")
    return {
        "architectures": ["SpeechT5HifiGan"],
        "model_type": MODEL_TYPES[0],
        "model_in_dim": spec.mel.m,
        "sampling_rate": spec.rate,
        "upsample_initial_channel": cfg.channels,
        "upsample_rates": cfg.rates,
        "upsample_kernel_sizes": cfg.kernels,
        "resblock_kernel_sizes": cfg.resblock_kernels,
        "resblock_dilation_sizes": cfg.dilations,
        "leaky_relu_slope": cfg.slope,
        "normalize_before": cfg.normalize,
        "torch_dtype": number,
    }


def vocos_spec(text: bytes, where: str) -> VocoderSpec:
    """The Vocos that a config.yaml says. Raises Mistake for other classes and arguments."""
    try:
        tree = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise Mistake(f"{where}: is no YAML: {str(error).splitlines()[0]}") from error
    if not isinstance(tree, Mapping):
        raise Mistake(f"{where}: must be an object of fields")
    parts = read_fields(tree, VOCOS_FIELDS, where)
    arguments = {name: _arguments(parts[name], name, where) for name in PARTS}
    backbone, head = arguments["backbone"], arguments["head"]
    if head["dim"] != backbone["dim"]:
        rule = f"must be the backbone's {backbone['dim']}"
        refuse_field(where, "head.init_args.dim", head["dim"], rule)
    try:
        sizes = Vocos(
            d=backbone["dim"],
            f=backbone["intermediate_dim"],
            l=backbone["num_layers"],
            n_fft=head["n_fft"],
            hop=head["hop_length"],
            padding=head["padding"],
        )
        return VocoderSpec("vocos", Mel("vocos", m=100, r=1, normalize="none"), vocos=sizes)
    except Mistake as error:
        raise Mistake(f"{where}: {error}") from error


def _arguments(part: Mapping[str, Any], name: str, where: str) -> dict[str, Any]:
    """The arguments of one part, checked."""
    known = {
        "class_path": only_field(CLASSES[name], default=REQUIRED),
        "init_args": dataclasses.replace(REQUIRED_OBJECT, default={}),
    }
    found = read_fields(part, known, where, name)
    return read_fields(found["init_args"], VOCOS_ARGUMENTS[name], where, f"{name}.init_args")
