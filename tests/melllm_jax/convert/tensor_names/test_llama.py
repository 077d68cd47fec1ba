"""LoRA where q, k and v, gate and up lie apart: PEFT's seven matrices from our four, and back."""

import dataclasses
import json

import numpy as np
import pytest

from launch import cli
from melllm_jax import sharding
from melllm_jax.checkpoints import integrity, run_folder, weight_store
from melllm_jax.config.model import Lora, Model
from tests.support import llama_files, models, phi_files
from tests.support.phi_files import PEFT, D, F, H, K, L, N, V
from tests.support.references import torch, transformers
from tests.support.runs import refused, saved

peft = pytest.importorskip("peft", reason="needs the extra `parity`")
pytestmark = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing`:FutureWarning"  # PEFT's own
)
MODEL = Model(d=D, n=N, k=K, h=H, f=F, l=L, v=V, front="none", qkv_bias=True, family="qwen2")
TOKENS = [[5, 9, 61, 3, 3, 40, 17, 22, 1, 30, 11, 60]]
ADAPTER = {
    "bias": "none",
    "lora_alpha": 6,
    "lora_dropout": 0.0,
    "peft_type": "LORA",
    "r": 3,
    "task_type": "CAUSAL_LM",
}


def logits(model):
    with torch.no_grad():
        return model.eval()(torch.tensor(TOKENS)).logits.numpy()


def opened(folder):
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype="float32")


CFG = models.run(MODEL, Lora(r=4, alpha=6.0))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a run of Qwen2 with LoRA, whose B are not zero, and its weights."""
    folder = tmp_path_factory.mktemp("run")
    with models.one_device():
        values = models.made(CFG)[1]
        saved(folder / "run", CFG, values)
    return folder / "run", values


def own_logits(values):
    """What the run itself says of the tokens."""
    row = models.segment(len(TOKENS[0]), seed=0) | {"tokens": np.array(TOKENS[0])}
    with models.one_device():
        model = models.made(CFG)[0].model(values)
        batch = sharding.shard_batch(models.pack([[row]], len(TOKENS[0])))
        return np.asarray(models.jitted(lambda m, b: m.logits(m(b)))(model, batch))


def test_peft_loads_what_we_share_as_equal_copies_and_computes_what_is_merged(run, tmp_path):
    """float32 sums of two layers in another order: 2e-6 of the largest logit."""
    for lora in ("keep", "merge", "drop"):
        phi_files.told("export", run[0], tmp_path / lora, "--lora", lora)
    named = phi_files.load(tmp_path / "keep/speech-lora/adapter_model.safetensors")
    assert len(named) == 2 * 7 * L
    a = lambda x: named[f"{PEFT}model.layers.1.{x}_proj.lora_A.weight"]
    np.testing.assert_array_equal(a("self_attn.q"), a("self_attn.v"))
    np.testing.assert_array_equal(a("self_attn.q"), a("self_attn.k"))
    np.testing.assert_array_equal(a("mlp.gate"), a("mlp.up"))
    plain, merged = (logits(opened(tmp_path / x)) for x in ("drop", "merge"))
    found = peft.PeftModel.from_pretrained(opened(tmp_path / "keep"), tmp_path / "keep/speech-lora")
    for kept in (logits(found), own_logits(run[1])):
        np.testing.assert_allclose(kept, merged, rtol=0, atol=1e-5 * np.abs(merged).max())
    assert np.abs(merged - plain).max() > 0.1 * np.abs(plain).max()


def test_an_exported_adapter_is_read_back_to_the_same_numbers(run, tmp_path):
    folder, values = run
    phi_files.told("export", folder, tmp_path / "back")
    phi_files.told("import", tmp_path / "back", tmp_path / "again")
    spec = run_folder.read_spec(str(tmp_path / "again"))
    assert (spec.model, spec.lora) == (MODEL, Lora(r=4, alpha=6.0))
    stored = weight_store.WeightReader(integrity.newest_checkpoint(tmp_path / "again/checkpoints"))
    assert stored.shapes.keys() == values.keys()
    for name, x in values.items():
        np.testing.assert_array_equal(stored.read(name), np.asarray(x), err_msg=name)


def test_lora_at_speech_is_never_merged_and_its_adapter_comes_with_a_word(tmp_path, capsys):
    cfg = models.run(
        dataclasses.replace(MODEL, front="linear"), Lora(r=4, alpha=6.0, at="speech"), train="lora"
    )
    with models.one_device():
        saved(tmp_path / "run", cfg, models.made(cfg)[1])
    words = ["convert", "export", tmp_path / "run", tmp_path / "hf", "--front", "drop"]
    assert refused([*words, "--lora", "merge"], capsys) == (
        'lora.at="speech": merged, LoRA would add at text as well: --lora keep writes it beside '
        "the LLM, --lora drop leaves it out"
    )
    assert not (tmp_path / "hf").exists()
    assert cli.main([*map(str, words)]) == 0
    assert capsys.readouterr().out.splitlines()[1] == (
        "speech-lora: switch it on at positions of speech alone, as it was trained "
        "(lora.at=speech); PEFT by itself adds it at all"
    )
    assert (tmp_path / "hf/speech-lora/adapter_model.safetensors").exists()
    bare = phi_files.told(*words[1:3], tmp_path / "bare", *words[4:], "--lora", "drop")
    assert bare["adapter_at"] is None


def beside(folder, targets):
    """A Llama with PEFT's adapter beside it, each A its own, on these modules of each layer."""
    llama_files.make(folder / "base")
    llama_files.make(folder / "theirs")
    rng, named = np.random.default_rng(5), {}
    for i in range(L):
        for module in targets:
            rows, columns = llama_files.MATRICES[module]
            name = f"{PEFT}model.layers.{i}.{module}"
            named[f"{name}.lora_A.weight"] = rng.standard_normal((3, columns), dtype=np.float32)
            named[f"{name}.lora_B.weight"] = rng.standard_normal((rows, 3), dtype=np.float32)
    phi_files.save(folder / "theirs/adapter_model.safetensors", named)
    names = [module.split(".")[1] for module in targets]
    config = json.dumps(ADAPTER | {"target_modules": names})
    (folder / "theirs/adapter_config.json").write_text(config)


SOME = ["self_attn.q_proj", "self_attn.v_proj"]  # the commonest choice


@pytest.mark.parametrize("targets", [[*llama_files.MATRICES], SOME], ids=["all", "some"])
def test_an_adapter_whose_a_differ_is_merged_as_peft_merges_it(tmp_path, targets):
    """float32 sums of three products in another order: 1e-6 of numbers of about 1."""
    beside(tmp_path, targets)
    theirs = peft.PeftModel.from_pretrained(opened(tmp_path / "base"), tmp_path / "theirs")
    merged = theirs.merge_and_unload().state_dict()
    phi_files.told("import", tmp_path / "theirs", tmp_path / "ours", "--lora", "merge")
    phi_files.told("export", tmp_path / "ours", tmp_path / "back")
    found = phi_files.load(tmp_path / "back/model.safetensors")
    for name, x in found.items():
        np.testing.assert_allclose(merged[name].numpy(), x, rtol=1e-5, atol=1e-5, err_msg=name)


def test_an_adapter_that_our_lora_cannot_be_is_refused_with_the_way_out(tmp_path, capsys):
    beside(tmp_path, [*llama_files.MATRICES])
    words = ["convert", "import", tmp_path / "theirs", tmp_path / "ours"]
    a = f"{PEFT}model.layers.0.self_attn.{{}}_proj.lora_A.weight"
    assert refused(words, capsys) == (
        f"{tmp_path}/theirs/adapter_model.safetensors: {a.format('k')} differs from "
        f"{a.format('q')}: our LoRA has one A for both: --lora merge follows any"
    )
    beside(tmp_path, SOME)
    assert refused(words, capsys) == (
        'adapter_config.json: target_modules=["q_proj", "v_proj"]: must be q_proj, k_proj, v_proj, '
        "o_proj, gate_proj, up_proj, down_proj to be kept: --lora merge follows any"
    )
    assert not (tmp_path / "ours").exists()
