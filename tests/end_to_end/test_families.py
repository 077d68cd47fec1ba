"""Every model family of the card: imported, trained for an update, transcribing, exported."""

import dataclasses
import json

import numpy as np
import pytest

from data_pipelines.text.load_tokenizer import load_tokenizer
from data_pipelines.text.prompt import asr_prompt
from launch import cli
from launch.runs.run_inputs import complete_run
from melllm_jax.checkpoints import run_folder
from melllm_jax.config.overrides import override
from melllm_jax.presets import catalog
from melllm_jax.training.run_start import run_from
from tests.support import llama_files, phi_files
from tests.support.families import FAMILIES, V, write_checkpoint
from tests.support.runs import compiled_once, compiled_quickly, corpus, one_device, refused

once = pytest.fixture(scope="module", autouse=True)(compiled_once)
quick = pytest.fixture(scope="module", autouse=True)(compiled_quickly)
alone = pytest.fixture(scope="module", autouse=True)(one_device)
SMALL = {"data.t": 160, "data.b": 2, "data.bins": 1, "data.threads": 1, "checkpoints.every": 1} | {
    "lora.r": phi_files.R,
    "lora.alpha": phi_files.ALPHA,
    "lora.dropout": 0.0,
    "model.c": phi_files.C,
    "optim.steps": 1,
    "optim.warmup": 0,
    "text.instruction": "Hi",
    "model.remat": "none",
}
FLAGS = [word for name, value in SMALL.items() for word in (f"--{name}", str(value))]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return corpus(tmp_path_factory.mktemp("data"), count=8)


# Slow: the decoder of another layout, a sound token that the table lacks, or rows to be added.
TRAINED = {
    "Phi-3-mini": True,
    "Phi-4-mini": True,  # training/test_front_start trains it too
    "Phi-4-multimodal, Microsoft's": False,
    "SmolLM2": True,  # parity/test_llama holds its decoder, data_pipelines/text its template
    "Llama-3.1": True,
    "Qwen3": True,
}
# As one of those but for tokens and template, which decide what their runs know and no more.
SIBLINGS = sorted(FAMILIES.keys() - TRAINED)


NOT_PHI = {"llama3", "qwen2", "qwen3"}  # decoders with what Phi lacks


def assert_loaded(folder, model_type):
    """transformers loads all of an exported LLM, as the class that its family has."""
    transformers = pytest.importorskip("transformers", reason="needs the extra `parity`")
    model, said = transformers.AutoModelForCausalLM.from_pretrained(
        folder, output_loading_info=True
    )
    assert not any(said.values()), said
    assert model.config.model_type == model_type
    assert (folder / "speech-lora/adapter_model.safetensors").exists()


@pytest.mark.parametrize("name", SIBLINGS)
def test_a_run_from_an_import_knows_its_familys_tokens(name, data, tmp_path):
    family = FAMILIES[name]
    write_checkpoint(tmp_path / "theirs", family)
    phi_files.told("import", tmp_path / "theirs", tmp_path / "ours")
    start = run_from(catalog.preset("mel_llm_asr"), str(tmp_path / "ours"), "")
    found = complete_run(override(start, SMALL | {"data.sources": [{"path": str(data)}]}))
    run, names = found.run, found.tokenizer.specials
    assert (run.text.template, run.model.v) == ("chat", V)
    assert run.text.placeholder == (found.tokenizer.size if family.sound is None else -1)
    prompt = asr_prompt(found.tokenizer, run.text)
    unnamed = found.tokenizer.size
    assert prompt.audio == (unnamed if family.sound is None else names[family.sound])
    assert prompt.end == names[family.end]


@pytest.mark.parametrize(
    "name", [pytest.param(x, marks=pytest.mark.slow if slow else ()) for x, slow in TRAINED.items()]
)
def test_family_is_imported_trained_heard_and_exported(name, data, tmp_path, capsys):
    family, [theirs, ours, run, llm, back] = FAMILIES[name], [tmp_path / x for x in "abcde"]
    write_checkpoint(theirs, family)
    phi_files.told("import", theirs, ours)
    words = ["--init", ours, "--data", data, "--workdir", run, "--compiled", ""]
    assert cli.main(["train", "mel_llm_asr", *FLAGS, *map(str, words)]) == 0
    capsys.readouterr()
    heard = ["--run", str(run), str(data / "audio/0.flac"), "--json", "--decoding.extra", "1"]
    assert cli.main(["transcribe", *heard]) == 0
    assert json.loads(capsys.readouterr().out)

    tokenizer, trained = load_tokenizer(str(run / "tokenizer")), run_folder.read_run(str(run))
    names, size = tokenizer.specials, tokenizer.size
    unnamed = family.sound is None
    assert trained.text.template == "chat"
    assert trained.text.placeholder == (size if unnamed else -1)
    assert trained.model.v == (320 if family.fills else V)
    metrics = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    assert np.isfinite(metrics["loss"])

    if family.kind in llama_files.TREES:
        phi_files.told("export", run, llm, "--front", "drop")
        assert_loaded(llm, family.kind.removesuffix("3") if "llama" in family.kind else family.kind)
    if family.kind in NOT_PHI:  # transformers' only class with this front end
        said = refused(["convert", "export", run, back], capsys)
        assert said.endswith("for model.family=phi3; --front drop exports the LLM alone")
        return
    phi_files.told("export", run, back)
    config = json.loads((back / "config.json").read_text())
    assert config["vocab_size"] == trained.model.v
    assert config["audio_config"]["audio_token_id"] == (size if unnamed else names[family.sound])
    for file in ("tokenizer.json", "tokenizer_config.json"):
        assert (back / file).read_bytes() == (theirs / file).read_bytes()
    rows = phi_files.load(back / "model.safetensors")["model.embed_tokens.weight"]
    given = phi_files.load(theirs / "model.safetensors")["model.embed_tokens.weight"]
    assert rows.shape[0] == trained.model.v
    np.testing.assert_allclose(rows[: len(given)].astype(np.float32), given, rtol=2**-8)
    if family.fills:  # what is no token is as likely as the mean of all
        new = rows[len(given) :].astype(np.float32)
        np.testing.assert_allclose(new, [given.mean(0)] * len(new), rtol=0, atol=2e-3)


def test_a_template_whose_token_the_tokenizer_lacks_is_refused_before_anything_is_written(
    data, tmp_path, capsys
):
    theirs, ours, run = (tmp_path / x for x in "abc")
    template = FAMILIES["SmolLM2"].template.replace("<|im_start|>", "<|turn|>")
    write_checkpoint(theirs, dataclasses.replace(FAMILIES["SmolLM2"], template=template))
    phi_files.told("import", theirs, ours)
    words = ["--init", ours, "--data", data, "--workdir", run, "--compiled", ""]
    said = refused(["train", "mel_llm_asr", *FLAGS, *words], capsys)
    file = ours / "tokenizer/tokenizer_config.json"
    assert said == f"{file}: its chat template writes <|turn|>: no token of the tokenizer"
    assert not run.exists()
