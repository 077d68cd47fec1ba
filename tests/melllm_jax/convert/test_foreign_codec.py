"""A codec's folder as it may come, and what is refused; tests/parity holds what it computes."""

import json

import numpy as np
import pytest

from melllm_jax.config.codec import CodecSpec
from melllm_jax.convert import foreign_codec
from melllm_jax.convert.foreign_codec import codec_spec, read_codec
from melllm_jax.errors import Mistake
from tests.support import codec_files, models

NAMES = {f"{part}_name": name for part, name in foreign_codec.NAMES.items()}
CAUSAL = {
    f"{part}_config": {"causal": True}
    for part in ("encoder", "compressor", "decompressor", "decoder")
}
ATTENTION = "encoder.encoder.layers.1.attention."
GAIN = "compressor.layers.0.focal_block.modulation_gamma"


def test_a_config_that_says_little_is_our_default_and_bits_are_those_of_the_codebook():
    """Names are the package's own defaults, so that they may lack."""
    assert codec_spec(CAUSAL, "c") == codec_spec(CAUSAL | NAMES, "c") == CodecSpec()
    bits = {"compressor_config": {"causal": True, "output_dim": 16}}
    bits |= {"decompressor_config": {"causal": True, "input_dim": 16}}
    spec = codec_spec(CAUSAL | bits | {"quantizer_config": {"codebook_size": 65536}}, "c")
    assert (spec.bits, spec.codes, spec.rate) == (16, 65536, 24_000)


def test_sizes_of_a_config_are_those_of_its_parts():
    spec = codec_spec(codec_files.tree("post_norm"), "c")
    assert spec.compressor.reach(0) == (3, 5, 10)
    assert (spec.compressor.pasts, spec.decompressor.pasts) == ((10, 10), (10, 7))
    assert (spec.compressor.gain, spec.compressor.mean) == (1e-4, True)
    assert (spec.wavlm.chunk, spec.refined, spec.wavenext.hop) == (4, 4, 24)
    assert codec_spec(codec_files.tree(), "c").compressor.gain is None


@pytest.mark.parametrize(
    ("part", "field", "value", "message"),
    [
        ("encoder", "causal", False, "encoder_config.causal=false: must be true"),
        ("decoder", "causal", None, "decoder_config.causal=false: must be true"),
        ("encoder", "norm", "rms", "encoder_config.norm=rms: no rule knows this field"),
        ("encoder", "num_heads", 3, "wavlm.n=3: cannot share d=16 evenly"),
        ("quantizer", "codebook_size", 31, "quantizer_config.codebook_size=31: must be a power of"),
        ("quantizer", "codebook_size", 64, "compressor_config.output_dim=5: must be 6, log2 of"),
        ("compressor", "input_dim", 8, "compressor_config.input_dim=8: must be 16, encoder_conf"),
        ("decompressor", "input_dim", 6, "decompressor_config.input_dim=6: must be 5, log2 of"),
        ("decompressor", "output_dim", 8, "decompressor_config.output_dim=8: must be 16, enc"),
        ("decoder", "input_dim", 8, "decoder_config.input_dim=8: must be 16, encoder_config.dim"),
        ("compressor", "downscale_factors", [2, 1], r"downscale_factors=\[2, 1\]: must be 2 ones"),
        ("decompressor", "upscale_factors", [1], r"upscale_factors=\[1\]: must be 2 ones, as hid"),
        ("decompressor", "lookahead_size", 2, "codec.refined=3: must divide the 4 positions of"),
    ],
)
def test_what_a_config_has_and_we_lack_is_named(part, field, value, message):
    tree = codec_files.tree()
    fields = tree[f"{part}_config"]
    fields[field] = value
    if value is None:
        del fields[field]
    with pytest.raises(Mistake, match=rf"^config.json: (\w+\.)?{message}"):
        codec_spec(tree, "config.json")


def test_another_decoder_is_named():
    tree = codec_files.tree() | {"decoder_name": "Vocos"}
    with pytest.raises(Mistake, match=r"^config.json: decoder_name=Vocos: must be WaveNeXt"):
        codec_spec(tree, "config.json")


@pytest.mark.parametrize(
    ("gone", "more", "message"),
    [
        ("decoder.head.proj.bias", {}, "has no tensor decoder.head.proj.bias"),
        ("", {"decoder.head.proj.bias": (23,)}, r"decoder.head.proj.bias is \[23\]"),
        ("", {GAIN: (12,)}, f"no rule knows the tensor {GAIN}"),
        ("", {f"{ATTENTION}q_proj.bias": (16,)}, f"{ATTENTION}q_proj.bias is of focalcodec 0.0.1"),
    ],
)
def test_tensors_that_are_missing_or_unknown_are_named(tmp_path, gone, more, message):
    named = codec_files.tensors()
    named.pop(gone, None)
    named |= {name: np.zeros(shape, np.float32) for name, shape in more.items()}
    folder = codec_files.write(tmp_path, named=named)
    with models.one_device(), pytest.raises(Mistake, match=message):
        read_codec(folder)


def test_a_folder_of_torch_files_names_the_command_that_converts_them(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(codec_files.tree()))
    (tmp_path / "model.pt").write_bytes(b"")
    with models.one_device(), pytest.raises(Mistake, match="convert them with python -c .*Focal"):
        read_codec(tmp_path)
