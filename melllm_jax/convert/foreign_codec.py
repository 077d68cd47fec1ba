"""Reads a codec from a folder in the layout of FocalCodec's causal ones: sizes and networks.

`lucadellalib/focalcodec_50hz_{2k,4k,65k}_causal`: a config.json that names the package's classes
and their arguments, and a model.safetensors. Defaults are those of the package focalcodec 0.0.2.
What is of training or of speed alone changes no result.
"""

from collections.abc import Mapping
import pathlib
from typing import Any

import jax.numpy as jnp

from melllm_jax.codec.codec import Codec
from melllm_jax.config.codec import CodecSpec, Focal, WaveNext
from melllm_jax.config.encoders import WavLM
from melllm_jax.convert import safetensors_files
from melllm_jax.convert.hf_config.fields import (
    FLAG,
    OBJECT,
    Field,
    ignored_fields,
    number_field,
    only_field,
    read_fields,
    refuse_field,
    size_field,
    sizes_field,
)
from melllm_jax.convert.tensor_names.focalcodec import codec_rules
from melllm_jax.convert.weight_map import check_tensors, expand_rules, read_weights
from melllm_jax.errors import Mistake
from melllm_jax.json_text import read_object
from melllm_jax.models.parameters import abstract_model

TORCH_CONVERSION = (
    'python -c "from focalcodec import FocalCodec as F; '
    "F.from_pretrained('{0}/config').to_pretrained('{0}-safetensors/model')\""
)
OLD_LAYOUT = (
    "is of focalcodec 0.0.1: load it with the package 0.0.2 and save it by its to_pretrained"
)
CAUSAL = only_field(True, default=False)  # theirs is not unless it says so
NAMES = {
    "encoder": "WavLM",
    "compressor": "FocalEncoder",
    "quantizer": "BinarySphericalQuantizer",
    "decompressor": "FocalDecoder",
    "decoder": "WaveNeXt",
}
TOP = {f"{part}_name": only_field(name) for part, name in NAMES.items()}
TOP |= {f"{part}_config": OBJECT for part in NAMES}
ENCODER = {
    "hidden_dims": sizes_field(*[512] * 7),
    "kernel_sizes": sizes_field(10, 3, 3, 3, 3, 2, 2),
    "strides": sizes_field(5, 2, 2, 2, 2, 2, 2),
    "num_layers": size_field(6),
    "dim": size_field(1024),
    "ffn_dim": size_field(4096),
    "num_heads": size_field(16),
    "num_buckets": size_field(320),
    "max_distance": size_field(800),
    "conv_pos": size_field(128),
    "conv_pos_groups": size_field(16),
    "causal": CAUSAL,
    "window_size": size_field(512),
    "lookahead_size": size_field(3, least=0),
    **ignored_fields("max_cached_steps dropout use_flex_attention"),
}
FOCAL = {
    "hidden_dims": sizes_field(1024, 1024, 1024),
    "focal_window": size_field(14),
    "focal_level": size_field(2),
    "focal_factor": size_field(4, least=0),
    "use_post_norm": FLAG,
    "use_layerscale": FLAG,
    "layerscale_init": number_field(1e-4),
    "tanhscale_init": number_field(0.5),
    "normalize_modulator": FLAG,
    "causal": CAUSAL,
    "window_size": size_field(512),
    **ignored_fields("dropout"),
}
COMPRESSOR = {
    **FOCAL,
    "input_dim": size_field(1024),
    "output_dim": size_field(12),
    "downscale_factors": sizes_field(1, 1, 1),
}
POWER = Field(
    lambda x: type(x) is int and 2 <= x <= 65536 and x & (x - 1) == 0,
    "must be a power of 2, 65536 at most",
    4096,
)
QUANTIZER = {"codebook_size": POWER}
DECOMPRESSOR = {
    **FOCAL,
    "input_dim": size_field(12),
    "output_dim": size_field(1024),
    "upscale_factors": sizes_field(1, 1, 1),
    "last_window_size": size_field(512),
    "lookahead_size": size_field(3, least=0),
}
DECODER = {
    "input_dim": size_field(1024),
    "num_layers": size_field(8),
    "dim": size_field(1024),
    "ffn_dim": size_field(2048),
    "kernel_size": size_field(7),
    "hop_length": size_field(480),
    "causal": CAUSAL,
    **ignored_fields("layerscale_init"),
}
FIELDS: Mapping[str, Mapping[str, Field]] = {
    "encoder": ENCODER,
    "compressor": COMPRESSOR,
    "quantizer": QUANTIZER,
    "decompressor": DECOMPRESSOR,
    "decoder": DECODER,
}


def codec_spec(tree: Mapping[str, Any], where: str) -> CodecSpec:
    """The sizes that a config.json says; `where` names it. Raises Mistake for what we lack."""
    top = read_fields(tree, TOP, where)
    parts = {}
    for part, fields in FIELDS.items():
        path = f"{part}_config"
        parts[part] = read_fields(top[path] or {}, fields, where, path)
    _check_joints(parts, where)
    compressor, decompressor, decoder = (
        parts[name] for name in ("compressor", "decompressor", "decoder")
    )
    try:
        return CodecSpec(
            wavlm=_wavlm(parts["encoder"]),
            compressor=_focal(compressor, compressor["window_size"]),
            bits=compressor["output_dim"],
            decompressor=_focal(decompressor, decompressor["last_window_size"]),
            refined=decompressor["lookahead_size"] + 1,
            wavenext=WaveNext(
                d=decoder["dim"],
                f=decoder["ffn_dim"],
                l=decoder["num_layers"],
                taps=decoder["kernel_size"],
                hop=decoder["hop_length"],
            ),
        )
    except Mistake as error:
        raise Mistake(f"{where}: {error}") from error


def read_codec(folder: pathlib.Path) -> Codec:
    """The codec in a folder, in float32, on the mesh in force.

    Raises Mistake for what we lack, and for a tensor that is missing, of another shape or known to
    no rule.
    """
    spec = codec_spec(read_object(folder / "config.json"), f"{folder}/config.json")
    entries = safetensors_files.list_tensors(folder, TORCH_CONVERSION)
    for name in entries:
        if ".q_proj." in name:
            raise Mistake(f"{folder}: {name} {OLD_LAYOUT}")
    skeleton, shapes = abstract_model(lambda rngs: Codec(rngs, spec))
    tensors = expand_rules(codec_rules(spec), {name: x.shape for name, x in shapes.items()})
    check_tensors(tensors, {name: x.shape for name, x in entries.items()}, where=str(folder))
    rows = lambda name: entries[name].rows()
    weights = read_weights(tensors, rows, {ours: x.shape for ours, x in shapes.items()})
    on_mesh = {ours: jnp.asarray(x, device=shapes[ours].sharding) for ours, x in weights.items()}
    return skeleton.model(on_mesh)


def _check_joints(parts: Mapping[str, Mapping[str, Any]], where: str) -> None:
    """What one part makes must be what the next one reads, at one rate."""
    width = "encoder_config.dim", parts["encoder"]["dim"]
    bits = "log2 of quantizer_config.codebook_size", parts["quantizer"]["codebook_size"]
    bits = bits[0], bits[1].bit_length() - 1
    joints = [
        ("compressor", "input_dim", *width),
        ("compressor", "output_dim", *bits),
        ("decompressor", "input_dim", *bits),
        ("decompressor", "output_dim", *width),
        ("decoder", "input_dim", *width),
    ]
    for part, name, source, size in joints:
        if parts[part][name] != size:
            rule = f"must be {size}, {source}"
            refuse_field(where, f"{part}_config.{name}", parts[part][name], rule)
    for part, name in (("compressor", "downscale_factors"), ("decompressor", "upscale_factors")):
        factors, count = parts[part][name], len(parts[part]["hidden_dims"])
        if factors != [1] * count:
            rule = f"must be {count} ones, as hidden_dims has: codes come at the rate of features"
            refuse_field(where, f"{part}_config.{name}", factors, rule)


def _wavlm(fields: Mapping[str, Any]) -> WavLM:
    return WavLM(
        d=fields["dim"],
        n=fields["num_heads"],
        f=fields["ffn_dim"],
        l=fields["num_layers"],
        channels=tuple(fields["hidden_dims"]),
        kernels=tuple(fields["kernel_sizes"]),
        strides=tuple(fields["strides"]),
        norm="layer",
        taps=fields["conv_pos"],
        groups=fields["conv_pos_groups"],
        buckets=fields["num_buckets"],
        distance=fields["max_distance"],
        stable=True,
        last_norm=False,
        causal=True,
        window=fields["window_size"],
        look_ahead=fields["lookahead_size"],
    )


def _focal(fields: Mapping[str, Any], last_past: int) -> Focal:
    widths = tuple(fields["hidden_dims"])
    return Focal(
        widths=widths,
        pasts=(*[fields["window_size"]] * (len(widths) - 1), last_past),
        levels=fields["focal_level"],
        taps=fields["focal_window"],
        growth=fields["focal_factor"],
        post_norm=fields["use_post_norm"],
        mean=fields["normalize_modulator"],
        gain=fields["layerscale_init"] if fields["use_layerscale"] else None,
        slope=fields["tanhscale_init"],
    )
