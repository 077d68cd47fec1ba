"""Our modules against transformers' Llama and its kin, small: imported, run, exported."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from launch.runs.model_loader import load_model
from melllm_jax import sharding
from melllm_jax.checkpoints import run_folder
from melllm_jax.config.model import Model, Rope
from melllm_jax.models.decoder_stack import LayerContext
from melllm_jax.nn import attention
from tests.support import models, phi_files
from tests.support.references import assert_equal, randomised, sizes, torch, transformers

# 16 positions are 2.5, 0.8, 0.25 and 0.08 waves: some rates stay, some are between, one is divided.
LLAMA3 = Rope(theta=100.0, factor=8.0, low=0.2, high=2.0, original=16, longest=64)
PLAIN = Rope(original=64, longest=64)
SMALL = {"d": 32, "n": 4, "k": 2, "h": 8, "f": 48, "l": 2, "v": 64, "front": "none", "rope": PLAIN}
KINDS = {
    "Llama, tied, Llama 3's scaling": Model(**SMALL | {"rope": LLAMA3}, family="llama"),
    "Mistral, window, own head width, linear scaling": Model(
        **SMALL | {"h": 16, "rope": Rope(factor=2.5, original=64, longest=64)},
        tied=False,
        window=5,
        family="mistral",
    ),
    "Qwen2, window": Model(**SMALL, tied=False, window=7, qkv_bias=True, family="qwen2"),
    "Qwen3, own head width": Model(**SMALL | {"h": 16}, qk_norm=True, family="qwen3"),
}
CLASSES = {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3"}
TEXTS = [24, 18]  # beyond `original`, packed into one row


class Pair:
    """The same small model, theirs and ours as it was imported from what they saved."""

    def __init__(self, m, folder):
        self.m, self.folder, name = m, folder, CLASSES[m.family]
        theirs = getattr(transformers, f"{name}ForCausalLM")
        self.theirs = randomised(theirs(getattr(transformers, f"{name}Config")(**sizes(m))))
        transformers.utils.logging.disable_progress_bar()
        self.theirs.save_pretrained(folder / "theirs")
        phi_files.told("import", folder / "theirs", folder / "ours")
        with models.one_device():
            self.ours = load_model(folder / "ours", "float32").model


@pytest.fixture(scope="module", params=KINDS)
def pair(request, tmp_path_factory):
    return Pair(KINDS[request.param], tmp_path_factory.mktemp("pair"))


def computed(model, x_btd, batch):
    """What our modules make of one text's hidden states, and the logits of a packed row."""
    t = x_btd.shape[1]
    ones, at = jnp.ones((1, t), jnp.int32), jnp.arange(t, dtype=jnp.int32)[None]
    ids = attention.PositionIds(ones, at, 0 * ones)
    seen = model.visibility_mask(ids, ids)
    see = lambda q, k, v: attention.attend(q, k, v, seen)
    angles = tuple(part[:, :t] for part in model.angles(batch))
    layer = model.stack.layer(1)
    return {
        "seen": seen,
        "angles": [jnp.concatenate([part, part], -1) for part in angles],
        "norm": layer.attn_norm(x_btd),
        "mlp": layer.mlp(x_btd),
        "attention": layer.attn(x_btd, LayerContext(angles, see)),
        "block": layer(x_btd, LayerContext(angles, see)),
        "logits": model.logits(model(batch)),
    }


def test_every_module_and_the_logits_equal_theirs(pair):
    """The first of two packed texts, module by module. Two layers of float32 sums: 1e-6."""
    t, theirs = TEXTS[0], pair.theirs.model.layers[1]
    x = np.random.default_rng(0).standard_normal((1, t, pair.m.d)).astype(np.float32)
    texts = [models.segment(length, seed=length) for length in TEXTS]
    with models.one_device(), torch.no_grad():
        batch = sharding.shard_batch(models.pack([texts], 44))
        ours = jax.device_get(models.jitted(computed)(pair.ours, x, batch))
        x = torch.tensor(x)
        angles = pair.theirs.model.rotary_emb(x, torch.arange(t)[None])
        mask = torch.where(torch.tensor(ours["seen"]), 0.0, -torch.inf)[:, None]
        given = {"position_embeddings": angles, "attention_mask": mask}
        for mine, other in zip(ours["angles"], angles, strict=True):
            assert_equal(mine, other, 1e-5)
        assert_equal(ours["norm"], theirs.input_layernorm(x), 1e-5)
        assert_equal(ours["mlp"], theirs.mlp(x), 1e-5)
        assert_equal(ours["attention"], theirs.self_attn(x, **given)[0], 1e-5)
        assert_equal(ours["block"], theirs(x, **given), 1e-5)
        parts = np.split(ours["logits"][:, : sum(TEXTS)], [t], axis=1)
        for text, mine in zip(texts, parts, strict=True):
            assert_equal(mine, pair.theirs(torch.tensor(text["tokens"])[None]).logits, 1e-5)


def test_what_was_read_is_written_back_and_loaded_by_the_class_it_came_from(pair):
    folder = pair.folder
    assert run_folder.read_spec(str(folder / "ours")).model == pair.m
    phi_files.told("export", folder / "ours", folder / "back")
    given, back = (phi_files.load(folder / x / "model.safetensors") for x in ("theirs", "back"))
    assert back.keys() == given.keys()
    for name, x in given.items():
        np.testing.assert_array_equal(back[name], x, strict=True, err_msg=name)
    again, said = transformers.AutoModelForCausalLM.from_pretrained(
        folder / "back", attn_implementation="eager", output_loading_info=True
    )
    assert not any(said.values()), said
    assert type(again) is type(pair.theirs)
    tokens = torch.tensor(models.segment(TEXTS[0], seed=3)["tokens"])[None]
    with torch.no_grad():
        assert torch.equal(again.eval()(tokens).logits, pair.theirs(tokens).logits)
    phi_files.told("import", folder / "back", folder / "again")
    assert run_folder.read_spec(str(folder / "again")).model == pair.m


def test_check_finds_the_import_equal_to_its_original(pair):
    """`melllm convert check`: hooks and classes of every family."""
    told = phi_files.told("check", pair.folder / "theirs", pair.folder / "ours")
    assert told["agrees"] is True
    assert max(*told["layers"], told["logits"]) < 2e-5
