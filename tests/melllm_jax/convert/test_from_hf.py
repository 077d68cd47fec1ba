"""`melllm convert import`: every number in its place, and nothing left of what was refused."""

import codecs
import importlib
import json
import os
import shutil
import signal
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from launch import cli
from melllm_jax import sharding
from melllm_jax.checkpoints import run_folder, weight_store
from melllm_jax.checkpoints.checkpointer import Checkpoints
from melllm_jax.config.features import Mel, Text
from melllm_jax.config.model import Lora, Model, ModelSpec, Rope
from melllm_jax.config.overrides import from_json
from melllm_jax.config.run import CheckpointIntervals, Mesh
from melllm_jax.convert import block_copy, from_hf, safetensors_files
from melllm_jax.errors import Mistake
from tests.support import llama_files, models, phi_files
from tests.support.paths import ROOT
from tests.support.patience import HANG
from tests.support.phi_files import (
    ADAPTER,
    AUDIO,
    EXTEND,
    NUMBERS,
    PEFT,
    TEXT,
    TREES,
    C,
    D,
    F,
    H,
    K,
    L,
    N,
    V,
)
from tests.support.runs import everything, reached, refused, small_disk

shaped = pytest.fixture(scope="module", autouse=True)(phi_files.shaped_once)
KINDS_OF_NUMBERS = pytest.mark.parametrize(("kind", "number"), phi_files.KINDS_OF_NUMBERS)
MERGED = pytest.mark.parametrize(
    ("kind", "number"),
    [("microsoft", "bfloat16"), ("transformers", "float16"), ("transformers", "float32")],
)
SPEECH = pytest.mark.parametrize("kind", ["microsoft", "transformers"])


def restored(folder, mesh, number):
    """Every weight of an imported checkpoint, on a mesh, in a dtype."""
    spec = run_folder.read_spec(str(folder))
    with jax.set_mesh(mesh):
        wanted = {
            name: jax.ShapeDtypeStruct(
                x.shape, NUMBERS[number], sharding=jax.NamedSharding(mesh, x.sharding.spec)
            )
            for name, x in from_hf.abstract_from_spec(spec)[1].items()
        }
        with Checkpoints(
            str(folder / run_folder.CHECKPOINTS), CheckpointIntervals()
        ) as checkpoints:
            step, found = checkpoints.restore_weights(wanted)
    assert step == 0
    for name, x in wanted.items():
        assert found[name].sharding.is_equivalent_to(x.sharding, x.ndim)
    return found


def alone():
    return sharding.make_mesh(Mesh(fsdp=1), jax.devices()[:1])


def assert_same(found, wanted):
    assert found.keys() == wanted.keys()
    for name, x in wanted.items():
        np.testing.assert_array_equal(np.asarray(found[name]), x, strict=True, err_msg=name)


@KINDS_OF_NUMBERS
def test_every_number_of_every_layout_comes_to_its_place(tmp_path, kind, number):
    named = phi_files.make(tmp_path / "theirs", kind, number)
    told = phi_files.told("import", tmp_path / "theirs", tmp_path / "ours")
    assert_same(restored(tmp_path / "ours", alone(), number), phi_files.expected(named, kind))
    assert (told["checkpoint"], told["merged"]) == (str(tmp_path / "ours"), 0)
    size = sum(x.nbytes for x in phi_files.expected(named, kind).values())
    assert (told["bytes"], told["seconds"] > 0) == (size, True)
    left = {name for names in told["left_out"].values() for name in names}
    assert len(left) + told["tensors"] == len(named)
    assert left <= named.keys()


@pytest.fixture(scope="module")
def brought(tmp_path_factory):
    """An imported multimodal checkpoint in float32, in many blocks, and its weights."""
    folder = tmp_path_factory.mktemp("brought")
    named = phi_files.make(folder / "theirs", "transformers")
    phi_files.told("import", folder / "theirs", folder / "ours")
    return folder / "ours", phi_files.expected(named, "transformers")


@pytest.mark.parametrize(
    ("split", "number"),
    [*((split, "float32") for split in models.SPLITS), ("fsdp4-tp2", "bfloat16")],
)
def test_every_mesh_restores_the_same_numbers(brought, split, number):
    folder, wanted = brought
    found = restored(folder, sharding.make_mesh(models.SPLITS[split]), number)
    assert_same(found, {name: x.astype(NUMBERS[number]) for name, x in wanted.items()})
    parts = {"fsdp8": (4, 4, 8), "fsdp4-tp2": (8, 2, 8)} | dict.fromkeys(["fsdp2-seq2-tp2"])
    if parts.get(split):  # what one device holds of "d n h"
        shard = found["stack.blocks.attn.q"].addressable_shards[0].data
        assert shard.shape == (L, *parts[split])


@SPEECH
def test_the_model_is_written_down_beside_its_weights(tmp_path, kind):
    source = tmp_path / "theirs"
    phi_files.make(source, kind)
    phi_files.told("import", source, tmp_path / "ours")
    spec = run_folder.read_spec(str(tmp_path / "ours"))
    long = Rope(partial=0.75, short=(1.0, 1.5, 2.0), long=(3.0, 4.0, 8.0), original=16, longest=64)
    assert spec.model == Model(
        d=D, n=N, k=K, h=H, f=F, l=L, v=V, c=C, rope=long, tied=True, window=48, front="conv"
    )
    assert spec.mel == Mel(normalize="none", telephone="native")
    assert spec.lora == Lora(r=4, alpha=6.0, dropout=0.01)
    assert spec.text == Text(tokenizer=f"{tmp_path}/ours/tokenizer", template="phi4")
    written = from_json((tmp_path / "ours/model.json").read_text(), ModelSpec)
    assert written.text.tokenizer == "tokenizer"  # the folder may be moved


def test_tokenizer_and_the_original_config_travel_along(tmp_path):
    source = tmp_path / "theirs"
    phi_files.make(source, "text in files")
    (source / "chat_template.jinja").write_text("{{ messages }}")
    (source / "README.md").write_text("much")
    (source / "._config.json").write_bytes(b"\0\5\26\7")  # macOS's
    for name in ("config.json", safetensors_files.INDEX_FILE, "tokenizer.json"):  # as on Windows
        (source / name).write_bytes(codecs.BOM_UTF8 + (source / name).read_bytes())
    phi_files.told("import", source, tmp_path / "ours")
    files = [*phi_files.COMPANIONS, "config.json", "chat_template.jinja"]
    found = {path.name: path.read_bytes() for path in (tmp_path / "ours/tokenizer").iterdir()}
    assert found == {name: (source / name).read_bytes() for name in files}
    there = {path.name for path in (tmp_path / "ours").iterdir()}
    assert there == {"model.json", "import.json", "checkpoints", "tokenizer"}


@pytest.mark.parametrize("lora", ["keep", "drop"])
def test_where_an_import_came_from_is_written_down(tmp_path, lora):
    phi_files.make(tmp_path / "theirs", "microsoft")
    told = phi_files.told("import", tmp_path / "theirs", tmp_path / "ours", "--lora", lora)
    assert json.loads((tmp_path / "ours/import.json").read_text()) == {
        "source": str(tmp_path / "theirs"),
        "lora": lora,
        "left_out": told["left_out"],
    }


def test_a_model_without_tokenizer_reads_bytes(tmp_path):
    phi_files.make(tmp_path / "theirs", "text")
    (tmp_path / "theirs/tokenizer.json").unlink()
    phi_files.told("import", tmp_path / "theirs", tmp_path / "ours")
    assert run_folder.read_spec(str(tmp_path / "ours")).text.tokenizer == "bytes"


def left(*reasons):
    """Left-out tensors by reason, as they are told."""
    return {why: sorted(names) for why, names in reasons}


BIAS = f"{AUDIO}encoder.relative_attention_bias_layer.bias_values.weight"
BLOCKS = ("Conformer blocks", [f"{AUDIO}encoder.encoders.0.layer_norm.weight", BIAS])
BESIDE = "projector of speech beside images"
PROJECTION = f"{EXTEND}image_embed.img_projection.0.weight"
SIDES = [f"model.layers.{i}.{m}.lora_" for i in range(L) for m in phi_files.MATRICES]


def test_what_is_left_out_of_microsofts_layout_is_told_by_reason(tmp_path):
    phi_files.make(tmp_path / "theirs", "microsoft")
    told = phi_files.told("import", tmp_path / "theirs", tmp_path / "ours")
    numbers = f"{EXTEND}image_embed.img_processor.embeddings.position_ids"
    vision = f"{AUDIO}audio_projection.vision."
    assert told["left_out"] == left(
        BLOCKS,
        (BESIDE, [f"{vision}{i}.{x}" for i in (0, 2) for x in ("weight", "bias")]),
        ("vision LoRA", [f"{side}{x}.vision.weight" for side in SIDES for x in "AB"]),
        ("vision tower", [numbers, PROJECTION]),
    )


def test_what_is_left_out_of_transformers_layout_is_told_by_reason(tmp_path, capsys):
    phi_files.make(tmp_path / "theirs", "transformers")
    told = phi_files.told("import", tmp_path / "theirs", tmp_path / "ours")
    both = [f"{AUDIO}{x}_proj_for_vision_speech." for x in ("up", "down")]
    assert told["left_out"] == left(
        BLOCKS,
        (BESIDE, [f"{name}{x}" for name in both for x in ("weight", "bias")]),
        ("vision tower", [PROJECTION]),
    )
    capsys.readouterr()
    assert cli.main(["convert", "import", f"{tmp_path}/theirs", f"{tmp_path}/again"]) == 0
    first, *rest = capsys.readouterr().out.splitlines()
    assert first.startswith("48 tensors, 92.19 kB, in ")
    assert first.endswith(f" s: {tmp_path}/again")
    assert rest == [
        "left out, Conformer blocks: 2 tensors",
        "left out, projector of speech beside images: 4 tensors",
        "left out, vision tower: 1 tensors",
    ]


def test_the_head_of_a_tied_model_is_left_out_and_told(tmp_path):
    named = phi_files.tensors("tied")
    named["lm_head.weight"] = named["model.embed_tokens.weight"]
    phi_files.write(tmp_path / "theirs", TREES["tied"], named)
    told = phi_files.told("import", tmp_path / "theirs", tmp_path / "ours")
    assert told["left_out"] == {"head, which is the embedding": ["lm_head.weight"]}
    assert "head" not in restored(tmp_path / "ours", alone(), "float32")


@MERGED
def test_a_merged_adapter_is_added_to_the_matrices(tmp_path, kind, number):
    """W + alpha/r · B·A in float64, then half a unit in the last place of what is stored.

    For float32 the sum itself is of float32: four products more, 1e-6 of numbers about 1.
    """
    named = phi_files.make(tmp_path / "theirs", kind, number)
    told = phi_files.told("import", tmp_path / "theirs", tmp_path / "ours", "--lora", "merge")
    assert told["merged"] == 4 * L
    exact = {name: x.astype(np.float64) for name, x in named.items()}
    base = ".base_layer" if kind == "microsoft" else ""
    for i in range(L):
        for matrix in phi_files.MATRICES:
            a, b = phi_files.pair(exact, kind, matrix, i)
            exact[f"model.layers.{i}.{matrix}{base}.weight"] += 6 / 4 * b @ a
    wanted = phi_files.expected(exact, kind, lora=False)
    found = restored(tmp_path / "ours", alone(), number)
    assert found.keys() == wanted.keys()
    unit = float(jnp.finfo(NUMBERS[number]).eps)
    for name, x in wanted.items():
        ours = np.asarray(found[name]).astype(np.float64)
        np.testing.assert_allclose(ours, x, rtol=0.51 * unit, atol=1e-6, err_msg=name)
    spec = run_folder.read_spec(str(tmp_path / "ours"))
    assert (spec.lora, spec.model.front) == (Lora(), "conv")


@SPEECH
def test_a_dropped_adapter_is_told_and_the_rest_is_as_it_was(tmp_path, kind):
    named = phi_files.make(tmp_path / "theirs", kind, "bfloat16")
    told = phi_files.told("import", tmp_path / "theirs", tmp_path / "ours", "--lora", "drop")
    prefix, adapter = ("", ".speech") if kind == "microsoft" else (PEFT, "")
    dropped = [f"{prefix}{side}{x}{adapter}.weight" for side in SIDES for x in "AB"]
    assert told["left_out"]["speech LoRA, dropped as asked"] == sorted(dropped)
    assert (told["merged"], told["tensors"]) == (0, 32)
    found = restored(tmp_path / "ours", alone(), "bfloat16")
    assert_same(found, phi_files.expected(named, kind, lora=False))
    assert run_folder.read_spec(str(tmp_path / "ours")).lora == Lora()


def test_an_adapter_may_be_of_another_precision_than_its_model(tmp_path):
    named = phi_files.tensors("transformers", "bfloat16")
    fine = phi_files.tensors("transformers", "float32", seed=1)
    named |= {name: x for name, x in fine.items() if name.startswith(PEFT)}
    phi_files.write(tmp_path / "theirs", TREES["transformers"], named)
    phi_files.told("import", tmp_path / "theirs", tmp_path / "ours")
    stored = weight_store.WeightReader(tmp_path / "ours/checkpoints/0").shapes
    numbers = {name: kind.name for name, (kind, _) in stored.items()}
    assert {name for name, kind in numbers.items() if kind == "float32"} == {
        name for name in numbers if "_lora." in name
    }
    assert set(numbers.values()) == {"float32", "bfloat16"}
    found = restored(tmp_path / "ours", alone(), "float32")
    wanted = phi_files.expected(named, "transformers")
    assert_same(found, {name: x.astype(np.float32) for name, x in wanted.items()})


@pytest.mark.parametrize(("lora", "most"), [("keep", 1), ("merge", 100)])
def test_weights_in_many_blocks_are_the_same_weights(tmp_path, monkeypatch, lora, most):
    phi_files.make(tmp_path / "theirs", "microsoft", "bfloat16")
    words = ("import", tmp_path / "theirs")
    whole = phi_files.told(*words, tmp_path / "whole", "--lora", lora)
    monkeypatch.setattr(block_copy, "MAX_ELEMENTS", most)
    parted = phi_files.told(*words, tmp_path / "parted", "--lora", lora)
    for told in (whole, parted):
        del told["checkpoint"], told["seconds"]
    assert parted == whole
    one, other = (restored(tmp_path / x, alone(), "bfloat16") for x in ("whole", "parted"))
    assert_same(other, {name: np.asarray(x) for name, x in one.items()})
    embed = tmp_path / "parted/checkpoints/0/weights/embed/c"
    files = sum(path.is_file() for path in embed.rglob("*"))
    assert files >= {1: 64, 100: 16}[most]  # 64 rows of 32 numbers


def test_a_large_weight_is_stored_in_parts_that_a_mesh_reads(tmp_path, monkeypatch):
    """512 × 1,024 numbers: one block, parted sixteenfold along d and eightfold along f and v."""
    tree = TEXT | {"hidden_size": 1024, "head_dim": 8, "vocab_size": 512, "num_hidden_layers": 1}
    tree |= {"intermediate_size": 512}
    shapes = {
        "model.embed_tokens.weight": (512, 1024),
        "lm_head.weight": (512, 1024),
        "model.norm.weight": (1024,),
        "model.layers.0.input_layernorm.weight": (1024,),
        "model.layers.0.post_attention_layernorm.weight": (1024,),
        "model.layers.0.self_attn.qkv_proj.weight": (64, 1024),
        "model.layers.0.self_attn.o_proj.weight": (1024, 32),
        "model.layers.0.mlp.gate_up_proj.weight": (1024, 1024),
        "model.layers.0.mlp.down_proj.weight": (1024, 512),
    }
    rng = np.random.default_rng(0)
    named = {name: rng.standard_normal(x).astype(np.float16) for name, x in shapes.items()}
    phi_files.write(tmp_path / "theirs", tree, named)
    phi_files.told("import", tmp_path / "theirs", tmp_path / "ours")
    kept = tmp_path / "ours/checkpoints/0/weights"

    def grids(name):
        metadata = json.loads((kept / name / "zarr.json").read_text())
        inner = metadata["codecs"][0]["configuration"].get("chunk_shape")
        return metadata["chunk_grid"]["configuration"]["chunk_shape"], inner

    assert grids("embed") == ([512, 1024], [64, 64])
    assert grids("head") == ([1024, 512], [64, 64])
    assert grids("stack.blocks.mlp.gate") == ([1, 1024, 512], [1, 64, 64])
    assert grids("stack.blocks.attn.q") == ([1, 1024, 4, 8], None)  # 32,768 numbers are few
    for split in ("fsdp8", "fsdp4-tp2"):
        found = restored(tmp_path / "ours", sharding.make_mesh(models.SPLITS[split]), "float16")
        head, both = named["lm_head.weight"], named["model.layers.0.mlp.gate_up_proj.weight"]
        np.testing.assert_array_equal(np.asarray(found["head"]), head.T)
        np.testing.assert_array_equal(np.asarray(found["stack.blocks.mlp.up"])[0], both[512:].T)


def listing(folder):
    """Every path below a folder."""
    return sorted(folder.rglob("*"))


def file(name):
    """A change that writes something else in place of a file."""

    def change(content):
        def apply(source):
            path = source / name
            if content is None:
                path.unlink()
            else:
                path.write_bytes(content if isinstance(content, bytes) else content.encode())

        return apply

    return change


def fields(**changes):
    return lambda source: (source / "config.json").write_text(json.dumps(TEXT | changes))


def named(change):
    """A change of the tensors of a checkpoint of text."""

    def apply(source):
        values = phi_files.tensors("text")
        change(values)
        phi_files.write(source, TEXT, values)

    return apply


def cut(source):
    path = source / "model.safetensors"
    with path.open("rb+") as opened:
        opened.truncate(path.stat().st_size - 1)


def index(**places):
    tree = {"weight_map": places}
    return lambda source: file("model.safetensors.index.json")(json.dumps(tree))(source)


def torch_alone(source):
    (source / "model.safetensors").rename(source / "pytorch_model.bin")


ROPE = {"type": "yarn", "factor": 4.0}
NORM = "model.layers.1.input_layernorm.weight"
PROJECTOR = "model.layers.1.self_attn.qkv_proj.weight"
GONE = "three.safetensors"
BAD = {
    "cut": (cut, "model.safetensors: is cut short: "),
    "no header": (file("model.safetensors")(b""), "is cut short or no safetensors: 0 bytes"),
    "index": (index(x=GONE), f"index.json: names {GONE}, which is not there"),
    "a wrong shape": (
        named(lambda t: t.update({NORM: np.ones(31, np.float32)})),
        f"{NORM} is [31]: its config asks for [32]",
    ),
    "a wrong rank": (
        named(lambda t: t.update({NORM: np.ones((32, 1), np.float32)})),
        f"{NORM} is [32, 1]: its config asks for [32]",
    ),
    "a missing tensor": (
        named(lambda t: t.pop(PROJECTOR)),
        f"has no tensor {PROJECTOR}, which must be [64, 32]",
    ),
    "an extra tensor": (
        named(lambda t: t.update({"model.extra": np.ones(3, np.float32)})),
        "no rule knows the tensor model.extra: nothing is dropped unasked",
    ),
    "one layer more": (
        named(lambda t: t.update({NORM.replace("1", "2"): t[NORM]})),
        "no rule knows the tensor model.layers.2.input_layernorm.weight",
    ),
    "another layout": (
        lambda source: (source / "config.json").write_text(json.dumps(TREES["microsoft"])),
        "has no tensor model.layers.0.self_attn.qkv_proj.base_layer.weight",
    ),
    "integers": (
        named(lambda t: t.update({NORM: np.ones(32, np.int64)})),
        f"{NORM} is I64: must be F32, F16, BF16",
    ),
    "mixed dtypes": (
        named(lambda t: t.update({NORM: t[NORM].astype(np.float16)})),
        f"{NORM} is F16: the same weight of another layer is float32",
    ),
    "no model_type": (fields(model_type=None), "config.json: model_type=null: must be one of phi3"),
    "gemma": (fields(model_type="gemma"), "config.json: model_type=gemma: must be one of phi3, "),
    "a list for a type": (fields(model_type=["phi3"]), 'config.json: model_type=["phi3"]: must be'),
    "phi3small": (
        fields(model_type="phi3small"),
        "model_type=phi3small: has block-sparse attention and a GEGLU with muP: must be one of",
    ),
    "yarn": (fields(rope_scaling=ROPE), "rope_scaling.type=yarn: must be longrope (or absent)"),
    "an unknown field": (fields(logit_scale=2.0), "logit_scale=2.0: no rule knows this field"),
    "no config": (file("config.json")(None), ": holds no config.json"),
    "no JSON": (file("config.json")("{"), "config.json: is no JSON: "),
    "no UTF-8": (file("config.json")(b'{"\xff": 1}'), "config.json: is no JSON: "),
    "a list": (file("config.json")("[]"), "config.json: "),
    "a word": (file("config.json")('"phi3"'), "config.json: "),
    "torch": (torch_alone, "holds torch files, which are programs: convert them with python -c"),
    "nothing": (file("model.safetensors")(None), "holds neither model.safetensors nor model.saf"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_in_one_line_and_leaves_nothing(tmp_path, capsys, case):
    change, says = BAD[case]
    phi_files.make(tmp_path / "theirs", "text")
    change(tmp_path / "theirs")
    before = listing(tmp_path)
    message = refused(["convert", "import", tmp_path / "theirs", tmp_path / "ours"], capsys)
    assert says in message
    assert str(tmp_path / "theirs") in message
    assert listing(tmp_path) == before


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("adapter_config.json", None, "speech-lora: holds no adapter_config.json"),
        ("adapter_config.json", "{", "adapter_config.json: is no JSON: "),
        ("adapter_config.json", "[]", "adapter_config.json: "),
        (
            "adapter_config.json",
            json.dumps(ADAPTER | {"r": 8}),
            "lora_A.weight is [4, 32]: its config asks for [8, 32]",
        ),
        (
            "adapter_config.json",
            json.dumps(ADAPTER | {"use_dora": True}),
            "adapter_config.json: use_dora=true: must be false or absent",
        ),
        ("adapter_model.safetensors", None, "speech-lora: holds no adapter_model.safetensors"),
        ("adapter_model.safetensors", "", "adapter_model.safetensors: is cut short or no safe"),
    ],
)
def test_a_bad_adapter_is_refused_in_one_line(tmp_path, capsys, name, content, says):
    phi_files.make(tmp_path / "theirs", "transformers")
    file(name)(content)(tmp_path / "theirs/speech-lora")
    before = listing(tmp_path)
    message = refused(["convert", "import", tmp_path / "theirs", tmp_path / "ours"], capsys)
    assert says in message
    assert listing(tmp_path) == before


def test_a_tensor_of_the_adapter_in_the_main_file_is_refused(tmp_path, capsys):
    named = phi_files.make(tmp_path / "theirs", "transformers")
    twice = {"model.norm.weight": named["model.norm.weight"]}
    phi_files.save(tmp_path / "theirs/speech-lora/adapter_model.safetensors", twice)
    message = refused(["convert", "import", tmp_path / "theirs", tmp_path / "ours"], capsys)
    file = tmp_path / "theirs/speech-lora/adapter_model.safetensors"
    assert message == f"{file}: model.norm.weight is in model.safetensors too"


def test_an_adapter_beside_a_model_type_of_no_kind_is_refused_too(tmp_path, capsys):
    phi_files.make(tmp_path / "theirs", "transformers")
    tree = TREES["transformers"] | {"model_type": {"phi": 4}}
    (tmp_path / "theirs/config.json").write_text(json.dumps(tree))
    message = refused(["convert", "import", tmp_path / "theirs", tmp_path / "ours"], capsys)
    assert 'config.json: model_type={"phi": 4}: must be one of phi3, ' in message


@pytest.mark.parametrize("source", ["nowhere", "file", "./a/b"])
def test_a_source_that_is_no_folder_is_refused(tmp_path, monkeypatch, capsys, source):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    message = refused(["convert", "import", source, "ours"], capsys)
    assert message == f"HF_DIR={source.removeprefix('./')}: is no folder"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_folder_that_exists_is_not_overwritten(tmp_path, capsys):
    phi_files.make(tmp_path / "theirs", "text")
    target = tmp_path / "ours"
    target.mkdir()
    (target / "mine").write_text("dear")
    for path in (target, target / "mine"):
        before = everything(tmp_path)
        message = refused(["convert", "import", tmp_path / "theirs", path], capsys)
        assert message == f"CKPT_DIR={path}: exists already; give a new folder"
        assert everything(tmp_path) == before


@pytest.mark.parametrize("kilobytes", [64, 132])
def test_a_disk_too_small_is_said_and_nothing_stays_on_it(tmp_path, capsys, kilobytes):
    """93 kB of numbers: too many for 64 kB at sight, for 132 kB once pages of 4 kB are counted."""
    phi_files.make(tmp_path / "theirs", "text")
    with small_disk(tmp_path / "disk", kilobytes) as disk:
        free = shutil.disk_usage(disk).free
        message = refused(["convert", "import", tmp_path / "theirs", disk / "ours"], capsys)
        assert message.startswith(f"CKPT_DIR={disk}/ours: no space on disk: needs 0.00 GB, ")
        assert listing(disk) == []
        assert shutil.disk_usage(disk).free == free


def test_a_target_that_cannot_be_made_is_refused(tmp_path, capsys):
    phi_files.make(tmp_path / "theirs", "text")
    (tmp_path / "file").write_text("")
    before = listing(tmp_path)
    target = tmp_path / "file/ours"
    message = refused(["convert", "import", tmp_path / "theirs", target], capsys)
    assert message.startswith(f"CKPT_DIR={target}: cannot be written: ")
    assert listing(tmp_path) == before


def test_a_name_on_the_hub_that_cannot_be_reached_is_refused_in_one_line(
    tmp_path, monkeypatch, capsys
):
    pytest.importorskip("huggingface_hub")
    constants = importlib.import_module("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    words = ["convert", "import", "nobody/has-this-model", str(tmp_path / "ours")]
    assert cli.main(words) == 2
    out, err = capsys.readouterr()
    assert (out, len(err.splitlines())) == ("", 1)
    start = "melllm convert: error: HF_DIR=nobody/has-this-model: is no folder, and the hub says: "
    assert err.startswith(start)
    assert len(err) > len(start) + 10
    assert not (tmp_path / "ours").exists()


# An import that stops itself when it has written a share of its bytes, by a signal.
STOPPED = """
import os, pathlib, signal, sys
from melllm_jax.convert import from_hf
source, target, share, sign = sys.argv[1:]
what, written = from_hf.plan_import(pathlib.Path(source)), 0
def moved(count):
    global written
    written += count
    if written >= float(share) * what.bytes:
        os.kill(os.getpid(), int(sign))
from_hf.import_checkpoint(what, pathlib.Path(target), moved)
"""


def stopped(source, target, share, sign):
    words = [sys.executable, "-c", STOPPED, source, target, share, sign]
    return subprocess.run(list(map(str, words)), cwd=ROOT, capture_output=True, text=True)


def test_an_import_killed_after_its_last_byte_is_no_checkpoint_and_the_next_is_whole(
    tmp_path, capsys
):
    named = phi_files.make(tmp_path / "theirs", "text", "bfloat16")
    target, rest = tmp_path / "ours", tmp_path / ".ours.unfinished"
    ended = stopped(tmp_path / "theirs", target, 1.0, signal.SIGKILL.value)
    assert ended.returncode == -signal.SIGKILL
    assert not target.exists()
    assert rest.exists()
    for folder in (target, rest):
        with pytest.raises(Mistake, match="holds neither model.json nor run.json"):
            run_folder.read_spec(str(folder))
        words = ["convert", "export", folder, tmp_path / "back"]
        assert "holds neither model.json nor run.json" in refused(words, capsys)
    (rest / "mine").write_text("in the way")
    phi_files.told("import", tmp_path / "theirs", target)
    assert not rest.exists()
    assert not (target / "mine").exists()
    assert_same(restored(target, alone(), "bfloat16"), phi_files.expected(named, "text"))


def test_training_from_what_a_killed_import_left_is_refused(tmp_path, capsys):
    (tmp_path / ".ours.unfinished/checkpoints/0").mkdir(parents=True)
    words = ["train", "digits", "--data", tmp_path, "--workdir", tmp_path / "run", "--init"]
    for folder in (tmp_path / ".ours.unfinished", tmp_path / "ours"):
        message = refused([*words, folder], capsys)
        assert f"{folder}: holds neither model.json nor run.json" in message
    assert not (tmp_path / "run").exists()


def test_an_import_interrupted_between_blocks_leaves_nothing(tmp_path):
    phi_files.make(tmp_path / "theirs", "text")
    before = listing(tmp_path)
    told = []

    def moved(count):
        told.append(count)
        if len(told) == 3:
            os.kill(os.getpid(), signal.SIGINT)

    what = from_hf.plan_import(tmp_path / "theirs")
    with pytest.raises(KeyboardInterrupt):
        from_hf.import_checkpoint(what, tmp_path / "ours", moved)
    assert listing(tmp_path) == before
    assert len(told) >= 3


def test_control_c_ends_the_command_with_130_and_leaves_nothing(tmp_path):
    tree = TEXT | {"vocab_size": 40_000, "hidden_size": 8, "num_attention_heads": 1}
    tree |= {"num_key_value_heads": 1, "intermediate_size": 8, "num_hidden_layers": 1}
    shapes = {
        "model.embed_tokens.weight": (40_000, 8),
        "lm_head.weight": (40_000, 8),
        "model.norm.weight": (8,),
        "model.layers.0.input_layernorm.weight": (8,),
        "model.layers.0.post_attention_layernorm.weight": (8,),
        "model.layers.0.self_attn.qkv_proj.weight": (24, 8),
        "model.layers.0.self_attn.o_proj.weight": (8, 8),
        "model.layers.0.mlp.gate_up_proj.weight": (16, 8),
        "model.layers.0.mlp.down_proj.weight": (8, 8),
    }
    named = {name: np.ones(shape, np.float32) for name, shape in shapes.items()}
    phi_files.write(tmp_path / "theirs", tree, named)
    before = listing(tmp_path)
    # 80,000 blocks of one row, a file each: half a minute, were it let.
    program = (
        "import sys; from launch.cli import main; from melllm_jax.convert import block_copy; "
        "block_copy.MAX_ELEMENTS = 1; sys.exit(main(sys.argv[1:]))"
    )
    words = [sys.executable, "-c", program, "convert", "import"]
    process = subprocess.Popen(
        [*words, str(tmp_path / "theirs"), str(tmp_path / "ours")],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    embed = tmp_path / ".ours.unfinished/checkpoints/0/weights/embed/c"
    reached(process, embed.exists)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=HANG)
    assert (process.returncode, out) == (130, ""), err
    assert "Traceback" not in err
    assert listing(tmp_path) == before


def test_nothing_changes_in_the_folder_that_is_read(tmp_path):
    phi_files.make(tmp_path / "theirs", "transformers")
    before = everything(tmp_path / "theirs")
    for lora in ("keep", "merge", "drop"):
        phi_files.told("import", tmp_path / "theirs", tmp_path / lora, "--lora", lora)
    assert everything(tmp_path / "theirs") == before


def test_a_model_of_text_may_have_an_adapter(tmp_path):
    """Phi-3 with PEFT's folder beside it, as an export of a run on text would be."""
    named = phi_files.tensors("text")
    lora = phi_files.tensors("transformers", seed=2)
    named |= {name: x for name, x in lora.items() if name.startswith(PEFT)}
    phi_files.write(tmp_path / "theirs", TEXT, named)
    phi_files.told("import", tmp_path / "theirs", tmp_path / "ours")
    spec = run_folder.read_spec(str(tmp_path / "ours"))
    assert (spec.lora.r, spec.model.front) == (4, "none")
    found = restored(tmp_path / "ours", alone(), "float32")
    assert_same(
        found, phi_files.expected(named, "text") | phi_files.low_rank(named, "transformers")
    )


def beside(folder, fields, ranks, dora=False):
    """A text model with an adapter in its own folder, of these ranks by module of each layer."""
    phi_files.write(folder, TEXT, phi_files.tensors("text"))
    rng, named = np.random.default_rng(5), {}
    for i in range(phi_files.L):
        for module, r in ranks.items():
            rows, columns = phi_files.MATRICES[module]
            name = f"{PEFT}model.layers.{i}.{module}"
            named[f"{name}.lora_A.weight"] = rng.standard_normal((r, columns), dtype=np.float32)
            named[f"{name}.lora_B.weight"] = rng.standard_normal((rows, r), dtype=np.float32)
            if dora:
                named[f"{name}.lora_magnitude_vector"] = rng.random(rows, dtype=np.float32) + 0.5
    phi_files.save(folder / "adapter_model.safetensors", named)
    (folder / "adapter_config.json").write_text(json.dumps(ADAPTER | fields))
    return named


ADAPTERS = {  # fields, and the rank of each module that they add to
    "by name": ({"target_modules": list(phi_files.MATRICES)}, [4, 4, 4, 4]),
    "all-linear": ({"target_modules": "all-linear"}, [4, 4, 4, 4]),
    "some": ({"target_modules": ["q_proj", "o_proj", "mlp.down_proj"]}, [0, 4, 0, 4]),
    "patterns": (
        {"rank_pattern": {"o_proj": 2, r"mlp\..*": 3}, "alpha_pattern": {"down_proj": 1}},
        [4, 2, 3, 3],
    ),
    "rsLoRA": ({"use_rslora": True, "target_modules": r".*\.(qkv|down)_proj"}, [4, 0, 0, 4]),
    "DoRA": ({"use_dora": True}, [4, 4, 4, 4]),
}


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # PEFT's own
@pytest.mark.parametrize("name", ADAPTERS)
def test_an_adapter_in_the_folder_of_its_model_is_merged_as_peft_merges_it(tmp_path, name):
    """float32 sums of up to four products in another order: 1e-6 of numbers of about 1."""
    transformers = pytest.importorskip("transformers", reason="needs the extra `parity`")
    peft = pytest.importorskip("peft", reason="needs the extra `parity`")
    fields, ranks = ADAPTERS[name]
    ranks = {x: r for x, r in zip(phi_files.MATRICES, ranks, strict=True) if r}
    beside(tmp_path / "theirs", fields, ranks, dora=name == "DoRA")
    base = phi_files.write(tmp_path / "base", TEXT, phi_files.tensors("text"))
    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype="float32")
    merged = peft.PeftModel.from_pretrained(model, tmp_path / "theirs").merge_and_unload()
    phi_files.told("import", tmp_path / "theirs", tmp_path / "ours", "--lora", "merge")
    phi_files.told("export", tmp_path / "ours", tmp_path / "back")
    assert not list(tmp_path.glob("back/adapter*"))
    found, plain = (phi_files.load(tmp_path / x / "model.safetensors") for x in ("back", "base"))
    for tensor, value in merged.state_dict().items():
        np.testing.assert_allclose(found[tensor], value.numpy(), rtol=1e-5, atol=1e-5)
    changed = {x for x in found if not np.array_equal(found[x], plain[x])}
    assert changed == {f"model.layers.{i}.{x}.weight" for i in range(phi_files.L) for x in ranks}


def test_an_adapter_in_the_folder_of_its_model_is_kept_or_dropped(tmp_path):
    """As an adapter in a folder of its own is."""
    named = beside(
        tmp_path / "theirs", ADAPTERS["by name"][0], dict.fromkeys(phi_files.MATRICES, 4)
    )
    phi_files.told("import", tmp_path / "theirs", tmp_path / "kept")
    phi_files.told("export", tmp_path / "kept", tmp_path / "back")
    assert_same(phi_files.load(tmp_path / "back/speech-lora/adapter_model.safetensors"), named)
    told = phi_files.told("import", tmp_path / "theirs", tmp_path / "dropped", "--lora", "drop")
    assert told["left_out"] == {"speech LoRA, dropped as asked": sorted(named)}


@pytest.mark.parametrize(
    ("name", "change", "says"),
    [
        ("by name", lambda x: (x / "adapter_config.json").unlink(), "holds no adapter_config.json"),
        (
            "by name",
            lambda x: (x / "adapter_model.safetensors").rename(x / "adapter_model.bin"),
            "adapter_model.bin is a program: save it with safe_serialization",
        ),
        (
            "by name",
            lambda x: (x / "speech-lora").mkdir(),
            "and speech-lora another: take one away",
        ),
        ("some", lambda _: None, "to be kept: --lora merge follows any"),
    ],
)
def test_an_adapter_in_the_folder_of_its_model_is_never_passed_over(
    tmp_path, capsys, name, change, says
):
    fields, ranks = ADAPTERS[name]
    ranks = {x: r for x, r in zip(phi_files.MATRICES, ranks, strict=True) if r}
    beside(tmp_path / "theirs", fields, ranks)
    change(tmp_path / "theirs")
    assert says in refused(["convert", "import", tmp_path / "theirs", tmp_path / "ours"], capsys)
    assert not (tmp_path / "ours").exists()


def test_a_byte_order_mark_before_a_config_is_no_part_of_it(tmp_path):
    phi_files.make(tmp_path / "theirs", "transformers")
    for name in ("config.json", "speech-lora/adapter_config.json"):
        file = tmp_path / "theirs" / name
        file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    phi_files.told("import", tmp_path / "theirs", tmp_path / "ours")
    phi_files.told("export", tmp_path / "ours", tmp_path / "back")  # reads the copy of it
    assert json.loads((tmp_path / "back/config.json").read_text())["vocab_size"] == phi_files.V


def test_a_tokenizer_with_more_ids_than_the_model_has_rows_is_refused(tmp_path, capsys):
    llama_files.make(tmp_path / "theirs")
    words = {"version": "1.0", "model": {"type": "WordLevel", "unk_token": "<unk>"}}
    words["model"]["vocab"] = {"<unk>": 0, "one": V}
    (tmp_path / "theirs/tokenizer.json").write_text(json.dumps(words))
    before = listing(tmp_path)
    said = refused(["convert", "import", tmp_path / "theirs", tmp_path / "ours"], capsys)
    assert said == f"{tmp_path}/theirs: vocab_size={V}: its tokenizer has {V + 1} ids"
    assert listing(tmp_path) == before


def test_a_scaling_that_we_lack_is_named_with_what_we_have(tmp_path, capsys):
    scaling = {"rope_scaling": ROPE}
    phi_files.write(tmp_path / "theirs", llama_files.TREE | scaling, llama_files.tensors("llama"))
    before = listing(tmp_path)
    said = refused(["convert", "import", tmp_path / "theirs", tmp_path / "ours"], capsys)
    assert said.endswith("rope_scaling.type=yarn: must be linear or llama3 (or absent)")
    assert listing(tmp_path) == before
