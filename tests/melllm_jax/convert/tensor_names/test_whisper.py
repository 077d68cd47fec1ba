"""A Whisper checkpoint, imported and exported: its encoder as the weights of a front end."""

import json

import numpy as np
import pytest

from melllm_jax.checkpoints import integrity, run_folder, weight_store
from melllm_jax.config.encoders import Whisper
from melllm_jax.config.features import Mel
from melllm_jax.config.model import FrontSpec
from melllm_jax.config.whisper import WhisperDecoder
from tests.support import phi_files, whisper_files
from tests.support.runs import refused
from tests.support.whisper_files import (
    DE,
    DF,
    DL,
    DN,
    EN,
    POSITIONS,
    SILENT,
    START,
    TARGETS,
    TRANSCRIBE,
    TREE,
    D,
    F,
    L,
    N,
    V,
    tensors,
    write,
)

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
    assert sum(x.size for x in ours.values()) == sum(x.size for x in named.values())


def test_an_import_holds_every_number_of_the_decoder_as_it_was(tmp_path):
    named = tensors()
    phi_files.told("import", write(tmp_path / "theirs", named=named), tmp_path / "ours")
    ours = stored(tmp_path / "ours")
    theirs = {name.removeprefix("model.decoder."): x for name, x in named.items()}
    for layer in range(DL):
        for whose, mine in (("self_attn", "attn"), ("encoder_attn", "cross")):
            weight = theirs[f"layers.{layer}.{whose}.k_proj.weight"]
            heads = weight.T.reshape(D, DN, D // DN)
            np.testing.assert_array_equal(ours[f"decoder.blocks.{mine}.k"][layer], heads)
            bias = theirs[f"layers.{layer}.{whose}.q_proj.bias"].reshape(DN, -1)
            np.testing.assert_array_equal(ours[f"decoder.blocks.{mine}.q_bias"][layer], bias)
            norm = theirs[f"layers.{layer}.{whose}_layer_norm.weight"]
            np.testing.assert_array_equal(ours[f"decoder.blocks.{mine}_norm.scale"][layer], norm)
        up = theirs[f"layers.{layer}.fc1.weight"].T
        np.testing.assert_array_equal(ours["decoder.blocks.mlp.up"][layer], up)
    np.testing.assert_array_equal(ours["decoder.embed"], theirs["embed_tokens.weight"])
    np.testing.assert_array_equal(ours["decoder.positions"], theirs["embed_positions.weight"])
    np.testing.assert_array_equal(ours["decoder.norm.bias"], theirs["layer_norm.bias"])


@pytest.mark.parametrize("prefix", ["model.", ""])
def test_an_export_is_the_folder_that_was_imported(tmp_path, prefix):
    tree = TREE if prefix else TREE | {"architectures": ["WhisperModel"]}
    theirs = write(tmp_path / "theirs", tree, tensors(prefix=prefix))
    phi_files.told("import", theirs, tmp_path / "ours")
    phi_files.told("export", tmp_path / "ours", tmp_path / "back")
    assert {x.name for x in (tmp_path / "back").iterdir()} == {x.name for x in theirs.iterdir()}
    for file in theirs.glob("*.json"):
        assert (tmp_path / "back" / file.name).read_bytes() == file.read_bytes()
    before, after = (phi_files.load(x / "model.safetensors") for x in (theirs, tmp_path / "back"))
    assert before.keys() == after.keys()
    for name, x in before.items():
        assert (x.dtype, x.tobytes()) == (after[name].dtype, after[name].tobytes()), name


def test_an_export_in_another_dtype_says_so(tmp_path, capsys):
    phi_files.told("import", write(tmp_path / "theirs"), tmp_path / "ours")
    phi_files.told("export", tmp_path / "ours", tmp_path / "back", "--dtype", "float32")
    assert json.loads((tmp_path / "back/config.json").read_text())["torch_dtype"] == "float32"
    named = phi_files.load(tmp_path / "back/model.safetensors")
    assert {x.dtype for x in named.values()} == {np.dtype(np.float32)}
    for name, value in (("lora", "merge"), ("front", "drop")):
        words = ["convert", "export", tmp_path / "ours", tmp_path / "other", f"--{name}", value]
        rule = f"{name}={value}: a Whisper goes out whole, and has no LoRA"
        assert refused(words, capsys) == rule
    assert not (tmp_path / "other").exists()


def test_an_import_says_what_it_is_and_what_it_left_out(tmp_path, capsys):
    phi_files.told("import", write(tmp_path / "theirs"), tmp_path / "ours")
    folder = str(tmp_path / "ours")
    mel = Mel("whisper", m=80, normalize="none")
    assert run_folder.read_front(folder) == FrontSpec("whisper", mel, SIZES)
    whole = run_folder.read_whisper(folder)
    assert whole.decoder == WhisperDecoder(n=DN, f=DF, l=DL, v=V, positions=TARGETS)
    assert whole.rules.prompt == (START, TRANSCRIBE, SILENT)
    assert set(whole.rules.languages) == {EN, DE}
    assert json.loads((tmp_path / "ours/import.json").read_text())["left_out"] == {}
    said = refused(["generate", "--checkpoint", folder, "Go."], capsys)
    assert said == run_folder.whisper_alone(folder)
    said = refused(["convert", "export", folder, folder], capsys)
    assert "exists" in said


def test_an_encoder_without_decoder_is_a_front_end_alone(tmp_path, capsys):
    named = {name: x for name, x in tensors().items() if ".decoder." not in name}
    phi_files.told("import", write(tmp_path / "theirs", named=named), tmp_path / "ours")
    folder = str(tmp_path / "ours")
    assert (tmp_path / "ours/front.json").exists()
    assert run_folder.read_whisper(folder) is None
    mel = Mel("whisper", m=80, normalize="none")
    assert run_folder.read_front(folder) == FrontSpec("whisper", mel, SIZES)
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
        ({"decoder_ffn_dim": 32}, "", "its config asks for [32, 16]"),
        ({}, "model.decoder.layer_norm.bias", "has no tensor model.decoder.layer_norm.bias"),
        ({"decoder_layers": 2}, "", "no rule knows the tensor model.decoder.layers.2."),
        ({"decoder_attention_heads": 3}, "", "decoder.n=3: heads cannot share d=16 evenly"),
        ({"tie_word_embeddings": False}, "", "tie_word_embeddings=false: must be true"),
        ({"max_target_positions": 4}, "", "must be above the prompt's 4 tokens, and at most 4"),
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
    assert refused(words, capsys) == "lora=merge: a Whisper has none"
