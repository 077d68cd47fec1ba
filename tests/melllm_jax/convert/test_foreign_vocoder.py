"""Vocoders in and out: HiFi-GAN bit by bit, its weight normalisation folded, Vocos, refusals."""

import dataclasses
import json
import re

import numpy as np
import pytest

from melllm_jax.checkpoints import run_folder
from melllm_jax.config.features import Mel
from melllm_jax.config.overrides import to_json
from melllm_jax.convert.tensor_names.hifi_gan import hifi_gan_rules
from melllm_jax.convert.weight_map import expand_rules
from melllm_jax.errors import Mistake
from melllm_jax.vocoders.stored_vocoder import abstract_vocoder, check_same_mel, load_vocoder
from tests.support import models, phi_files, vocos_files
from tests.support.runs import compiled_once, refused

once = pytest.fixture(scope="module", autouse=True)(compiled_once)
TREE = {
    "architectures": ["SpeechT5HifiGan"],
    "initializer_range": 0.01,
    "leaky_relu_slope": 0.2,
    "model_in_dim": 80,
    "model_type": "hifigan",
    "normalize_before": True,
    "resblock_dilation_sizes": [[1, 2]],
    "resblock_kernel_sizes": [3],
    "sampling_rate": 16000,
    "torch_dtype": "float32",
    "transformers_version": "5.24.0",
    "upsample_initial_channel": 8,
    "upsample_kernel_sizes": [32, 16],
    "upsample_rates": [32, 8],
}
SHAPES = {
    "mean": (80,),
    "scale": (80,),
    "conv_pre.weight": (8, 80, 7),
    "conv_pre.bias": (8,),
    "upsampler.0.weight": (8, 4, 32),
    "upsampler.0.bias": (4,),
    "upsampler.1.weight": (4, 2, 16),
    "upsampler.1.bias": (2,),
    "conv_post.weight": (1, 2, 7),
    "conv_post.bias": (1,),
} | {
    f"resblocks.{block}.{convs}.{i}.{part}": (c, c, 3) if part == "weight" else (c,)
    for block, c in enumerate((4, 2))
    for convs in ("convs1", "convs2")
    for i in range(2)
    for part in ("weight", "bias")
}
VOCOS = {"m": 100, "n_fft": 1024, "hop": 256}


def tensors():
    rng = np.random.default_rng(0)
    rest = {"scale": 2.0}
    return {
        name: (rest.get(name, 0.0) + 0.3 * rng.standard_normal(shape)).astype(np.float32)
        for name, shape in SHAPES.items()
    }


def hifi_gan(folder, named=None, **changes):
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(TREE | changes))
    phi_files.save(folder / "model.safetensors", tensors() if named is None else named)
    return folder


def weight_normed(named, direction, length):
    """Every matrix of three axes as twice its direction, and the length that it has."""
    found = {}
    for name, x in named.items():
        stem = name.removesuffix("weight")
        if x.ndim == 3:
            found[f"{stem}{direction}"] = 2 * x
            found[f"{stem}{length}"] = np.sqrt(np.square(x).sum(axis=(1, 2), keepdims=True))
        else:
            found[name] = x
    return found


def test_hifi_gan_goes_out_as_it_came_in(tmp_path):
    hifi_gan(tmp_path / "theirs")
    phi_files.told("import", tmp_path / "theirs", tmp_path / "ours")
    phi_files.told("export", tmp_path / "ours", tmp_path / "again")
    kept = {k: x for k, x in TREE.items() if k not in ("initializer_range", "transformers_version")}
    assert json.loads((tmp_path / "again/config.json").read_text()) == kept
    found = phi_files.load(tmp_path / "again/model.safetensors")
    named = tensors()
    assert found.keys() == named.keys()
    for name, x in named.items():
        np.testing.assert_array_equal(found[name], x, strict=True)


@pytest.mark.parametrize(
    "names",
    [
        ("parametrizations.weight.original1", "parametrizations.weight.original0"),
        ("weight_v", "weight_g"),
    ],
)
def test_weight_normalisation_is_folded(tmp_path, names):
    """Products of two float32 roots: 1e-6."""
    hifi_gan(tmp_path / "theirs", weight_normed(tensors(), *names))
    phi_files.told("import", tmp_path / "theirs", tmp_path / "ours")
    phi_files.told("export", tmp_path / "ours", tmp_path / "again")
    for name, x in phi_files.load(tmp_path / "again/model.safetensors").items():
        np.testing.assert_allclose(x, tensors()[name], rtol=1e-6)


def test_what_is_loaded_is_the_network_with_these_weights(tmp_path):
    """Of a length that fills no bucket."""
    hifi_gan(tmp_path / "theirs")
    phi_files.told("import", tmp_path / "theirs", tmp_path / "ours")
    spec, synthesize = load_vocoder(str(tmp_path / "ours"))
    skeleton, shapes = abstract_vocoder(spec)
    weights = {name: np.empty(x.shape, np.float32) for name, x in shapes.items()}
    rules = expand_rules(hifi_gan_rules(spec.hifi_gan), {k: x.shape for k, x in shapes.items()})
    for name, tensor in rules.items():
        for piece in tensor.pieces(10**9):
            weights[piece.name][piece.index] = piece.read(tensors()[name][piece.start : piece.stop])
    mels = np.random.default_rng(1).normal(size=(5, 80)).astype(np.float32)
    found = synthesize(mels)
    with models.one_device():
        net = lambda w, x: skeleton.model(w)(x)
        expected = np.asarray(models.jitted(net)(weights, mels[None]))[0]
    assert (spec.rate, found.size) == (16_000, 5 * 256)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    assert synthesize(mels[:0]).size == 0
    floored = dataclasses.replace(spec, mel=dataclasses.replace(spec.mel, floor=-0.5))
    (tmp_path / "ours" / run_folder.VOCODER).write_text(to_json(floored))
    heard = load_vocoder(str(tmp_path / "ours"))[1](mels)
    assert mels.min() < -0.5
    np.testing.assert_array_equal(heard, synthesize(np.maximum(mels, np.float32(-0.5))))
    with pytest.raises(Mistake, match="mel of 81 bands: the vocoder reads 80"):
        synthesize(np.zeros((3, 81), np.float32))


def test_vocos_comes_in_and_says_what_it_reads(tmp_path, capsys):
    vocos_files.write(tmp_path / "theirs", **VOCOS)
    answer = phi_files.told("import", tmp_path / "theirs", tmp_path / "ours")
    assert list(answer["left_out"]) == ["constants that the config says"]
    spec, synthesize = load_vocoder(str(tmp_path / "ours"))
    assert (spec.kind, spec.rate, spec.hop, spec.vocos.d) == ("vocos", 24_000, 256, 16)
    assert synthesize(np.zeros((4, 100), np.float32)).size == spec.samples(4) == 3 * 256
    check_same_mel(spec, Mel("vocos", m=100, r=2, normalize="global"))
    rule = (
        r"x: reads mel of vocos \(100 bands, a hop of 256 samples, 24000 Hz, ln of magnitude\): "
        r"given whisper \(80 bands, a hop of 160 samples, 16000 Hz, \(log10 of power \+ 4\) / 4\)"
    )
    with pytest.raises(Mistake, match=rule):
        check_same_mel(spec, Mel("whisper"), "x")
    assert "kind=vocos" in refused(["convert", "export", tmp_path / "ours", tmp_path / "o"], capsys)
    with pytest.raises(Mistake, match="holds a vocoder, which makes sound of mel, and no LLM"):
        run_folder.read_spec(str(tmp_path / "ours"))


def test_torch_files_are_refused_with_the_line_that_converts(tmp_path, capsys):
    folder = vocos_files.write(tmp_path / "theirs", **VOCOS)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    said = refused(["convert", "import", folder, tmp_path / "ours"], capsys)
    assert "holds torch files, which are programs: convert them with python -c" in said
    assert "weights_only=True" in said
    assert not (tmp_path / "ours").exists()


def changed(part, **arguments):
    """Vocos's config with arguments of one part set."""
    tree = vocos_files.tree(**VOCOS)
    tree[part]["init_args"] |= arguments
    return tree


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (changed("feature_extractor", padding="same"), "feature_extractor.init_args.padding=same"),
        (changed("backbone", adanorm_num_embeddings=4), "backbone.init_args.adanorm_num_embedd"),
        (changed("head", tilt=1), "head.init_args.tilt=1: no rule knows this field"),
        (changed("head", dim=8), "head.init_args.dim=8: must be the backbone's 16"),
        (changed("head", hop_length=128), "vocos.hop=128: makes another number of samples"),
        ({**vocos_files.tree(**VOCOS), "ema": 1}, "ema=1: no rule knows this field"),
        (
            {**vocos_files.tree(**VOCOS), "head": {"class_path": "vocos.heads.IMDCTCosHead"}},
            "head.class_path=vocos.heads.IMDCTCosHead: must be vocos.heads.ISTFTHead",
        ),
        ([1], "must be an object of fields"),
    ],
)
def test_a_vocos_that_we_lack_is_refused_by_name(tmp_path, capsys, config, message):
    vocos_files.write(tmp_path / "theirs", config, **VOCOS)
    words = ["convert", "import", tmp_path / "theirs", tmp_path / "ours"]
    assert re.search(message, refused(words, capsys))
    assert not (tmp_path / "ours").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gin_channels": 3}, "gin_channels=3: no rule knows this field"),
        ({"sampling_rate": 22050}, "sampling_rate=22050: must be 16000"),
        (
            {"upsample_rates": [4, 8], "upsample_kernel_sizes": [4, 8]},
            "hifi_gan.hop=32: makes another number",
        ),
        ({"upsample_rates": "4"}, 'upsample_rates="4": must be a list of whole numbers above 0'),
        ({"upsample_kernel_sizes": [33, 16]}, "hifi_gan.kernels=33: must be 32 or an even number"),
        ({"upsample_initial_channel": 16}, r"conv_pre.weight is \[8, 80, 7\]: its config asks for"),
    ],
)
def test_a_hifi_gan_that_we_lack_is_refused_by_name(tmp_path, capsys, change, message):
    hifi_gan(tmp_path / "theirs", **change)
    words = ["convert", "import", tmp_path / "theirs", tmp_path / "ours"]
    assert re.search(message, refused(words, capsys))
    assert not (tmp_path / "ours").exists()


def test_a_vocoder_has_no_lora(tmp_path, capsys):
    hifi_gan(tmp_path / "theirs")
    words = ["convert", "import", tmp_path / "theirs", tmp_path / "ours"]
    assert refused([*words, "--lora", "drop"], capsys) == "lora=drop: a vocoder has none"
    phi_files.told("import", tmp_path / "theirs", tmp_path / "ours")
    words = ["convert", "export", tmp_path / "ours", tmp_path / "out"]
    assert "lora=drop: a vocoder goes out whole" in refused([*words, "--lora", "drop"], capsys)
