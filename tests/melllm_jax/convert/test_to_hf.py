"""`melllm convert export`: what was read is written back bit by bit, and transformers loads it."""

import dataclasses
import functools
import json
import os
import shutil
import signal

import ml_dtypes
import numpy as np
import pytest

from melllm_jax.checkpoints import run_folder, weight_store
from melllm_jax.config.features import Text
from melllm_jax.config.model import Lora, Model
from melllm_jax.config.overrides import override, to_json
from melllm_jax.convert import block_copy, to_hf
from melllm_jax.convert.hf_config import reader
from melllm_jax.objectives.next_token import NextToken
from melllm_jax.training import run_start, warm_start
from melllm_jax.training.train_step import Update
from tests.support import models, phi_files
from tests.support.phi_files import NUMBERS, PEFT, TREES, D, F, H, K, L, N, R, V
from tests.support.runs import (
    compiled_once,
    corpus,
    everything,
    refused,
    saved,
    small_disk,
    tiny,
    trained,
)

once = pytest.fixture(scope="module", autouse=True)(compiled_once)
shaped = pytest.fixture(scope="module", autouse=True)(phi_files.shaped_once)
KINDS = pytest.mark.parametrize("kind", TREES)
KINDS_OF_NUMBERS = pytest.mark.parametrize(("kind", "number"), phi_files.KINDS_OF_NUMBERS)
MERGED = pytest.mark.parametrize(
    ("kind", "number"),
    [("microsoft", "bfloat16"), ("transformers", "float16"), ("transformers", "float32")],
)
SPEECH = pytest.mark.parametrize("kind", ["microsoft", "transformers"])
NOWHERE = ("vision", "image_embed", "encoders.0.", "relative_attention_bias_layer")  # not read


def renamed(named, kind):
    """What was read, by transformers' names: the model's and the adapter's."""
    read = {name: x for name, x in named.items() if not any(word in name for word in NOWHERE)}
    if kind == "microsoft":
        projector = "audio_projection.speech"
        names = {
            name: name.replace(".base_layer", "")
            .replace(f"{projector}.0", "up_proj_for_speech")
            .replace(f"{projector}.2", "down_proj_for_speech")
            for name in read
        }
        names |= {name: PEFT + name.replace(".speech.", ".") for name in read if ".lora_" in name}
        read = {names[name]: x for name, x in read.items()}
    main = {name: x for name, x in read.items() if ".lora_" not in name}
    return main, {name: x for name, x in read.items() if ".lora_" in name}


@pytest.fixture(scope="module")
def brought(tmp_path_factory):
    """Random checkpoints, imported once each: a folder with `theirs` and `ours`, the tensors."""

    @functools.cache
    def once(kind, number="float32"):
        folder = tmp_path_factory.mktemp("brought")
        named = phi_files.make(folder / "theirs", kind, number)
        phi_files.told("import", folder / "theirs", folder / "ours")
        return folder, named

    return once


def sent(brought, target, kind, number, *words):
    """That checkpoint exported with these words: its tensors, and what is told."""
    folder, named = brought(kind, number)
    return named, phi_files.told("export", folder / "ours", target, *words)


def assert_same(found, wanted):
    assert found.keys() == wanted.keys()
    for name, x in wanted.items():
        np.testing.assert_array_equal(found[name], x, strict=True, err_msg=name)


def model_of(folder):
    return phi_files.load(folder / "model.safetensors")


def adapter_of(folder):
    return phi_files.load(folder / "speech-lora/adapter_model.safetensors")


@KINDS_OF_NUMBERS
def test_what_was_read_is_written_back_bit_by_bit(brought, tmp_path, kind, number):
    named, told = sent(brought, tmp_path / "back", kind, number)
    main, adapter = renamed(named, kind)
    assert_same(model_of(tmp_path / "back"), main)
    assert (tmp_path / "back/speech-lora").exists() == bool(adapter)
    if adapter:
        assert_same(adapter_of(tmp_path / "back"), adapter)
    assert (told["tensors"], told["adapter"], told["merged"]) == (len(main), len(adapter), 0)
    assert told["bytes"] == sum(x.nbytes for x in [*main.values(), *adapter.values()])
    assert (told["checkpoint"], told["seconds"] > 0) == (str(tmp_path / "back"), True)
    written = json.loads((tmp_path / "back/config.json").read_text())
    assert written["torch_dtype"] == number


def placeless(folder):
    """Every file of an export by its path there, without the place that its adapter names."""
    here = json.dumps(str(folder)).encode()
    return {
        path.relative_to(folder): content.replace(here, b"HERE")
        for path, content in everything(folder).items()
    }


@KINDS
def test_an_export_is_read_to_the_same_model_and_written_to_the_same_bytes(brought, tmp_path, kind):
    sent(brought, tmp_path / "back", kind, "bfloat16")
    again = tmp_path / "again"
    phi_files.told("import", tmp_path / "back", again / "ours")
    specs = [run_folder.read_spec(str(x / "ours")) for x in (brought(kind, "bfloat16")[0], again)]
    model, mel, lora = ([getattr(x, name) for x in specs] for name in ("model", "mel", "lora"))
    assert (model[0], mel[0], lora[0]) == (model[1], mel[1], lora[1])
    phi_files.told("export", again / "ours", again / "back")
    one, other = (placeless(folder) for folder in (tmp_path / "back", again / "back"))
    assert one == other


def test_tokenizer_travels_back_and_the_config_is_ours(brought, tmp_path):
    sent(brought, tmp_path / "back", "transformers", "float16")
    folder, back = brought("transformers", "float16")[0], tmp_path / "back"
    assert {path.name for path in back.iterdir()} == {
        *phi_files.COMPANIONS,
        "config.json",
        "model.safetensors",
        "speech-lora",
    }
    for name in phi_files.COMPANIONS:
        assert (back / name).read_bytes() == (folder / "theirs" / name).read_bytes()
    tree = json.loads((back / "config.json").read_text())
    adapter = json.loads((back / "speech-lora/adapter_config.json").read_text())
    spec = run_folder.read_spec(str(folder / "ours"))
    assert reader.parse_config(tree, adapter).spec.model == spec.model
    assert (tree["bos_token_id"], tree["eos_token_id"], tree["pad_token_id"]) == (1, 2, 0)
    assert tree["audio_config"]["audio_token_id"] == 63
    assert tree["audio_config"]["num_blocks"] == 0
    assert (adapter["r"], adapter["lora_alpha"], adapter["lora_dropout"]) == (R, 6, 0.01)


def test_what_is_merged_is_rounded_once_to_what_is_asked_for(brought, tmp_path):
    """A bfloat16 matrix and its adapter as float32: four products in float32, 1e-6 of about 1."""
    words = ("--lora", "merge", "--dtype", "float32")
    named, _ = sent(brought, tmp_path / "back", "transformers", "bfloat16", *words)
    exact = {name: x.astype(np.float64) for name, x in named.items()}
    found = model_of(tmp_path / "back")
    for i in range(L):
        for matrix in phi_files.MATRICES:
            a, b = phi_files.pair(exact, "transformers", matrix, i)
            name = f"model.layers.{i}.{matrix}.weight"
            np.testing.assert_allclose(found[name], exact[name] + 6 / 4 * b @ a, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("lora", "most"), [("keep", 1), ("merge", 100)])
def test_many_blocks_write_the_same_bytes(brought, tmp_path, monkeypatch, lora, most):
    sent(brought, tmp_path / "back", "microsoft", "bfloat16", "--lora", lora)
    monkeypatch.setattr(block_copy, "MAX_ELEMENTS", most)
    sent(brought, tmp_path / "parted", "microsoft", "bfloat16", "--lora", lora)
    assert placeless(tmp_path / "parted") == placeless(tmp_path / "back")


@MERGED
def test_a_merged_adapter_is_added_to_the_matrices(brought, tmp_path, kind, number):
    """W + alpha/r · B·A in float64, then half a unit in the last place of what is stored.

    For float32 the sum itself is of float32: four products more, 1e-6 of numbers about 1.
    """
    named, told = sent(brought, tmp_path / "back", kind, number, "--lora", "merge")
    main, adapter = renamed(named, kind)
    exact = {name: x.astype(np.float64) for name, x in main.items()}
    for i in range(L):
        for matrix in phi_files.MATRICES:
            whole = f"model.layers.{i}.{matrix}"
            a, b = (adapter[f"{PEFT}{whole}.lora_{x}.weight"].astype(np.float64) for x in "AB")
            exact[f"{whole}.weight"] += 6 / 4 * b @ a
    found = model_of(tmp_path / "back")
    assert found.keys() == exact.keys()
    unit = float(ml_dtypes.finfo(NUMBERS[number]).eps)
    for name, x in exact.items():
        assert found[name].dtype == NUMBERS[number]
        ours = found[name].astype(np.float64)
        np.testing.assert_allclose(ours, x, rtol=0.51 * unit, atol=1e-6, err_msg=name)
    assert (told["merged"], told["adapter"]) == (4 * L, 0)
    assert not (tmp_path / "back/speech-lora").exists()


@SPEECH
def test_merging_while_importing_or_while_exporting_is_the_same(brought, tmp_path, kind):
    sent(brought, tmp_path / "back", kind, "bfloat16", "--lora", "merge")
    source = brought(kind, "bfloat16")[0] / "theirs"
    phi_files.told("import", source, tmp_path / "merged", "--lora", "merge")
    phi_files.told("export", tmp_path / "merged", tmp_path / "other")
    assert_same(model_of(tmp_path / "other"), model_of(tmp_path / "back"))


@SPEECH
def test_a_dropped_adapter_is_not_written(brought, tmp_path, kind):
    named, told = sent(brought, tmp_path / "back", kind, "float16", "--lora", "drop")
    assert_same(model_of(tmp_path / "back"), renamed(named, kind)[0])
    assert not (tmp_path / "back/speech-lora").exists()
    assert (told["adapter"], told["merged"]) == (0, 0)


@pytest.mark.parametrize(
    ("kind", "lora"), [("transformers", "keep"), ("microsoft", "drop"), ("transformers", "merge")]
)
def test_a_dropped_front_end_leaves_a_phi_3(brought, tmp_path, kind, lora):
    words = ("--front", "drop", "--lora", lora)
    named, _ = sent(brought, tmp_path / "back", kind, "bfloat16", *words)
    main, adapter = renamed(named, kind)
    text = {name: x for name, x in main.items() if "audio_embed" not in name}
    found = model_of(tmp_path / "back")
    assert found.keys() == text.keys()
    if lora != "merge":
        assert_same(found, text)
    tree = json.loads((tmp_path / "back/config.json").read_text())
    assert (tree["model_type"], tree["architectures"]) == ("phi3", ["Phi3ForCausalLM"])
    assert "audio_config" not in tree
    assert (tmp_path / "back/speech-lora").exists() == (lora == "keep")
    phi_files.told("import", tmp_path / "back", tmp_path / "again")
    assert run_folder.read_spec(str(tmp_path / "again")).lora.r == (R if lora == "keep" else 0)


@pytest.mark.parametrize(
    ("stored", "asked"),
    [("float32", "bfloat16"), ("bfloat16", "float16"), ("bfloat16", "float32")],
)
def test_numbers_are_rounded_once_to_the_dtype_that_is_asked_for(brought, tmp_path, stored, asked):
    named, _ = sent(brought, tmp_path / "back", "transformers", stored, "--dtype", asked)
    main, adapter = renamed(named, "transformers")
    for found, wanted in ((model_of, main), (adapter_of, adapter)):
        cast = {name: x.astype(NUMBERS[asked]) for name, x in wanted.items()}
        assert_same(found(tmp_path / "back"), cast)
    assert json.loads((tmp_path / "back/config.json").read_text())["torch_dtype"] == asked


def test_parts_of_two_precisions_need_a_dtype(tmp_path, capsys):
    """A fused tensor has one: here the gates were trained in float32 and nothing beside them."""
    cfg = models.run(Model(d=D, n=N, k=K, h=H, f=F, l=L, v=V, front="none"), Lora())
    with models.one_device():
        values = models.made(cfg)[1]
        name = "stack.blocks.mlp.gate"
        low = {k: x if k == name else x.astype("bfloat16") for k, x in values.items()}
        saved(tmp_path / "run", cfg, low)
    words = ["convert", "export", tmp_path / "run", tmp_path / "back"]
    message = refused(words, capsys)
    whole = "model.layers.0.mlp.gate_up_proj.weight"
    assert message == f"{whole}: its parts are bfloat16, float32: say one with --dtype"
    assert not (tmp_path / "back").exists()
    phi_files.told(*words[1:], "--dtype", "float32")
    gate = np.asarray(values[name])[1].T
    found = model_of(tmp_path / "back")["model.layers.1.mlp.gate_up_proj.weight"]
    np.testing.assert_array_equal(found[:F], gate)


def adopting(folder):
    """A run that trains LoRA and front end on an imported LLM; what was imported, in float32."""
    named, tree = phi_files.tensors("transformers"), TREES["transformers"]
    named["model.embed_tokens.weight"] = phi_files.random((300, D), "float32")  # bytes and more
    phi_files.write(folder / "theirs", tree | {"vocab_size": 300}, named)
    phi_files.told("import", folder / "theirs", folder / "ours")
    cfg = run_start.adopt_model(
        tiny(corpus(folder / "data"), steps=2, every=2), str(folder / "ours")
    )
    cfg = dataclasses.replace(cfg, text=Text())
    cfg = override(cfg, {"optim.train": "lora"})
    run_folder.claim(str(folder / "run"), cfg)
    return cfg, named


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run's folder with the state before its first update, and what was imported."""
    folder = tmp_path_factory.mktemp("run")
    cfg, named = adopting(folder)
    with models.one_device():
        state = Update(NextToken(cfg), warm_start.resolve(cfg.init.path)).init_state()
        saved(folder / "run", cfg, state.trained | state.frozen)
    return folder / "run", named


def test_a_run_is_exported_with_each_weights_own_precision(run, tmp_path):
    """LoRA and front end are trained in float32, the frozen LLM is bfloat16."""
    run, named = run
    told = phi_files.told("export", run, tmp_path / "back")
    assert (told["tensors"], told["adapter"]) == (32, 16)
    for found, wanted in zip(
        (model_of(tmp_path / "back"), adapter_of(tmp_path / "back")),
        renamed(named, "transformers"),
        strict=True,
    ):
        learnt = {name for name in wanted if ".lora_" in name or "audio_embed" in name}
        own = {
            name: x if name in learnt else x.astype(NUMBERS["bfloat16"])
            for name, x in wanted.items()
        }
        assert_same(found, own)
    tree = json.loads((tmp_path / "back/config.json").read_text())
    assert (tree["torch_dtype"], tree["pad_token_id"]) == ("bfloat16", None)


@pytest.mark.slow
def test_what_training_wrote_is_exported(tmp_path):
    cfg, named = adopting(tmp_path)
    trained(cfg, tmp_path / "run", warm=warm_start.resolve(cfg.init.path))
    phi_files.told("export", tmp_path / "run", tmp_path / "back")
    main, adapter = model_of(tmp_path / "back"), adapter_of(tmp_path / "back")
    llm, lora = renamed(named, "transformers")
    for name, x in (llm | lora).items():
        found = (main | adapter)[name]
        moves = ".lora_" in name or ("audio_embed" in name and "global_" not in name)
        assert np.array_equal(found, x.astype(found.dtype)) != moves, name
        assert np.isfinite(found.astype(np.float32)).all()
    wanted = phi_files.expected(main | adapter, "transformers")
    assert_same(
        {k: weight_store.WeightReader(tmp_path / "run/checkpoints/2").read(k) for k in wanted},
        wanted,
    )


def test_a_run_exported_and_imported_again_is_the_same_model(run, tmp_path):
    run, _ = run
    phi_files.told("export", run, tmp_path / "back")
    phi_files.told("import", tmp_path / "back", tmp_path / "again")
    one, other = (run_folder.read_spec(str(folder)) for folder in (run, tmp_path / "again"))
    assert (other.lora, other.mel) == (one.lora, one.mel)
    how = {name: getattr(other.model, name) for name in ("remat", "scan")}
    assert other.model == dataclasses.replace(one.model, **how)
    stored = [
        weight_store.WeightReader(x)
        for x in (run / "checkpoints/1", tmp_path / "again/checkpoints/0")
    ]
    assert stored[0].shapes == stored[1].shapes
    for name in stored[0].shapes:
        np.testing.assert_array_equal(stored[0].read(name), stored[1].read(name))


@pytest.fixture(scope="module")
def linear(tmp_path_factory):
    """A folder of a run with the linear front end, and its weights."""
    folder = tmp_path_factory.mktemp("linear")
    cfg = models.run(Model(d=D, n=N, k=K, h=H, f=F, l=L, v=V, speech="bidirectional"))
    with models.one_device():
        values = models.made(cfg)[1]
        saved(folder / "run", cfg, values)
    return folder / "run", {name: np.asarray(x) for name, x in values.items()}


def test_a_front_end_that_no_class_reads_is_refused_and_can_be_dropped(linear, tmp_path, capsys):
    folder, values = linear
    before = everything(folder)
    message = refused(["convert", "export", folder, tmp_path / "back"], capsys)
    assert message == (
        'model.front="linear": no class of transformers reads mel patches; '
        "--front drop exports the LLM alone"
    )
    assert not list(tmp_path.iterdir())
    told = phi_files.told("export", folder, tmp_path / "back", "--front", "drop")
    assert (told["tensors"], told["adapter"]) == (14, 16)
    found = model_of(tmp_path / "back") | adapter_of(tmp_path / "back")
    wanted = {name: x for name, x in values.items() if not name.startswith("front.")}
    low = phi_files.low_rank(found, "transformers")
    assert_same(phi_files.expected(found, "tied") | low, wanted)
    assert everything(folder) == before


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            {"model.speech": "bidirectional"},
            'model.speech="bidirectional": transformers attends causally within a clip; '
            "--front drop exports the LLM alone",
        ),
        (
            {"mel.normalize": "utterance"},
            "mel.normalize=utterance: must be none for a Phi-4-multimodal config",
        ),
        ({"mel.floor": -5.0}, "mel.floor=-5.0: must be 0 for a Phi-4-multimodal config"),
    ],
)
def test_a_run_that_transformers_would_compute_otherwise_is_refused(
    run, tmp_path, capsys, change, says
):
    shutil.copytree(run[0], tmp_path / "run")
    cfg = override(run_folder.read_run(str(run[0])), change)
    (tmp_path / "run/run.json").write_text(to_json(cfg))
    before = everything(tmp_path)
    assert refused(["convert", "export", tmp_path / "run", tmp_path / "back"], capsys) == says
    assert everything(tmp_path) == before
    assert not (tmp_path / ".back.unfinished").exists()


def test_a_checkpoint_of_other_sizes_than_its_config_is_refused(linear, tmp_path, capsys):
    shutil.copytree(linear[0], tmp_path / "run")
    cfg = override(run_folder.read_run(str(linear[0])), {"model.f": 40})
    (tmp_path / "run/run.json").write_text(to_json(cfg))
    message = refused(["convert", "export", tmp_path / "run", tmp_path / "back"], capsys)
    assert message.startswith(f"{tmp_path}/run: stack.blocks.mlp.")
    assert ", its config says (2, " in message


def damaged(folder):
    shutil.rmtree(folder / "checkpoints/0/weights/embed")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda folder: shutil.rmtree(folder), "holds neither model.json nor run.json"),
        (
            lambda folder: (folder / "model.json").unlink(),
            "holds neither model.json nor run.json",
        ),
        (lambda folder: shutil.rmtree(folder / "checkpoints"), "holds no whole checkpoint"),
        (damaged, "holds no whole checkpoint"),
        (lambda folder: (folder / "model.json").write_text("{"), "model.json is no JSON: "),
    ],
    ids=["no folder", "no config", "no checkpoint", "damaged", "no JSON"],
)
def test_a_folder_without_a_whole_checkpoint_is_refused(ours, tmp_path, capsys, change, says):
    change(tmp_path / "ours")
    before = everything(tmp_path)
    message = refused(["convert", "export", tmp_path / "ours", tmp_path / "back"], capsys)
    assert says in message
    assert everything(tmp_path) == before
    assert not (tmp_path / "back").exists()


@pytest.fixture
def ours(brought, tmp_path):
    """An import of text: 93 kB."""
    return shutil.copytree(brought("text")[0] / "ours", tmp_path / "ours")


def test_a_folder_that_exists_is_not_overwritten(ours, tmp_path, capsys):
    (tmp_path / "back").mkdir()
    (tmp_path / "back/mine").write_text("dear")
    before = everything(tmp_path)
    message = refused(["convert", "export", ours, tmp_path / "back"], capsys)
    assert message == f"HF_DIR={tmp_path}/back: exists already; give a new folder"
    assert everything(tmp_path) == before


def test_a_disk_too_small_is_said_and_nothing_stays_on_it(ours, tmp_path, capsys):
    with small_disk(tmp_path / "disk", 64) as disk:
        free = shutil.disk_usage(disk).free
        message = refused(["convert", "export", ours, disk / "back"], capsys)
        assert message.startswith(f"HF_DIR={disk}/back: no space on disk: needs 0.00 GB, ")
        assert not list(disk.iterdir())
        assert shutil.disk_usage(disk).free == free


def test_a_target_that_cannot_be_made_is_refused(ours, tmp_path, capsys):
    target = tmp_path / "file/back"
    (tmp_path / "file").write_text("")
    message = refused(["convert", "export", ours, target], capsys)
    assert message.startswith(f"HF_DIR={target}: cannot be written: ")


def test_an_export_interrupted_leaves_nothing_and_the_next_clears_what_a_kill_left(ours, tmp_path):
    (tmp_path / ".back.unfinished").mkdir()
    (tmp_path / ".back.unfinished/mine").write_text("in the way")
    told = []

    def moved(count):
        told.append(count)
        if len(told) == 1:  # a second one would interrupt the clearing up itself
            os.kill(os.getpid(), signal.SIGINT)

    what = to_hf.plan_export(ours)
    with pytest.raises(KeyboardInterrupt):
        to_hf.export_checkpoint(what, tmp_path / "back", moved)
    assert told
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ours"]
    phi_files.told("export", ours, tmp_path / "back")
    assert not (tmp_path / "back/mine").exists()


@pytest.fixture(scope="module")
def parity():
    """torch and transformers, quiet about what they load."""
    pytest.importorskip("torch", reason="needs the extra `parity`")
    transformers = pytest.importorskip("transformers", reason="needs the extra `parity`")
    transformers.utils.logging.disable_progress_bar()
    return transformers


TOKENS = [[5, 9, 61, 3, 3, 40, 17, 22, 1, 30, 11, 60, 2, 7, 8, 33, 21, 50, 4, 19]]


def opened(parity, folder, **more):
    """The model that transformers loads from a folder, and what it says of it."""
    more = {"dtype": "auto", "attn_implementation": "eager", "output_loading_info": True} | more
    model, said = parity.AutoModelForCausalLM.from_pretrained(folder, **more)
    return model.eval(), said


def logits(model):
    import torch  # noqa: PLC0415 the extra `parity`

    with torch.no_grad():
        return model(torch.tensor(TOKENS)).logits.float().numpy()


@pytest.mark.parametrize(
    ("kind", "number"),
    [("text", "float32"), ("text in files", "float16"), ("tied", "bfloat16")],
)
def test_transformers_computes_the_same_bits_from_an_export(
    parity, brought, tmp_path, kind, number
):
    """Twenty tokens: beyond 16, where LongRoPE's long factors begin."""
    sent(brought, tmp_path / "back", kind, number)
    one, said = opened(parity, tmp_path / "back")
    assert not any(said.values()), said
    other, _ = opened(parity, brought(kind, number)[0] / "theirs")
    assert type(one) is parity.Phi3ForCausalLM
    assert str(one.dtype) == f"torch.{number}"
    np.testing.assert_array_equal(logits(one), logits(other), strict=True)


@SPEECH
def test_transformers_loads_a_multimodal_export_without_vision(parity, brought, tmp_path, kind):
    sent(brought, tmp_path / "back", kind, "bfloat16", "--lora", "drop")
    model, said = opened(parity, tmp_path / "back")
    assert type(model) is parity.Phi4MultimodalForCausalLM
    assert not said["unexpected_keys"] and not said["mismatched_keys"], said
    random = ("image_embed.", "_proj_for_vision_speech.", "relative_attention_bias_layer.")
    missing = [name for name in said["missing_keys"] if not any(word in name for word in random)]
    assert not missing
    theirs = {name: x.float().numpy() for name, x in model.state_dict().items()}
    for name, x in model_of(tmp_path / "back").items():
        np.testing.assert_array_equal(theirs[name], x.astype(np.float32), err_msg=name)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # PEFT's own
@pytest.mark.parametrize(("kind", "front"), [("transformers", "keep"), ("microsoft", "drop")])
def test_peft_loads_the_adapter_and_computes_what_is_merged(parity, brought, tmp_path, kind, front):
    """float32 sums of two layers in another order: 2e-6 of the largest logit."""
    peft = pytest.importorskip("peft", reason="needs the extra `parity`")
    sent(brought, tmp_path / "back", kind, "float32", "--front", front)
    for lora in ("merge", "drop"):
        words = ("--lora", lora, "--front", front)
        sent(brought, tmp_path / lora, kind, "float32", *words)
    plain, merged = (logits(opened(parity, tmp_path / x)[0]) for x in ("drop", "merge"))
    model, _ = opened(parity, tmp_path / "back")
    model.load_adapter(tmp_path / "back", adapter_kwargs={"subfolder": "speech-lora"})
    added = {name for name, _ in model.named_parameters() if ".lora_" in name}
    assert len(added) == 8 * L
    adapted = logits(model)
    found = peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path / "back/speech-lora")
    np.testing.assert_allclose(logits(found), adapted, rtol=0, atol=1e-5 * np.abs(merged).max())
    np.testing.assert_allclose(adapted, merged, rtol=0, atol=1e-5 * np.abs(merged).max())
    assert np.abs(adapted - plain).max() > 0.1 * np.abs(plain).max()
