import contextlib
import io
import json
import math
import os

import jax
import numpy as np
import pytest

from data_pipelines.loader import pipeline
from data_pipelines.text.load_tokenizer import load_tokenizer
from launch import cli
from launch.bench import data_loading, decoding, matmul, random_batch, timing
from melllm_jax import flops
from melllm_jax.config.overrides import override
from melllm_jax.presets import catalog, small
from tests.support import models
from tests.support.runs import (
    TINY,
    compiled_once,
    corpus,
    one_device,
    refused,
    tiny,
)

alone = pytest.fixture(one_device)
once = pytest.fixture(scope="module", autouse=True)(compiled_once)
LIGHT = ("--model.scan", False, "--model.remat", "none")  # a program that is traced faster
LARGE = ["--model.v", str(2 * 10**9)]


def bench(capsys, what, *words):
    """The figures that `melllm bench WHAT digits … --json` prints, and nothing beside them."""
    assert cli.main(["bench", what, "digits", *TINY, *map(str, words), "--json"]) == 0
    out, _ = capsys.readouterr()
    assert out.count("\n") == 1
    return json.loads(out)


def digits():
    """The run that TINY makes of the preset."""
    changes = {"model.d": 16, "model.n": 2, "model.k": 1, "model.h": 8, "model.f": 16, "model.l": 1}
    more = {"data.t": 64, "data.b": 8, "mel.kind": "plain", "mel.m": 8}
    more |= {"optim.warmup": 1, "optim.kind": "adamw"}
    return override(small.digits(), changes | more)


@pytest.fixture(scope="module")
def product():
    return matmul.compile_matmul("float32")


def test_bench_train_counts_what_the_update_does(capsys, monkeypatch, product):
    devices = jax.devices()[:2]  # on which an update costs a third of what it does on eight
    monkeypatch.setattr(jax, "devices", lambda: devices)
    asked = []
    monkeypatch.setattr(matmul, "compile_matmul", lambda kind: (asked.append(kind), product)[1])
    found = bench(capsys, "train", "--updates", 3, *LIGHT)
    assert asked == ["float32"]
    run = digits()
    assert found["flops"] == flops.update_flops(run)
    assert found["tflops"] == pytest.approx(flops.update_flops(run) / found["seconds"] / 1e12)
    assert found["tokens_per_second"] == pytest.approx(8 * 64 / found["seconds"])
    assert found["audio_seconds_per_second"] == pytest.approx(8 * 48 * 8 * 0.01 / found["seconds"])
    assert 0 < found["fastest"] <= found["seconds"] <= found["slowest"]
    assert found["compile_seconds"] > 0
    product = found["gemm"]
    assert (product["size"], product["dtype"]) == (2048, "float32")
    assert 0 < found["gemm_share"] < 1
    assert (found["chip"], found["devices"], found["mfu"]) == ("cpu", 2, None)
    assert found["parameters"] == found["trained"] == flops.count_parameters(run).total
    assert abs(found["loss"] - math.log(run.model.v)) < 1  # random targets, five updates
    sizes = found["compiled_bytes"]
    state = 3 * 4 * found["parameters"] / 2
    assert sizes["arguments"] > 0.5 * state
    assert sizes["peak"] >= sizes["temporary"] > 0


@pytest.mark.usefixtures("alone")
def test_bench_train_of_lora_needs_no_weights_to_start_from(capsys, monkeypatch):
    nothing = lambda kind: matmul.Matmul(1, kind, 1, lambda: None)
    monkeypatch.setattr(matmul, "compile_matmul", nothing)
    found = bench(capsys, "train", "--updates", 1, *LIGHT, "--optim.train", "lora", "--lora.r", 2)
    assert found["trained"] < found["parameters"]


@pytest.mark.slow
def test_bench_train_says_the_same_to_people_and_takes_a_mesh(capsys):
    flags = ["--updates", "1", "--mesh.tp", "2", "--model.k", "2"]
    assert cli.main(["bench", "train", "digits", *TINY, *flags]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("digits: 0.0 M parameters")
    assert "8 × 64 positions, float32, on 8 × cpu" in out
    assert "of 2048³ in float32" in out
    assert err == ""


@pytest.mark.parametrize("what", ["train", "checkpoint", "decode"])
def test_bench_of_what_does_not_fit_this_machine_is_refused(capsys, what):
    said = refused(["bench", what, "digits", *TINY, *LARGE], capsys)
    assert said.startswith("preset=digits: ")
    assert "GB on this machine, which has" in said


@pytest.mark.usefixtures("alone")
def test_bench_checkpoint_saves_and_restores_and_leaves_nothing(capsys, tmp_path):
    found = bench(capsys, "checkpoint", "--rounds", 2, "--folder", tmp_path)
    parameters = flops.count_parameters(digits()).total
    assert 2 * 4 * parameters < found["bytes"] < 4 * 4 * parameters
    assert 0 < found["stall_seconds"] < found["blocking_seconds"]
    assert 0 < found["stall_share"] < 1
    rate = found["bytes"] / 1e6 / found["blocking_seconds"]
    assert found["megabytes_per_second"] == pytest.approx(rate)
    assert found["restore_seconds"] > 0
    assert list(tmp_path.iterdir()) == []


def test_bench_checkpoint_on_a_folder_that_is_none_is_a_fault(capsys, tmp_path):
    words = ["bench", "checkpoint", "digits", *TINY, "--folder", tmp_path / "none"]
    said = refused(words, capsys, status=1)
    assert said == f"folder={tmp_path / 'none'}: cannot be written: No such file or directory"


@pytest.fixture(scope="module")
def timed(tmp_path_factory):
    """The corpus, the figures and the text of `melllm data bench` with one process and two."""
    folder = corpus(tmp_path_factory.mktemp("timed") / "data")  # 0.3 s a clip
    words = [str(folder), "--preset", "mel_llm_asr_full_v5p_128", "--seconds", "0.2"]
    words += ["--mfu", "0.4", "--data.t", "128", "--data.bins", "1"]
    found, measure = [], data_loading.measure
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as told:
        patch.setattr(os, "sched_getaffinity", lambda pid: {0, 1})
        keep = lambda arguments: (found.append(measure(arguments)), found[0])[1]
        patch.setattr(data_loading, "measure", keep)
        assert cli.main(["data", "bench", *words]) == 0
    return folder, found[0], told.getvalue()


def test_data_bench_times_stages_and_numbers_of_processes_and_what_they_feed(timed):
    folder, found, _ = timed
    assert (found["preset"], found["rows"]) == ("mel_llm_asr_full_v5p_128", 8)  # few of its rows
    assert (found["data"], found["positions"]) == ([str(folder)], 128)
    assert found["seconds"] >= 0.2
    assert found["batches"] == pytest.approx(found["batches_per_second"] * found["seconds"])
    a_batch = found["audio_seconds_per_second"] / found["batches_per_second"]
    assert 8 * 0.3 < a_batch < 8 * 128 * 0.08
    assert found["audio_seconds_per_core_second"] * found["cores"] == pytest.approx(
        found["audio_seconds_per_second"]
    )
    assert 0.5 < found["filled"] <= 1
    stages = found["stages"]
    assert list(stages) == ["read", "decode", "mel", "augment", "tokenise", "assemble", "pack"]
    assert sum(one["share"] for one in stages.values()) == pytest.approx(1)
    cost = [1 / one["audio_seconds_per_second"] for one in stages.values()]
    assert stages["mel"]["share"] == pytest.approx(cost[2] / sum(cost))
    assert {one["utterances"] for one in stages.values()} == {12}
    assert [one["workers"] for one in found["workers"]] == [0, 1, 2]
    here = found["workers"][0]
    assert here == {name: found[name] for name in here if name != "workers"} | {"workers": 0}
    assert all(one["cores"] > 0.02 for one in found["workers"])  # those of the processes count
    feeds, best = found["feeds"], max(one["batches_per_second"] for one in found["workers"])
    run = override(catalog.preset(found["preset"]), {"data.t": 128})
    a_position = flops.update_flops(run) / (run.data.b * 128)
    assert feeds["chips"] == pytest.approx(best * 8 * 128 * a_position / (0.4 * 459e12))
    assert 0 < feeds["audio_seconds_per_position"] < 0.08
    alone = stages["decode"]["audio_seconds_per_second"]
    share = found["audio_seconds_per_core_second"] / alone
    assert found["share_of_decoding"] == pytest.approx(share)


def test_data_bench_says_the_same_to_people(timed):
    _, found, told = timed
    assert told.startswith(f"{found['preset']}: {found['batches']} batches of 8 × 128 positions")
    assert "\n1 process " in told and "\n2 processes " in told and "\ndecode " in told
    assert f"× TPU v5p that train {found['preset']} at an assumed MFU of 40%" in told


def test_data_bench_takes_a_preset_first(capsys, tmp_path):
    words = ["data", "bench", "digits", *TINY, "--data", tmp_path / "no"]
    assert refused(words, capsys) == f"data={tmp_path / 'no'}: is no folder"


def test_data_bench_prints_its_figures_as_json_and_nothing_else(capsys, monkeypatch, timed):
    folder, found, _ = timed
    monkeypatch.setattr(data_loading, "measure", lambda arguments: found)
    for command in (["bench", "data"], ["data", "bench"]):
        assert cli.main([*command, "digits", "--data", str(folder), "--json"]) == 0
        assert json.loads(capsys.readouterr().out) == found


def test_data_bench_of_what_does_not_fit_is_refused(capsys, tmp_path):
    assert refused(["data", "bench", "x", "--preset"], capsys) == "preset: --preset needs a name"
    words = ["data", "bench", str(tmp_path), "--chip", "v9"]
    assert refused(words, capsys).startswith("chip=v9: is none of TPU v4")
    assert refused(["data", "bench", str(tmp_path / "no")], capsys).endswith("is no folder")


def test_bench_data_without_a_corpus_asks_for_one(capsys):
    said = refused(["bench", "data"], capsys)
    assert said == "data: give at least one corpus with --data DIR"


@pytest.mark.usefixtures("alone")
def test_bench_decode_is_told_for_each_batch_size(capsys, monkeypatch):
    monkeypatch.setattr(decoding, "init_model", models.drawn)  # which compiles nothing
    found = bench(capsys, "decode", "--batch", 1, 3, "--seconds", 1, "--tokens", 5, "--rounds", 2)
    assert [one["batch"] for one in found["batches"]] == [1, 3]
    for one in found["batches"]:
        assert one["rtfx"] == pytest.approx(one["batch"] / one["seconds"])
        assert one["tokens_per_second"] == pytest.approx(5 * one["batch"] / one["seconds"])
    assert found["compile_seconds"] > 0


def test_bench_decode_refuses_no_rows_and_no_front_end(capsys):
    words = ["bench", "decode", "digits", *TINY]
    assert refused([*words, "--batch", "0"], capsys) == "batch=(0,): must be positive"
    assert refused([*words, "--model.front", "none"], capsys).startswith('model.front="none"')


def test_bench_of_nothing_or_of_another_thing_lists_what_there_is(capsys):
    said = refused(["bench"], capsys)
    assert said == "say what to measure: train, checkpoint, data, decode"
    said = refused(["bench", "trian"], capsys)
    assert said.endswith("is none of train, checkpoint, data, decode; did you mean train?")


def test_bench_help_lists_what_there_is_and_each_has_its_own(capsys):
    assert cli.main(["bench", "--help"]) == 0
    told = capsys.readouterr().out
    for what in ("train", "checkpoint", "data", "decode"):
        assert f"\n  {what} " in told
        with pytest.raises(SystemExit) as end:
            cli.main(["bench", what, "--help"])
        assert not end.value.code
        assert f"usage: melllm bench {what} PRESET [flags]" in capsys.readouterr().out


def test_noise_is_a_batch_like_those_of_the_data(tmp_path):
    run = tiny(corpus(tmp_path / "data"))
    real = next(iter(pipeline.train_batches(run, load_tokenizer("bytes"))))
    made = random_batch.train_batch(run)
    for name, x, y in zip(made._fields, made, real, strict=True):
        assert (x.shape, x.dtype) == (y.shape, y.dtype), name
    assert (made.segments == 1).all()
    assert made.positions[1].tolist() == list(range(64))
    assert made.is_speech.sum(1).tolist() == [48, 48]
    assert (made.patches[made.is_speech] != 0).all()
    assert made.loss_weight[0].tolist() == [0.0] * 48 + [1.0] * 16
    assert 0 <= made.tokens.min() < made.tokens.max() < run.model.v
    assert not np.array_equal(made.patches[0], made.patches[1])


def test_noise_for_a_model_of_text_alone_has_no_speech():
    run = override(digits(), {"model.front": "none"})
    made = random_batch.train_batch(run)
    assert not made.is_speech.any()
    assert (made.loss_weight == 1).all()


def test_turns_are_taken_one_after_another_and_the_first_do_not_count():
    order = []
    actions = {name: lambda name=name: order.append(name) for name in "ab"}
    taken = timing.time_in_turns(actions, rounds=2, warm=1)
    assert order == ["a", "b"] * 3
    assert {name: len(values) for name, values in taken.items()} == {"a": 2, "b": 2}
    assert timing.medians({"a": [3.0, 1.0, 2.0]}) == {"a": 2.0}


def test_gemm_multiplies_numbers_that_are_no_zeros(product):
    product_of_both = product.run()
    result = np.asarray(product_of_both)
    assert result.shape == (product.size, product.size)
    assert product.flops == 2 * 2048**3
    assert result.std() == pytest.approx(1, rel=0.01)
    assert jax.devices()[0] in product_of_both.devices()
