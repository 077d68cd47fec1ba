import dataclasses
import json
import math
import types

import jax
import numpy as np
import pytest

from launch import cli
from launch.runs.run_inputs import complete_run
from melllm_jax import sharding
from melllm_jax.checkpoints import run_folder
from melllm_jax.config.model import Lora, ModelSpec
from melllm_jax.config.overrides import from_json, override, to_json
from melllm_jax.config.run import Run
from tests.support import models, phi_files
from tests.support.families import FAMILIES, write_checkpoint
from tests.support.runs import (
    compiled_once,
    corpus,
    done,
    everything,
    generated_once,
    one_device,
    refused,
    saved,
    tiny,
    two_updates,
)

pytest.importorskip("jiwer", reason="the extra eval brings the scorer")
once = pytest.fixture(scope="module", autouse=True)(compiled_once)
held = pytest.fixture(scope="module", autouse=True)(generated_once)
alone = pytest.fixture(one_device)
GONE = {"audio_filepath": "audio/none.flac"}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A corpus of which two test utterances have no audio, and a run trained on it."""
    folder = tmp_path_factory.mktemp("place")
    run = two_updates(folder)
    data = corpus(folder / "data", 5, split="test", first=50, changes={51: GONE, 53: GONE})
    return types.SimpleNamespace(data=data, run=folder / "run", cfg=run)


def evaluate(place, *more):
    return ["evaluate", "--run", str(place.run), "--data", str(place.data), "--batch", "4", *more]


def test_evaluate_prints_one_json_object_and_keeps_the_hypotheses(place, capsys):
    assert cli.main(evaluate(place, "--json")) == 0
    assert jax.sharding.get_mesh().empty
    said = capsys.readouterr()
    summary = json.loads(said.out)
    assert said.err == ""
    expected = {
        "utterances": 3,
        "words": 3,  # the normaliser writes "five zero" as 50
        "empty": 0,
        "rejected": {"missing": 2},
        "batch": 8,  # 4 is rounded up to what eight devices share
        "devices": 8,
        "chip": "cpu",
        "dtype": "float32",
        "run": str(place.run),
        "data": str(place.data),
        "split": "test",
        "step": 2,
    }
    assert {name: summary[name] for name in expected} == expected
    assert (
        summary["wer"]
        == (summary["substitutions"] + summary["deletions"] + summary["insertions"]) / 3
    )
    assert summary["normalizer"].startswith("whisper-normalizer ")
    assert summary["scorer"].startswith("jiwer ")
    assert summary["rtfx"] == pytest.approx(summary["audio_seconds"] / summary["seconds"])
    assert summary["compile_seconds"] > 0
    kept = place.run / "eval"
    assert json.loads((kept / "data-test.json").read_text()) == summary
    rows = [json.loads(line) for line in (kept / "data-test.jsonl").read_text().splitlines()]
    heard = {row["id"]: row["reference"] for row in rows if "text" in row}
    assert heard == {"id50": "five zero", "id52": "five two", "id54": "five four"}
    assert {row["id"]: row["rejected"] for row in rows if "rejected" in row} == {
        "id51": "missing",
        "id53": "missing",
    }


@pytest.mark.usefixtures("alone")
def test_evaluate_without_json_says_it_in_a_line_and_where_the_rest_is(place, capsys):
    words = evaluate(place, "--normalizer", "none", "--name", "mine", "--split", "train")
    assert cli.main(words) == 0
    said = capsys.readouterr()
    assert said.out.startswith("WER ")
    assert said.out.count("\n") == 1
    assert said.err == f"hypotheses: {place.run / 'eval/mine.jsonl'}\n"
    assert json.loads((place.run / "eval/mine.json").read_text())["normalizer"] == "none"


@pytest.mark.parametrize(
    ("more", "rule"),
    [
        (["--run", "nowhere"], "run=nowhere: holds no run.json"),
        (["--data", "nowhere"], "data=nowhere: is no folder"),
        (["--split", "dev"], "split=dev: "),
        (["--batch", "0"], "batch=0: must be positive"),
        (["--decoding.top-p", "0"], "top_p=0.0: must lie in (0, 1]"),
        (["--normalizer", "mine"], "normalizer"),
        (["--text", "a"], "evaluate: give --data DIR, to transcribe, or --text FILE"),
        (["--vocoder", "v"], "vocoder=v: goes with --task tts"),
        (["--most", "3"], "most=3: goes with --task tts"),
        (["--task", "tts"], "task=tts: needs --run DIR, --data DIR and --judge WHISPER"),
    ],
    ids=lambda x: " ".join(x) if isinstance(x, list) else "",
)
def test_evaluate_refuses_what_does_not_fit_and_writes_nothing(place, capsys, more, rule):
    before = everything(place.run)
    assert rule in refused(evaluate(place, *more), capsys)
    assert everything(place.run) == before


def test_evaluate_of_a_run_without_a_checkpoint_is_refused(place, tmp_path, capsys):
    run_folder.claim(str(tmp_path), place.cfg)
    other = types.SimpleNamespace(**vars(place) | {"run": tmp_path})
    said = refused(evaluate(other), capsys)
    assert said == f"checkpoints={tmp_path / 'checkpoints'}: holds no checkpoint"
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


def test_evaluate_of_a_run_of_newer_fields_is_refused(place, tmp_path, capsys):
    run_folder.claim(str(tmp_path), place.cfg)
    tree = json.loads((tmp_path / "run.json").read_text()) | {"sed": 1}
    (tmp_path / "run.json").write_text(json.dumps(tree))
    other = types.SimpleNamespace(**vars(place) | {"run": tmp_path})
    assert refused(evaluate(other), capsys) == "run.sed=…: is no field: did you mean seed?"


def test_evaluate_where_no_audio_can_be_read_is_refused(place, tmp_path, capsys):
    bare = corpus(tmp_path, 2, split="test", changes={0: GONE, 1: GONE})
    other = types.SimpleNamespace(**vars(place) | {"data": bare})
    assert "references has a word" in refused(evaluate(other), capsys)


def test_evaluate_that_cannot_write_is_a_fault_in_one_line(place, tmp_path, capsys):
    (place.run / "eval").mkdir(exist_ok=True)
    (place.run / "eval/none").write_text("a file, no folder")
    words = evaluate(place, "--name", "none/such")
    assert "none/such.jsonl: cannot be written: " in refused(words, capsys, status=1)


@pytest.mark.slow
def test_evaluate_in_another_process_has_nothing_but_json_on_standard_output(place):
    status, out, err = done(evaluate(place, "--json", "--name", "again"))
    assert (status, err) == (0, "")
    assert json.loads(out)["devices"] == 1
    assert dataclasses.is_dataclass(from_json((place.run / "run.json").read_text(), Run))


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
    """A small random Phi-4-mini, `hf`, and its import, `ours`."""
    folder = tmp_path_factory.mktemp("text")
    write_checkpoint(folder / "hf", FAMILIES["Phi-4-mini"])
    phi_files.told("import", folder / "hf", folder / "ours")
    return folder


def on_text(folder, file, *more):
    return ["evaluate", "--checkpoint", folder / "ours", "--text", file, *more]


@pytest.mark.usefixtures("alone")
def test_evaluate_on_text_is_the_perplexity_of_transformers(imported, tmp_path, capsys):
    """Of windows too: tokens of a later one are told from those before them in it."""
    torch = pytest.importorskip("torch", reason="needs the extra `parity`")
    transformers = pytest.importorskip("transformers", reason="needs the extra `parity`")
    text = "One two é three, four. " * 4
    (tmp_path / "a.txt").write_text(text)
    tokenizer = transformers.AutoTokenizer.from_pretrained(imported / "hf")
    model = transformers.AutoModelForCausalLM.from_pretrained(imported / "hf", dtype=torch.float32)
    ids = tokenizer(text, return_tensors="pt")["input_ids"]
    for window, stride in ((2048, 1024), (40, 16)):
        nats, scored = 0.0, 1
        for start in range(0, ids.shape[1], stride):
            part = ids[:, start : start + window]
            with torch.no_grad():
                told = model(part).logits.log_softmax(-1)[0]
            stop = start + part.shape[1]
            nats -= sum(told[i - start - 1, ids[0, i]].item() for i in range(scored, stop))
            scored = stop
            if stop == ids.shape[1]:
                break
        given = ["--window", window, "--stride", stride, "--json"]
        assert cli.main([str(x) for x in on_text(imported, tmp_path / "a.txt", *given)]) == 0
        found = json.loads(capsys.readouterr().out)
        tokens = ids.shape[1] - 1
        assert (found["tokens"], found["bytes"], found["opening"]) == (tokens, 96, [])
        assert found["nats_per_token"] == pytest.approx(nats / tokens, rel=1e-5)
        assert found["perplexity"] == pytest.approx(math.exp(nats / tokens), rel=1e-4)
        assert found["bits_per_byte"] == pytest.approx(nats / math.log(2) / 95, rel=1e-5)


@pytest.mark.usefixtures("alone")
def test_evaluate_on_a_manifest_scores_each_text_by_itself(imported, tmp_path, capsys):
    texts = ["One two three.", "é"]
    (tmp_path / "both.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    totals = []
    for name, text in (("one", texts[0]), ("two", texts[1])):
        (tmp_path / name).write_text(text)
        assert cli.main([str(x) for x in on_text(imported, tmp_path / name, "--json")]) == 0
        found = json.loads(capsys.readouterr().out)
        totals.append((found["nats_per_token"] * found["tokens"], found["tokens"]))
    assert cli.main([str(x) for x in on_text(imported, tmp_path / "both.jsonl", "--json")]) == 0
    found = json.loads(capsys.readouterr().out)
    nats, tokens = (sum(x) for x in zip(*totals, strict=True))
    assert (found["texts"], found["tokens"]) == (2, tokens)
    assert found["nats_per_token"] == pytest.approx(nats / tokens, rel=1e-5)
    assert cli.main([str(x) for x in on_text(imported, tmp_path / "both.jsonl")]) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"perplexity {found['perplexity']:.4f}: ") and said.count("\n") == 1


@pytest.mark.parametrize(
    ("content", "more", "rule"),
    [
        (None, [], "a.jsonl: is no file"),
        (b"\xff\xfe", [], "a.jsonl: is no UTF-8 text"),
        (b"", [], "must hold two tokens or more"),
        (b'{"text": "a"}', [], "must hold two tokens or more"),
        (b'{"text": "ab"}\n{', [], "a.jsonl line 2: is no JSON"),
        (b'{"text": 3}', [], "a.jsonl line 1: text=3: must be a string"),
        (b"[]", [], "a.jsonl line 1: text=None: must be a string"),
        (b'{"text": "ab"}', ["--window", "5000"], "window=5000: the model has 4096 positions"),
        (b'{"text": "ab"}', ["--stride", "5000"], "stride=5000: must lie in 1…2047"),
    ],
    ids=["missing", "bytes", "empty", "a token", "cut", "number", "list", "window", "stride"],
)
def test_evaluate_refuses_what_is_no_text(imported, tmp_path, capsys, content, more, rule):
    if content is not None:
        (tmp_path / "a.jsonl").write_bytes(content)
    assert rule in refused(on_text(imported, tmp_path / "a.jsonl", *more), capsys)


@pytest.fixture(scope="module")
def moved(tmp_path_factory):
    """Runs of one LLM: with LoRA at speech, with LoRA at all positions, and before it had any."""
    folder = tmp_path_factory.mktemp("moved")
    heard = dataclasses.replace(models.MODEL, v=320)  # 56 rows more than the LLM had, their mean
    bare = dataclasses.replace(models.MODEL, v=264, front="none")
    runs = {
        "speech": models.run(heard, dataclasses.replace(models.LORA, at="speech")),
        "all": models.run(heard),
        "base": models.run(bare, Lora()),
        "other": models.run(dataclasses.replace(bare, v=256), Lora()),
    }
    with models.one_device():
        drawn = models.made(runs["all"])[1]
        rows = np.asarray(drawn["embed"])[:264]
        drawn["embed"] = np.concatenate([rows, np.repeat(rows.mean(0, keepdims=True), 56, 0)])
        for name, cfg in runs.items():
            values = {key: drawn[key] for key in models.made(cfg)[0].kinds}
            embed = jax.device_put(drawn["embed"][: cfg.model.v], sharding.w("v d"))
            saved(folder / name, cfg, values | {"embed": embed})
    (folder / "base" / run_folder.SPEC).write_text(to_json(ModelSpec(bare)))  # as an import has it
    (folder / "a.txt").write_text("One two é three, four. " * 9)
    return folder


def against(moved, name, *more, base="base"):
    words = ["evaluate", "--run", moved / name, "--text", moved / "a.txt", "--window", 128]
    return [str(x) for x in [*words, "--against", moved / base, *more]]


@pytest.mark.usefixtures("alone")
def test_evaluate_against_its_start_finds_no_change_of_lora_at_speech(moved, capsys):
    """To the bit, though the run has a front end, and rows more for what is no text."""
    assert cli.main(against(moved, "speech", "--json")) == 0
    found = json.loads(capsys.readouterr().out)
    drift = found["against"]
    assert (drift["checkpoint"], drift["step"], drift["kl"]) == (str(moved / "base"), 1, 0.0)
    assert drift["perplexity"] == drift["base_perplexity"] < found["perplexity"]
    assert cli.main(against(moved, "speech")) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith(f"perplexity {found['perplexity']:.4f}: ")
    assert second == (
        f"KL(base ‖ run) 0 nats a token: perplexity {drift['perplexity']:.4f}, "
        f"{drift['perplexity']:.4f} of the base ({moved / 'base'})"
    )
    assert cli.main(against(moved, "all", "--json")) == 0
    other = json.loads(capsys.readouterr().out)["against"]
    assert other["kl"] > 0.1
    assert other["base_perplexity"] == pytest.approx(drift["perplexity"])


@pytest.mark.usefixtures("alone")
def test_generate_of_a_run_with_lora_at_speech_writes_what_its_start_writes(moved, capsys):
    texts = {}
    for name in ("speech", "all", "base"):
        words = ["generate", "--checkpoint", moved / name, "--tokens", 12, "One two", "é"]
        assert cli.main([str(x) for x in words]) == 0
        texts[name] = capsys.readouterr().out
    assert texts["speech"] == texts["base"] != texts["all"]


@pytest.mark.parametrize(
    ("base", "more", "rule"),
    [
        ("other", [], "other: the model has v=256: its tokenizer has 261 ids"),
        ("imported", [], "has another tokenizer than "),
        ("none", [], "none: holds neither model.json nor run.json"),
        ("base", ["--text", "", "--data", "x"], "base: compares on a text: give --text FILE"),
        ("base", ["--window", "5000"], "window=5000: the model has 4096 positions"),
    ],
    ids=["rows", "tokenizer", "missing", "no text", "window"],
)
def test_evaluate_against_what_cannot_be_compared_is_refused(
    moved, imported, capsys, base, more, rule
):
    base = imported / "ours" if base == "imported" else base
    assert rule in refused(against(moved, "speech", *more, base=base), capsys)


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    """A corpus of tasks beside transcripts, and a run over it with the weights of another."""
    folder = tmp_path_factory.mktemp("asked")
    data = corpus(folder / "data")
    told = [json.loads(line) for line in (data / "train.jsonl").read_text().splitlines()]
    clip = {"audio": told[0]["audio_filepath"], "duration": told[0]["duration"]}
    choice = {"instruction": "Who?", "answer": "cat", "options": ["cat", "dog"], "task": "pets"}
    age = {"instruction": "Age?", "answer": 34, "metric": "mae", "task": "age"}
    turns = [{"role": "user", "content": ["A?", clip, clip]}, {"role": "assistant", "content": "b"}]
    rows = [
        *told[:4],
        *[clip | choice | {"id": f"c{number}"} for number in range(3)],
        clip | age,
        {"messages": turns, "metric": "contains"},
        {"instruction": "Say hi", "answer": "hi"},
        {"instruction": "Say what?"},
    ]
    for split in ("train", "test"):
        (data / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = override(tiny(data, steps=2), {"text.template": "phi4", "data.max_reject_share": 0.5})
    run = complete_run(run).run
    run_folder.claim(str(folder / "run"), run)
    two_updates(folder / "other")
    (folder / "other/run/checkpoints").rename(folder / "run/checkpoints")
    return types.SimpleNamespace(data=data, run=folder / "run", cfg=run)


@pytest.mark.usefixtures("alone")
def test_evaluate_scores_each_task_by_its_metric(asked, capsys):
    assert cli.main(evaluate(asked, "--json", "--choice", "byte")) == 0
    summary = json.loads(capsys.readouterr().out)
    tasks = summary["tasks"]
    counts = {
        (task, metric): figures["utterances"]
        for task, metrics in tasks.items()
        for metric, figures in metrics.items()
    }
    assert counts == {
        ("age", "mae"): 1,
        ("asr", "wer"): 4,
        ("instruct", "contains"): 1,
        ("instruct", "exact_match"): 1,
        ("pets", "choice"): 3,
    }
    assert {name: summary[name] for name in tasks["asr"]["wer"]} == tasks["asr"]["wer"]
    assert summary["rejected"] == {"malformed row": 1}
    pets = tasks["pets"]["choice"]
    assert (pets["rule"], pets["chance"]) == ("byte", 0.5)
    lines = (asked.run / "eval/data-test.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    chosen = [row for row in rows if row.get("metric") == "choice"]
    best = {"cat", "dog"} & {row["text"] for row in chosen}
    assert len(best) == 1  # the same question thrice
    assert pets["accuracy"] == float("cat" in best)
    for row in chosen:
        cat, dog = row["nats"]["byte"]
        assert row["text"] == ("cat" if cat >= dog else "dog")
        assert row["nats"]["sum"] == [pytest.approx(3 * cat), pytest.approx(3 * dog)]


@pytest.mark.usefixtures("alone")
def test_evaluate_says_a_line_for_each_task(asked, capsys):
    assert cli.main(evaluate(asked)) == 0
    said = capsys.readouterr().out.splitlines()
    begins = ["WER ", "age: mean absolute error ", "instruct: contains ", "instruct: exact_match "]
    assert [line.startswith(x) for line, x in zip(said, begins, strict=False)] == [True] * 4
    assert "pets: right option " in said[4]
    assert "(by sum, chance 50.00%) on 3 utterances" in said[4]
