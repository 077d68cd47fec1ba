"""A Whisper checkpoint's encoder, imported as the weights of a front end."""

import json

import numpy as np
import pytest

from melllm_jax.checkpoints import integrity, run_folder, weight_store
from melllm_jax.config.encoders import Whisper
from melllm_jax.config.features import Mel
from melllm_jax.config.model import FrontSpec
from tests.support import phi_files, whisper_files
from tests.support.runs import refused
from tests.support.whisper_files import POSITIONS, TREE, D, F, L, N, tensors, write

SIZES = Whisper(d=D, n=N, f=F, l=L, positions=POSITIONS)


def stored(folder):
    found = weight_store.WeightReader(integrity.newest_checkpoint(folder / "checkpoints"))
    return {name: found.read(name) for name in found.shapes}


@pytest.mark.parametrize("prefix", ["model.", ""])
def test_an_import_holds_every_number_of_the_encoder_as_it_was(tmp_path, prefix):
    named = tensors(prefix=prefix)
    phi_files.told("import", write(tmp_path / "theirs", named=named), tmp_path / "ours")
    ours = stored(tmp_path / "ours")
    theirs = {name.removeprefix(f"{prefix}encoder."): x for name, x in named.items()}
    for layer in range(L):
        block = lambda name, layer=layer: theirs[f"layers.{layer}.{name}"]
        mine = lambda name, layer=layer: ours[f"front.encoder.stack.blocks.{name}"][layer]
        heads = lambda x: x.T.reshape(D, N, D // N)
        for q in "qkv":
            np.testing.assert_array_equal(
                mine(f"attn.{q}"), heads(block(f"self_attn.{q}_proj.weight"))
            )
        out = block("self_attn.out_proj.weight").T.reshape(N, D // N, D)
        np.testing.assert_array_equal(mine("attn.o"), out)
        bias = block("self_attn.v_proj.bias").reshape(N, -1)
        np.testing.assert_array_equal(mine("attn.v_bias"), bias)
        np.testing.assert_array_equal(mine("mlp.up"), block("fc1.weight").T)
        np.testing.assert_array_equal(mine("mlp.down_bias"), block("fc2.bias"))
        np.testing.assert_array_equal(mine("mlp_norm.scale"), block("final_layer_norm.weight"))
        np.testing.assert_array_equal(mine("attn_norm.bias"), block("self_attn_layer_norm.bias"))
    convolution = np.transpose(theirs["conv1.weight"], (2, 1, 0))
    np.testing.assert_array_equal(ours["front.encoder.first"], convolution)
    np.testing.assert_array_equal(ours["front.encoder.second_bias"], theirs["conv2.bias"])
    np.testing.assert_array_equal(ours["front.encoder.positions"], theirs["embed_positions.weight"])
    np.testing.assert_array_equal(ours["front.encoder.stack.norm.bias"], theirs["layer_norm.bias"])
    assert {x.dtype for x in ours.values()} == {np.dtype(np.float16)}
    encoder = [name for name in named if "encoder." in name.removeprefix(prefix)[:8]]
    assert sum(x.size for x in ours.values()) == sum(named[name].size for name in encoder)


def test_an_import_says_what_it_is_and_what_it_left_out(tmp_path, capsys):
    phi_files.told("import", write(tmp_path / "theirs"), tmp_path / "ours")
    folder = str(tmp_path / "ours")
    mel = Mel("whisper", m=80, normalize="none")
    assert run_folder.read_front(folder) == FrontSpec("whisper", mel, SIZES)
    left = json.loads((tmp_path / "ours/import.json").read_text())["left_out"]
    decoder = ["model.decoder.embed_tokens.weight", "model.decoder.layers.0.fc1.bias"]
    assert left == {"decoder": decoder}
    rule = f"checkpoint={folder}: holds a front end alone: --init.front takes it"
    assert refused(["convert", "export", folder, tmp_path / "back"], capsys) == rule
    assert not (tmp_path / "back").exists()


@pytest.mark.parametrize(
    ("tree", "dropped", "rule"),
    [
        ({"activation_function": "relu"}, "", "activation_function=relu: must be gelu"),
        ({"num_mel_bins": 64}, "", "num_mel_bins=64: must be 80 or 128"),
        ({"encoder_attention_heads": 3}, "", "multiple of encoder_attention_heads=3"),
        ({"sliding": 2}, "", "sliding=2: no rule knows this field"),
        ({"encoder_layers": 3}, "", "has no tensor model.encoder.layers.2."),
        ({"encoder_layers": 1}, "", "no rule knows the tensor model.encoder.layers.1."),
        ({}, "model.encoder.conv2.bias", "has no tensor model.encoder.conv2.bias"),
        ({"encoder_ffn_dim": 32}, "", "its config asks for [32, 16]"),
    ],
)
def test_an_import_of_what_we_lack_is_refused_and_writes_nothing(
    tmp_path, capsys, tree, dropped, rule
):
    named = tensors()
    named.pop(dropped, None)
    folder = write(tmp_path / "theirs", TREE | tree, named)
    assert rule in refused(["convert", "import", folder, tmp_path / "ours"], capsys)
    assert not (tmp_path / "ours").exists()


def test_a_whisper_has_no_lora_to_be_merged(tmp_path, capsys):
    folder = whisper_files.write(tmp_path / "theirs")
    words = ["convert", "import", folder, tmp_path / "ours", "--lora", "merge"]
    assert refused(words, capsys) == "lora=merge: a Whisper encoder has none"
