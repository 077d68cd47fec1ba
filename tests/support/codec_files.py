"""A small random causal FocalCodec in the layout of the released ones.

`codec_arrays.npz` is what the package focalcodec makes of it: `python -m tests.support.codec_arrays
FOLDER`, of the package's source, writes it.
"""

import json
import pathlib

import numpy as np

from tests.support import phi_files

ARRAYS = pathlib.Path(__file__).parent / "codec_arrays.npz"
ROWS, POSITIONS, HOP = 2, 36, 16
# What the two differ in: where the tanh stands, gains, and how contexts are put together.
STYLES = {
    "pre_norm": {},
    "post_norm": {"use_post_norm": True, "use_layerscale": True, "normalize_modulator": True},
}
WAVLM = {
    "hidden_dims": [8, 10, 12],
    "kernel_sizes": [6, 3, 2],
    "strides": [4, 2, 2],
    "num_layers": 2,
    "dim": 16,
    "ffn_dim": 24,
    "num_heads": 4,
    "num_buckets": 16,
    "max_distance": 20,
    "max_cached_steps": 64,
    "dropout": 0.0,
    "conv_pos": 6,
    "conv_pos_groups": 4,
    "causal": True,
    "window_size": 12,
    "lookahead_size": 3,
}
FOCAL = {
    "hidden_dims": [12, 20],
    "focal_window": 3,
    "focal_level": 2,
    "focal_factor": 2,
    "causal": True,
    "window_size": 10,
}
WAVENEXT = {
    "input_dim": 16,
    "num_layers": 2,
    "dim": 16,
    "ffn_dim": 24,
    "kernel_size": 5,
    "hop_length": 24,
    "causal": True,
}
BITS = 5


def tree(style="pre_norm"):
    """The config.json: names of the package's classes and their arguments."""
    focal = FOCAL | STYLES[style]
    compressor = {"input_dim": 16, "output_dim": BITS, "downscale_factors": [1, 1]}
    decompressor = {"input_dim": BITS, "output_dim": 16, "upscale_factors": [1, 1]}
    decompressor |= {"last_window_size": 7, "lookahead_size": 3}
    return {
        "encoder_name": "WavLM",
        "encoder_config": dict(WAVLM),
        "compressor_name": "FocalEncoder",
        "compressor_config": focal | compressor,
        "quantizer_name": "BinarySphericalQuantizer",
        "quantizer_config": {"codebook_size": 2**BITS},
        "decompressor_name": "FocalDecoder",
        "decompressor_config": focal | decompressor,
        "decoder_name": "WaveNeXt",
        "decoder_config": dict(WAVENEXT),
    }


def shapes(style="pre_norm"):
    """Every tensor that is read, by the package's name."""
    found = _wavlm_shapes()
    for part, outer, pasts in (("compressor", 16, (10, 10)), ("decompressor", 16, (10, 7))):
        for i, (d, past) in enumerate(zip(FOCAL["hidden_dims"], pasts, strict=True)):
            layer = f"{part}.layers.{i}."
            found |= _block_shapes(f"{layer}focal_block.", d, past, style)
            if part == "compressor":
                before = (outer, *FOCAL["hidden_dims"])[i]
                found |= _matrix(f"{layer}downscale.downscale", d, before, 1)
                found[f"{layer}downscale.activation.alpha"] = (d, 1)
            else:
                after = (*FOCAL["hidden_dims"], outer)[i + 1]
                found[f"{layer}upscale.activation.alpha"] = (d, 1)
                found[f"{layer}upscale.upscale.weight"] = (d, after, 1)
                found[f"{layer}upscale.upscale.bias"] = (after,)
    found |= _matrix("compressor.out_proj", BITS, FOCAL["hidden_dims"][-1])
    found |= _matrix("decompressor.in_proj", FOCAL["hidden_dims"][0], BITS)
    found |= _matrix("decompressor.refiner.in_proj", 64, 64)
    found |= _matrix("decompressor.refiner.out_proj", 64, 64)
    return found | _wavenext_shapes()


def tensors(style="pre_norm"):
    """Random tensors by name: norms, gains and slopes about 1, biases about 0."""
    rng, found = np.random.default_rng(0), {}
    for name, shape in shapes(style).items():
        rest = 1.0 if name.endswith(("norm.weight", "gamma", "alpha", "const")) else 0.0
        matrix = len(shape) > 1 and not rest
        fan = np.prod(shape[1:]) if ".upscale.weight" not in name else shape[0]
        spread = fan**-0.5 if matrix else 0.2
        found[name] = (rest + spread * rng.standard_normal(shape)).astype(np.float32)
    return found


def waves():
    """Rows of sound of `POSITIONS` positions."""
    return np.random.default_rng(1).standard_normal((ROWS, POSITIONS * HOP)).astype(np.float32)


def write(folder, style="pre_norm", config=None, named=None):
    """The checkpoint's folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config or tree(style)))
    phi_files.save(folder / "model.safetensors", named or tensors(style))
    return folder


def _matrix(name, made, *given):
    return {f"{name}.weight": (made, *given), f"{name}.bias": (made,)}


def _wavlm_shapes():
    d, f, n = WAVLM["dim"], WAVLM["ffn_dim"], WAVLM["num_heads"]
    found, before = {}, 1
    for i, (c, taps) in enumerate(zip(WAVLM["hidden_dims"], WAVLM["kernel_sizes"], strict=True)):
        layer = f"encoder.feature_extractor.layers.{i}."
        found |= {f"{layer}conv.weight": (c, before, taps)} | _matrix(f"{layer}norm", c)
        before = c
    found |= _matrix("encoder.norm", before) | _matrix("encoder.feature_proj", d, before)
    found |= _matrix("encoder.encoder.positional_embedding.conv", d, d // 4, WAVLM["conv_pos"])
    found["encoder.encoder.relative_embedding.weight"] = (WAVLM["num_buckets"], n)
    for i in range(WAVLM["num_layers"]):
        layer = f"encoder.encoder.layers.{i}."
        found |= _matrix(f"{layer}attention_norm", d) | _matrix(f"{layer}feed_forward_norm", d)
        found |= _matrix(f"{layer}attention.qkv_proj", 3 * d, d)
        found |= _matrix(f"{layer}attention.out_proj", d, d)
        found |= _matrix(f"{layer}attention.gru_rel_pos_linear", 8, d // n)
        found[f"{layer}attention.gru_rel_pos_const"] = (1, n, 1, 1)
        found |= _matrix(f"{layer}feed_forward.in_proj", f, d)
        found |= _matrix(f"{layer}feed_forward.out_proj", d, f)
    return found


def _block_shapes(block, d, past, style):
    levels, modulation = FOCAL["focal_level"], f"{block}modulation."
    found = {f"{block}modulation_norm.alpha": (1,), f"{block}feed_forward_norm.alpha": (1,)}
    if style == "post_norm":
        found |= {f"{modulation}norm.alpha": (1,)}
        found |= {f"{block}{part}_gamma": (d,) for part in ("modulation", "feed_forward")}
    found |= _matrix(f"{modulation}in_proj", 2 * d + levels + 1, d)
    taps = [FOCAL["focal_window"] + FOCAL["focal_factor"] * i for i in range(levels)]
    for i, count in enumerate([*taps, past]):
        found |= _matrix(f"{modulation}layers.{i}.0", d, 1, count)
    found |= _matrix(f"{modulation}context_proj", d, d, 1) | _matrix(f"{modulation}out_proj", d, d)
    found |= _matrix(f"{block}feed_forward.in_proj", 4 * d, d)
    return found | _matrix(f"{block}feed_forward.out_proj", d, 4 * d)


def _wavenext_shapes():
    d, f, taps = WAVENEXT["dim"], WAVENEXT["ffn_dim"], WAVENEXT["kernel_size"]
    backbone = "decoder.backbone."
    found = _matrix(f"{backbone}embedding", d, WAVENEXT["input_dim"], taps)
    found |= _matrix(f"{backbone}input_norm", d) | _matrix(f"{backbone}output_norm", d)
    for i in range(WAVENEXT["num_layers"]):
        layer = f"{backbone}layers.{i}."
        found |= _matrix(f"{layer}dwconv", d, 1, taps) | _matrix(f"{layer}norm", d)
        found |= _matrix(f"{layer}pwconv1", f, d) | _matrix(f"{layer}pwconv2", d, f)
        found[f"{layer}gamma"] = (d,)
    return found | _matrix("decoder.head.proj", WAVENEXT["hop_length"], d)
