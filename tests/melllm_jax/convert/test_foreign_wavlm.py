"""A WavLM's folder as it may come: names and spellings, layers left out, and what is refused."""

import json

import numpy as np
import pytest

from melllm_jax.convert import foreign_wavlm
from melllm_jax.convert.foreign_wavlm import read_wavlm, wavlm_sizes
from melllm_jax.errors import Mistake
from melllm_jax.models.parameters import split_model
from tests.support import models, phi_files

D, N, F, L, C, TAPS, GROUPS, BUCKETS = 16, 2, 24, 3, 6, 5, 4, 8
TREE = {
    "architectures": ["WavLMModel"],
    "model_type": "wavlm",
    "hidden_size": D,
    "num_attention_heads": N,
    "intermediate_size": F,
    "num_hidden_layers": L,
    "conv_dim": [C, C],
    "conv_kernel": [4, 3],
    "conv_stride": [2, 2],
    "num_conv_pos_embeddings": TAPS,
    "num_conv_pos_embedding_groups": GROUPS,
    "num_buckets": BUCKETS,
    "max_bucket_distance": 9,
    "feat_extract_norm": "layer",
    "do_stable_layer_norm": True,
    "layerdrop": 0.1,
}
DIRECTIONS = "encoder.pos_conv_embed.conv.weight_v"
LENGTHS = "encoder.pos_conv_embed.conv.weight_g"


def shapes():
    found = {"masked_spec_embed": (D,), DIRECTIONS: (D, D // GROUPS, TAPS), LENGTHS: (1, 1, TAPS)}
    found["encoder.pos_conv_embed.conv.bias"] = (D,)
    found["feature_projection.projection.weight"] = (D, C)
    found["feature_projection.projection.bias"] = (D,)
    norms = {"encoder.layer_norm": D, "feature_projection.layer_norm": C}
    for i, c in enumerate((1, C)):
        stem = f"feature_extractor.conv_layers.{i}."
        found[f"{stem}conv.weight"] = (C, c, TREE["conv_kernel"][i])
        norms[f"{stem}layer_norm"] = C
    for i in range(L):
        block = f"encoder.layers.{i}."
        norms |= {f"{block}layer_norm": D, f"{block}final_layer_norm": D}
        matrices = {f"attention.{x}_proj": (D, D) for x in ("q", "k", "v", "out")}
        matrices["attention.gru_rel_pos_linear"] = (8, D // N)
        matrices |= {"feed_forward.intermediate_dense": (F, D)}
        matrices |= {"feed_forward.output_dense": (D, F)}
        for name, shape in matrices.items():
            found |= {f"{block}{name}.weight": shape, f"{block}{name}.bias": shape[:1]}
        found[f"{block}attention.gru_rel_pos_const"] = (1, N, 1, 1)
    found["encoder.layers.0.attention.rel_attn_embed.weight"] = (BUCKETS, N)
    return found | {f"{name}.{x}": (d,) for name, d in norms.items() for x in ("weight", "bias")}


def tensors():
    rng = np.random.default_rng(0)
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes().items()}


def written(folder, named, **change):
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(TREE | change))
    phi_files.save(folder / "model.safetensors", named)
    return folder


def weights(folder, **asked):
    with models.one_device():
        model = read_wavlm(folder, **asked)
        return model.cfg, {name: np.asarray(x) for name, x in split_model(model)[1].items()}


def test_every_tap_of_the_positions_has_the_length_that_is_stored(tmp_path):
    named = tensors()
    _, found = weights(written(tmp_path, named))
    kernel = found["positions.kernel"]
    assert kernel.shape == (TAPS, D // GROUPS, D)
    lengths = np.sqrt(np.square(kernel).sum(axis=(1, 2)))
    np.testing.assert_allclose(lengths, np.abs(named[LENGTHS][0, 0]), rtol=1e-5)
    directions = named[DIRECTIONS][:, 1, 2] * np.sign(named[LENGTHS][0, 0, 2])
    ratio = kernel[2, 1] / directions
    np.testing.assert_allclose(ratio, np.full(D, ratio[0]), rtol=1e-5)


def test_both_spellings_and_a_class_with_a_head_are_the_same(tmp_path):
    named = tensors()
    cfg, expected = weights(written(tmp_path / "plain", named))
    newer = {DIRECTIONS: "original1", LENGTHS: "original0"}
    stem = "encoder.pos_conv_embed.conv.parametrizations.weight."
    other = {f"wavlm.{stem}{newer[k]}" if k in newer else f"wavlm.{k}": x for k, x in named.items()}
    other["lm_head.weight"] = np.ones((3, D), np.float32)
    again, found = weights(written(tmp_path / "headed", other))
    assert again == cfg
    assert found.keys() == expected.keys()
    for name, x in expected.items():
        np.testing.assert_array_equal(found[name], x, name)


def test_first_layers_alone_in_the_causal_form_have_the_same_weights(tmp_path):
    folder = written(tmp_path, tensors())
    cfg, expected = weights(folder)
    small, found = weights(folder, layers=2, causal=True, window=8, last_norm=False)
    assert (small.l, small.causal, small.window, cfg.l, cfg.causal) == (2, True, 8, L, False)
    assert expected.keys() - found.keys() == {"norm.scale", "norm.bias"}
    for name, x in found.items():
        same = expected[name][:2] if name.startswith("blocks.") else expected[name]
        np.testing.assert_array_equal(x, same, name)


def test_a_config_that_says_nothing_is_the_base():
    assert wavlm_sizes({"model_type": "wavlm"}, "c") == foreign_wavlm.WavLM()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "hubert"}, "model_type=hubert: must be wavlm"),
        ({"add_adapter": True}, "add_adapter=true: must be false"),
        ({"hidden_act": "relu"}, "hidden_act=relu: must be gelu"),
        ({"feat_extract_activation": "silu"}, "feat_extract_activation=silu: must be gelu"),
        ({"feat_extract_norm": "batch"}, "feat_extract_norm=batch: must be group or layer"),
        ({"layer_norm_eps": 1e-6}, "layer_norm_eps=1e-06: must be 1e-05"),
        ({"conv_kernel": [4]}, r"conv_kernel=\[4\]: must be 2, as conv_dim has"),
        ({"conv_stride": [2, 0]}, r"conv_stride=\[2, 0\]: must be a list of whole numbers"),
        ({"num_attention_heads": 3}, "wavlm.n=3: cannot share d=16 evenly"),
        ({"position_embeddings": "rotary"}, "position_embeddings=rotary: no rule knows this field"),
    ],
)
def test_what_a_config_has_and_we_lack_is_named(change, message):
    with pytest.raises(Mistake, match=f"^config.json: {message}"):
        wavlm_sizes(TREE | change, "config.json")


@pytest.mark.parametrize(
    ("gone", "more", "message"),
    [
        (LENGTHS, {}, "weight_v without its lengths encoder.pos_conv_embed.conv.weight_g"),
        (DIRECTIONS, {}, "has no tensor encoder.pos_conv_embed.conv.weight as directions"),
        (LENGTHS, {LENGTHS: (D, 1, 1)}, "lengths must be of each tap"),
        ("encoder.layer_norm.bias", {}, "has no tensor encoder.layer_norm.bias"),
        ("", {"encoder.layers.3.layer_norm.bias": (D,)}, "no rule knows the tensor encoder.la"),
        ("", {"feature_extractor.conv_layers.0.conv.bias": (C,)}, "no rule knows the tensor feat"),
    ],
)
def test_tensors_that_are_missing_or_unknown_are_named(tmp_path, gone, more, message):
    named = {name: x for name, x in tensors().items() if name != gone}
    named |= {name: np.ones(shape, np.float32) for name, shape in more.items()}
    with models.one_device(), pytest.raises(Mistake, match=message):
        read_wavlm(written(tmp_path, named))


@pytest.mark.parametrize("layers", [0, 4])
def test_more_layers_than_there_are_is_a_mistake(tmp_path, layers):
    with pytest.raises(Mistake, match=f"layers={layers}: .* has 3"):
        read_wavlm(written(tmp_path, tensors()), layers)
