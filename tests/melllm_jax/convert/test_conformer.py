"""Phi-4-multimodal's Conformer through `melllm convert`: read, refused, written again."""

import json

import numpy as np
import pytest

from launch import cli
from melllm_jax.checkpoints import run_folder
from melllm_jax.config.encoders import Conformer
from melllm_jax.convert.tensor_names.phi_conformer import MICROSOFT
from tests.support import conformer_files, phi_files
from tests.support.conformer_files import DISTANCE, TAPS, F, L, N
from tests.support.phi_files import AUDIO
from tests.support.runs import refused

CONFORMER = ("--front", "conformer")
ENCODER = f"{AUDIO}encoder."


@pytest.mark.parametrize("kind", ["microsoft", "transformers"])
def test_an_import_is_exported_to_the_same_numbers_and_sizes(tmp_path, kind):
    named = conformer_files.make(tmp_path / "theirs", kind)
    told = phi_files.told("import", tmp_path / "theirs", tmp_path / "ours", *CONFORMER)
    assert "Conformer blocks" not in told["left_out"]
    model = run_folder.read_spec(str(tmp_path / "ours")).model
    assert model.front == "conformer"
    chunk = 4 if kind == "transformers" else 0
    assert model.conformer == Conformer(
        l=L, n=N, f=F, taps=TAPS, chunk=chunk, left=1, distance=DISTANCE
    )
    phi_files.told("export", tmp_path / "ours", tmp_path / "back")
    found = phi_files.load(tmp_path / "back/model.safetensors")
    if kind == "microsoft":
        for theirs, microsoft in MICROSOFT.items():
            named = {k.replace(f".{microsoft}.", f".{theirs}."): x for k, x in named.items()}
    wanted = {name: x for name, x in named.items() if name.startswith(ENCODER)}
    assert {name for name in found if name.startswith(ENCODER)} == wanted.keys()
    for name, x in wanted.items():
        np.testing.assert_array_equal(found[name], x, err_msg=name)
    audio = json.loads((tmp_path / "back/config.json").read_text())["audio_config"]
    sizes = conformer_files.TRANSFORMERS | {"chunk_size": chunk or -1}
    assert {name: audio[name] for name in sizes} == sizes


@pytest.mark.parametrize("kind", ["microsoft", "transformers"])
def test_without_asking_the_stem_is_read_and_the_blocks_are_told(tmp_path, kind):
    named = conformer_files.make(tmp_path / "theirs", kind)
    told = phi_files.told("import", tmp_path / "theirs", tmp_path / "ours")
    left = [name for name in named if "encoder.encoders." in name or "bias_values" in name]
    assert told["left_out"]["Conformer blocks"] == sorted(left)
    assert run_folder.read_spec(str(tmp_path / "ours")).model.front == "conv"


@pytest.mark.parametrize(
    ("kind", "changes", "says"),
    [
        ("transformers", {"chunk_size": 0}, "audio_config.chunk_size=0: must be -1"),
        ("transformers", {"chunk_size": [4, 8]}, "audio_config.chunk_size=[4, 8]: must be -1"),
        ("microsoft", {"chunk_size": -2}, "audio_processor.config.chunk_size=-2: must be -1"),
        ("microsoft", {"chunk_size": 4}, "audio_processor.config.chunk_size=4: must be -1"),
        ("transformers", {"left_chunk": -1}, "audio_config.left_chunk=-1: must be a whole number"),
        ("transformers", {"num_blocks": 0}, "audio_config.num_blocks=0: must be 1 or more: --fr"),
        ("transformers", {"bias_symmetric": True}, "audio_config.bias_symmetric=true: must be"),
        ("transformers", {"activation": "relu"}, "audio_config.activation=relu: must be swish"),
        ("transformers", {"conv_glu_type": "sigmoid"}, "conv_glu_type=sigmoid: must be swish"),
        ("transformers", {"num_attention_heads": 3}, "num_attention_heads=3: must divide the wid"),
        ("transformers", {"depthwise_multiplier": 2}, "depthwise_multiplier=2: must be 1"),
        ("transformers", {"ext_pw_out_channel": 9}, "ext_pw_out_channel=9: must equal hidden_si"),
        ("microsoft", {"causal": False}, "audio_processor.config.causal=false: must be true"),
        ("microsoft", {"batch_norm": True}, "audio_processor.config.batch_norm=true: must be fa"),
        ("microsoft", {"cnn_layer_norm": False}, "cnn_layer_norm=false: must be true"),
        ("microsoft", {"ext_pw_kernel_size": 3}, "ext_pw_kernel_size=3: must be 1"),
        ("microsoft", {"attention_group_size": 2}, "attention_group_size=2: no rule knows"),
        (
            "microsoft",
            {"relative_attention_bias_args": {"type": "t5", "t5_bias_num_buckets": 32}},
            "relative_attention_bias_args.t5_bias_max_distance is missing",
        ),
        (
            "microsoft",
            {"depthwise_seperable_out_channel": 9},
            "depthwise_seperable_out_channel=9: must equal attention_dim=8",
        ),
    ],
)
def test_a_conformer_that_we_do_not_follow_is_refused(tmp_path, capsys, kind, changes, says):
    conformer_files.make(tmp_path / "theirs", kind, **changes)
    words = ("convert", "import", f"{tmp_path}/theirs", f"{tmp_path}/ours", *CONFORMER)
    assert says in refused(words, capsys)
    assert not (tmp_path / "ours").exists()


def test_a_text_model_has_no_conformer_to_read(tmp_path, capsys):
    phi_files.make(tmp_path / "theirs", "text")
    words = ("convert", "import", f"{tmp_path}/theirs", f"{tmp_path}/ours", *CONFORMER)
    assert "model_type=phi3: has no Conformer" in refused(words, capsys)


@pytest.mark.parametrize("name", ["encoders.1.conv.glu.b2", "encoders.0.self_attn.q_proj.bias"])
def test_a_block_that_lacks_a_tensor_is_refused(tmp_path, capsys, name):
    named = conformer_files.tensors("transformers")
    del named[ENCODER + name]
    phi_files.write(tmp_path / "theirs", conformer_files.tree("transformers"), named)
    words = ("convert", "import", f"{tmp_path}/theirs", f"{tmp_path}/ours", *CONFORMER)
    assert f"has no tensor {ENCODER}{name}" in refused(words, capsys)
    assert not (tmp_path / "ours").exists()


def test_more_blocks_than_the_config_says_are_not_left_out_unasked(tmp_path, capsys):
    conformer_files.make(tmp_path / "theirs", "transformers", num_blocks=1)
    words = ("convert", "import", f"{tmp_path}/theirs", f"{tmp_path}/ours", *CONFORMER)
    assert f"no rule knows the tensor {ENCODER}encoders.1." in refused(words, capsys)
    assert cli.main(list(words[:4])) == 0
