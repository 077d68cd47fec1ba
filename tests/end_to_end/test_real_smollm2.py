"""SmolLM2-135M itself, in Llama's layout: imported, checked, trained, heard and exported."""

import json
import os
import pathlib

import numpy as np
import pytest

from tests.support import phi_files
from tests.support.runs import corpus, done

pytestmark = pytest.mark.slow
SMALL = {
    "data.t": 128,
    "data.b": 2,
    "data.bins": 1,
    "data.threads": 1,
    "checkpoints.every": 2,
    "lora.r": 4,
    "lora.alpha": 8.0,
    "lora.dropout": 0.0,
    "model.c": 64,
    "model.remat": "none",
    "optim.steps": 2,
    "optim.warmup": 1,
    "optim.compute": "float32",
    "text.instruction": "Transcribe.",
}
FLAGS = [word for name, value in SMALL.items() for word in (f"--{name}", str(value))]


@pytest.fixture(scope="module")
def theirs():
    folder = pathlib.Path(os.environ.get("MELLLM_MODELS", ""), "smollm2-135m")
    if not (folder / "model.safetensors").exists():
        pytest.skip("MELLLM_MODELS names no folder with smollm2-135m")
    return folder


@pytest.fixture(scope="module")
def ours(theirs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("ours") / "ours"
    phi_files.told("import", theirs, folder)
    return folder


@pytest.fixture
def transformers():
    pytest.importorskip("torch", reason="needs the extra `parity`")
    return pytest.importorskip("transformers", reason="needs the extra `parity`")


def loaded(transformers, folder):
    model, said = transformers.AutoModelForCausalLM.from_pretrained(
        folder, output_loading_info=True
    )
    assert not said["unexpected_keys"] and not said["mismatched_keys"], said
    return model, said["missing_keys"]


@pytest.mark.usefixtures("transformers")
def test_the_import_agrees_with_transformers(theirs, ours):
    """Thirty layers of float32 sums; the fault of a rotary angle or a swapped head makes 1e-2."""
    told = phi_files.told("check", theirs, ours)
    assert told["kl"] < 1e-9
    assert told["top1"] == 1.0
    assert max(*told["layers"], told["logits"]) < 5e-5


def test_what_was_read_is_written_back_byte_for_byte(theirs, ours, tmp_path):
    phi_files.told("export", ours, tmp_path / "back")
    given, back = (phi_files.load(x / "model.safetensors") for x in (theirs, tmp_path / "back"))
    assert back.keys() == given.keys()
    assert all(back[name].tobytes() == x.tobytes() for name, x in given.items())


def test_a_run_from_it_hears_and_goes_back_to_transformers(transformers, ours, tmp_path):
    """Two updates of LoRA and a new front end; the vocabulary grows by the token for sound."""
    data, run = corpus(tmp_path / "data", count=8), tmp_path / "run"
    words = ["--init", ours, "--data", data, "--workdir", run, "--compiled", ""]
    status, _, said = done(["train", "mel_llm_asr", *FLAGS, *map(str, words)])  # on one device
    assert status == 0, said
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert np.isfinite(metrics[-1]["loss"])
    heard = ["--run", str(run), str(data / "audio/0.flac"), "--json", "--decoding.extra", "1"]
    status, told, said = done(["transcribe", *heard])
    assert status == 0, said
    assert json.loads(told)
    phi_files.told("export", run, tmp_path / "llm", "--front", "drop")
    model, missing = loaded(transformers, tmp_path / "llm")
    assert (type(model).__name__, missing) == ("LlamaForCausalLM", set())
    assert model.config.vocab_size > 49152
    model.load_adapter(tmp_path / "llm", adapter_kwargs={"subfolder": "speech-lora"})
    added = [name for name, _ in model.named_parameters() if ".lora_" in name]
    assert len(added) == 2 * 7 * 30
    phi_files.told("export", run, tmp_path / "whole")
    model, missing = loaded(transformers, tmp_path / "whole")
    assert type(model).__name__ == "Phi4MultimodalForCausalLM"
    unread = ("image_embed.", "_for_vision_speech.", "relative_attention_bias_layer.")
    assert not [name for name in missing if not any(part in name for part in unread)]
