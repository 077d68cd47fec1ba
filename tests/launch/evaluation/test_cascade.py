"""A small Whisper and a small LLM in a row: what is heard, what is asked of it, what is refused."""

import json
import types

import jax
import numpy as np
import pytest

from data_pipelines.text.text_prompt import text_prompt
from launch import api, cli
from tests.support import phi_files, whisper_files
from tests.support.corpora import write_corpus
from tests.support.families import FAMILIES, write_checkpoint
from tests.support.runs import (
    compiled_once,
    compiled_quickly,
    generated_once,
    one_device,
    refused,
)

pytest.importorskip("jiwer", reason="the extra eval brings the scorer")
once = pytest.fixture(scope="module", autouse=True)(compiled_once)
held = pytest.fixture(scope="module", autouse=True)(generated_once)
quick = pytest.fixture(scope="module", autouse=True)(compiled_quickly)
alone = pytest.fixture(scope="module", autouse=True)(one_device)
QUESTION = {"instruction": "What is said?", "answer": ["two", "2"], "metric": "contains"}
CHOICE = {"instruction": "Who?", "answer": "cat", "options": ["cat", "a dog"], "task": "pets"}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A Whisper and an LLM of random weights, and a corpus of transcripts and tasks."""
    folder = tmp_path_factory.mktemp("cascade")
    whisper_files.write(folder / "whisper/hf")
    write_checkpoint(folder / "llm/hf", FAMILIES["SmolLM2"])
    for name in ("whisper", "llm"):
        phi_files.told("import", folder / name / "hf", folder / name / "ours")
    data = folder / "data"
    write_corpus(data, 4, split="test", seconds=0.6, changes={1: QUESTION, 2: CHOICE})
    with (data / "test.jsonl").open("a") as file:
        file.write(json.dumps({"id": "text", "instruction": "Hi?", "answer": "yes"}) + "\n")
    return types.SimpleNamespace(
        whisper=folder / "whisper/ours", llm=folder / "llm/ours", data=data, folder=folder
    )


def evaluate(place, *more):
    return ["evaluate", "--run", place.whisper, "--data", place.data, "--batch", "8", *more]


@pytest.fixture(scope="module")
def rows(place):
    """The summary of a cascade on the corpus, and its rows by id."""
    out = place.folder / "out"
    assert cli.main([*map(str, evaluate(place, "--llm", place.llm, "--out", out))]) == 0
    assert {path.name for path in out.iterdir()} == {"data-test-ours.json", "data-test-ours.jsonl"}
    lines = (out / "data-test-ours.jsonl").read_text().splitlines()
    summary = json.loads((out / "data-test-ours.json").read_text())
    return summary, {row["id"]: row for row in map(json.loads, lines)}


@pytest.fixture(scope="module")
def llm(place):
    return api.load(place.llm)


def test_transcripts_are_the_whispers_own(place, rows):
    summary, told = rows
    whisper = api.load(place.whisper)
    for name in ("id0", "id3"):
        text = whisper.transcribe(str(place.data / f"audio/{name[2:]}.flac"), batch=8)
        assert told[name]["text"] == text != ""
        assert "heard" not in told[name]
    assert (summary["utterances"], summary["rejected"]) == (2, {})
    assert (summary["llm"], summary["step"], summary["trained"]) == (str(place.llm), 0, 0)
    assert summary["peak_of"] == "process" and summary["peak_bytes"] > 1 << 20
    sizes = [
        sum(x.size for x in jax.tree.leaves(model))
        for model in (whisper.model, api.load(place.llm).checkpoint.model)
    ]
    assert summary["parameters"] == sum(sizes)


def test_a_question_is_answered_as_if_what_is_heard_had_been_typed(place, rows, llm):
    _, told = rows
    heard = api.load(place.whisper).transcribe(str(place.data / "audio/1.flac"), batch=8)
    assert told["id1"]["heard"] == heard != ""
    for name, prompt in (("id1", f"{heard}\nWhat is said?"), ("text", "Hi?")):
        answer = llm.generate(prompt, tokens=128, decoding=api.DecodingOptions(), batch=8)
        assert told[name]["text"] == answer
    assert told["id1"]["metric"] == "contains"


def test_an_option_is_chosen_by_its_likelihood_after_what_is_heard(place, rows, llm):
    _, told = rows
    heard = api.load(place.whisper).transcribe(str(place.data / "audio/2.flac"), batch=8)
    nats = []
    for option in CHOICE["options"]:
        before = text_prompt(llm.tokenizer, f"{heard}\nWho?")
        ids = [*before, *llm.tokenizer.encode(option), llm.tokenizer.special("<|im_end|>")]
        scores = jax.nn.log_softmax(llm.logits(np.array(ids))[: len(ids)])
        nats.append(sum(float(scores[i - 1, ids[i]]) for i in range(len(before), len(ids))))
    assert told["id2"]["nats"]["sum"] == pytest.approx(nats, rel=1e-4)
    assert told["id2"]["text"] == CHOICE["options"][int(np.argmax(nats))]


@pytest.mark.parametrize(
    ("run", "llm", "rule"),
    [
        ("llm", "llm", "run=LLM: holds no Whisper"),
        ("whisper", "whisper", "llm=WHISPER: holds a Whisper: must be a language model"),
        ("whisper", "data", "llm=DATA: holds no run.json, nor the model.json of an import"),
        ("data", "llm", "run=DATA: holds no run.json"),
    ],
)
def test_what_is_no_whisper_or_no_llm_is_refused_by_name(place, capsys, run, llm, rule):
    words = ["--run", getattr(place, run), "--llm", getattr(place, llm)]
    for name in ("whisper", "llm", "data"):
        rule = rule.replace(name.upper(), str(getattr(place, name)))
    assert rule in refused(evaluate(place, *words), capsys)
    words = ["evaluate", "--checkpoint", place.llm, "--text", "-", "--llm", place.llm]
    assert f"llm={place.llm}: goes with --data" in refused(words, capsys)
