"""`melllm convert check`: transformers' own model and the import agree, or it says where not."""

import json
import math
import shutil
import sys

import numpy as np
import pytest
import soundfile
import tokenizers
from tokenizers import models, pre_tokenizers

from launch import cli
import launch.evaluation
from launch.evaluation import checkpoint_parity
from launch.evaluation.checkpoint_parity import ParityReport
from tests.support import conformer_files, phi_files
from tests.support.references import PARITY, randomised, transformers
from tests.support.runs import (
    compiled_once,
    compiled_quickly,
    refused,
)

safetensors_numpy = pytest.importorskip("safetensors.numpy", reason=PARITY)

once = pytest.fixture(scope="module", autouse=True)(compiled_once)
quick = pytest.fixture(scope="module", autouse=True)(compiled_quickly)
shaped = pytest.fixture(scope="module", autouse=True)(phi_files.shaped_once)
FIELDS = {"positions", "kl", "kl_max", "top1", "logits", "layers", "bound", "agrees"}
WORDS = 48  # random tokens where no text is given
CLIPS = 7 + 3  # positions of long.wav and short.wav


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The originals `text`, `microsoft`, `transformers`, two with a Conformer, and two sounds."""
    folder = tmp_path_factory.mktemp("check")
    for samples, name in ((9000, "long"), (4000, "short")):
        wave = np.random.default_rng(samples).normal(0.0, 0.1, samples)
        soundfile.write(folder / f"{name}.wav", wave.astype(np.float32), 16_000)
    for kind in ("text", "microsoft"):
        phi_files.make(folder / kind, kind)
        words_file(folder / kind)
    saved(folder / "transformers")
    conformer_files.make(folder / "conformer microsoft", "microsoft")
    words_file(folder / "conformer microsoft")
    saved(folder / "conformer transformers", **conformer_files.TRANSFORMERS)
    return folder


def words_file(folder):
    """A tokenizer of two words with Phi-4-MM's placeholder."""
    table = tokenizers.Tokenizer(models.WordLevel({"<unk>": 0, "one": 1, "two": 2}, "<unk>"))
    table.pre_tokenizer = pre_tokenizers.Whitespace()
    table.add_special_tokens(["<|endoftext11|>"])
    table.save(str(folder / "tokenizer.json"))


def saved(folder, **encoder):
    """What transformers itself writes of Phi-4-multimodal, Conformer and vision tower included."""
    tree = phi_files.TRANSFORMERS
    sizes = ("hidden_size", "intermediate_size", "num_attention_heads", "num_hidden_layers")
    images = dict.fromkeys(("image_size", "patch_size", "crop_size"), 14)
    vision = tree["vision_config"] | dict.fromkeys(sizes, 1) | images
    audio = tree["audio_config"] | {"intermediate_size": 8, "bias_max_distance": 2} | encoder
    config = transformers.Phi4MultimodalConfig(
        **tree | {"vision_config": vision, "audio_config": audio}
    )
    model = randomised(transformers.Phi4MultimodalForCausalLM(config))
    transformers.utils.logging.disable_progress_bar()
    model.save_pretrained(folder)
    named = phi_files.tensors("transformers")
    (folder / "speech-lora").mkdir()
    (folder / "speech-lora/adapter_config.json").write_text(json.dumps(phi_files.ADAPTER))
    adapter = {name: x for name, x in named.items() if name.startswith(phi_files.PEFT)}
    phi_files.save(folder / "speech-lora/adapter_model.safetensors", adapter)


def checked(capsys, *words, status=0):
    """The object that the command prints."""
    capsys.readouterr()
    assert cli.main(["convert", "check", *map(str, words), "--json"]) == status
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(
    ("kind", "lora", "more", "positions"),
    [
        ("text", "keep", [], WORDS),
        ("text", "keep", ["--text", "two one one two"], 4),
        ("microsoft", "keep", ["--audio", "long.wav", "short.wav"], WORDS + CLIPS),
        ("microsoft", "merge", [], WORDS),
        ("microsoft", "drop", [], WORDS),
        ("transformers", "keep", ["--audio", "long.wav", "short.wav"], WORDS + CLIPS),
        ("transformers", "merge", ["--audio", "long.wav", "short.wav"], WORDS + CLIPS),
        ("transformers", "drop", ["--audio", "long.wav", "short.wav"], WORDS + CLIPS),
    ],
)
def test_check_agrees_to_the_rounding_of_float32(
    folder, tmp_path, capsys, kind, lora, more, positions
):
    phi_files.told("import", folder / kind, tmp_path / "ours", "--lora", lora)
    more = [folder / word if word.endswith("wav") else word for word in more]
    found = checked(capsys, folder / kind, tmp_path / "ours", *more)
    assert found.keys() == FIELDS
    assert found["positions"] == positions
    assert found["agrees"] is True
    assert found["bound"] == 1e-6
    assert abs(found["kl"]) < 1e-9  # of logits that are 1e-5 apart; a fault makes 1e-4
    assert found["kl"] <= found["kl_max"] < 1e-8
    assert found["top1"] == 1.0
    assert len(found["layers"]) == phi_files.L
    assert max(*found["layers"], found["logits"]) < 2e-5


@pytest.mark.parametrize("kind", ["microsoft", "transformers"])
def test_check_hears_the_conformer_where_it_was_imported(folder, tmp_path, capsys, kind):
    source = folder / f"conformer {kind}"
    phi_files.told("import", source, tmp_path / "ours", "--front", "conformer")
    sounds = [folder / "long.wav", folder / "short.wav"]
    found = checked(capsys, source, tmp_path / "ours", "--audio", *sounds)
    assert (found["positions"], found["agrees"]) == (WORDS + CLIPS, True)
    assert max(*found["layers"], found["logits"]) < 2e-5
    phi_files.told("export", tmp_path / "ours", tmp_path / "back")
    found = checked(capsys, tmp_path / "back", tmp_path / "ours", "--audio", *sounds)
    assert found["agrees"]
    assert max(*found["layers"], found["logits"]) < 2e-5


def test_check_of_what_was_dropped_differs_from_what_was_kept(folder, tmp_path, capsys):
    """LoRA is at work in these checkpoints: passing it over on one side shows."""
    phi_files.told("import", folder / "microsoft", tmp_path / "ours", "--lora", "drop")
    origin = json.loads((tmp_path / "ours/import.json").read_text())
    (tmp_path / "ours/import.json").write_text(json.dumps(origin | {"lora": "keep"}))
    found = checked(capsys, folder / "microsoft", tmp_path / "ours", status=1)
    assert found["kl"] > 1e-3


@pytest.mark.parametrize(
    ("name", "moved"),
    [
        ("model.layers.0.self_attn.o_proj.weight", [True, True]),
        ("model.layers.1.mlp.down_proj.weight", [False, True]),
        ("lm_head.weight", [False, False]),
    ],
)
def test_check_of_a_changed_weight_says_which_layer_is_the_first_to_differ(
    folder, tmp_path, capsys, name, moved
):
    shutil.copytree(folder / "text", tmp_path / "changed")
    tensors = safetensors_numpy.load_file(tmp_path / "changed/model.safetensors")
    tensors[name] = tensors[name].copy()
    tensors[name][3] += 0.5
    safetensors_numpy.save_file(tensors, tmp_path / "changed/model.safetensors", {"format": "pt"})
    phi_files.told("import", tmp_path / "changed", tmp_path / "ours")
    found = checked(capsys, folder / "text", tmp_path / "ours", status=1)
    assert found["agrees"] is False
    assert [apart > 1e-3 for apart in found["layers"]] == moved
    assert all(apart > 1e-3 or apart < 1e-5 for apart in found["layers"])
    assert found["logits"] > 1e-3
    assert found["kl_max"] > found["kl"] > 1e-4
    assert cli.main(["convert", "check", str(folder / "text"), str(tmp_path / "ours")]) == 1
    said = capsys.readouterr().out
    assert said.startswith(f"NOT the same: KL {found['kl']:.2e} nats a token (bound 1e-06), ")
    assert said.count("\n") == 1
    loose = ["--bound", found["kl"] * 1.01]
    assert checked(capsys, folder / "text", tmp_path / "ours", *loose)["agrees"] is True


def test_report_of_logits_made_by_hand_is_what_is_computed_by_hand():
    log3 = math.log(3)
    #          probabilities:  (1/2, 1/2)    (3/4, 1/4)    (1/4, 3/4)
    theirs = np.array([[1.0, 1.0], [log3, 0.0], [0.0, log3]], np.float32)
    #                          (3/4, 1/4)    (1/4, 3/4)    (1/4, 3/4)
    ours = np.array([[log3, 0.0], [0.0, log3], [5.0, 5 + log3]], np.float32)
    first = 0.5 * math.log(2 / 3) + 0.5 * math.log(2)
    second = 0.75 * log3 - 0.25 * log3
    layers = [np.array([[1.0, -2.0]]), np.array([[4.0, 0.0]])]
    moved = [np.array([[1.0, -2.5]]), np.array([[4.0, 3.0]])]
    found = checkpoint_parity.parity_report(layers, theirs, moved, ours)
    assert found == ParityReport(
        positions=3,
        kl=pytest.approx((first + second) / 3, rel=1e-6),
        kl_max=pytest.approx(second, rel=1e-6),
        top1=pytest.approx(2 / 3),
        logits=pytest.approx(5 / log3, rel=1e-6),
        layers=(0.25, 0.75),
    )


def test_check_without_torch_is_refused_in_one_line(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)  # Python's way to say: cannot be imported
    monkeypatch.delitem(sys.modules, "launch.evaluation.transformers_reference", raising=False)
    monkeypatch.delattr(launch.evaluation, "transformers_reference", raising=False)
    said = refused(["convert", "check", folder / "text", tmp_path], capsys)
    assert said == (
        "check: torch is missing: the original runs in torch; install the extra `parity`"
    )


def test_check_refuses_what_was_not_imported_and_sound_for_text_alone(folder, tmp_path, capsys):
    given = ["convert", "check", folder / "text", tmp_path / "ours"]
    said = refused(given, capsys)
    assert said == f"checkpoint={tmp_path / 'ours'}: holds neither model.json nor run.json"
    phi_files.told("import", folder / "text", tmp_path / "ours")
    sound = folder / "long.wav"
    said = refused([*given, "--audio", sound], capsys)
    assert said == f"audio={sound}: the model reads text alone (model.front=none)"
    (tmp_path / "ours/import.json").unlink()
    assert "holds no import.json: check compares what was imported" in refused(given, capsys)
