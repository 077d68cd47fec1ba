"""`melllm generate` on a small random import: what transformers writes, streamed, and refusals."""

import io
import json
import os
import pathlib
import sys

import pytest

from launch import api, cli
from launch.commands import generate
from melllm_jax.checkpoints import run_folder
from tests.support import phi_files
from tests.support.families import FAMILIES, write_checkpoint
from tests.support.runs import (
    compiled_once,
    compiled_quickly,
    generated_once,
    one_device,
    refused,
    two_updates,
)

once = pytest.fixture(scope="module", autouse=True)(compiled_once)
held = pytest.fixture(scope="module", autouse=True)(generated_once)
quick = pytest.fixture(scope="module", autouse=True)(compiled_quickly)
alone = pytest.fixture(scope="module", autouse=True)(one_device)
PROMPTS = ["Who was é?", "One two three"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small random Phi-4-mini in Hugging Face's layout, `hf`, and its import, `ours`."""
    folder = tmp_path_factory.mktemp("generate")
    write_checkpoint(folder / "hf", FAMILIES["Phi-4-mini"])
    phi_files.told("import", folder / "hf", folder / "ours")
    return folder


def told(folder, capsys, *words):
    """What the command prints, which must succeed."""
    capsys.readouterr()
    assert cli.main(["generate", "--checkpoint", str(folder / "ours"), *map(str, words)]) == 0
    return capsys.readouterr().out


def as_json(folder, capsys, *words):
    lines = told(folder, capsys, "--tokens", 12, "--json", *words).splitlines()
    return [json.loads(line) for line in lines]


def test_generate_writes_what_transformers_writes(folder, capsys):
    torch = pytest.importorskip("torch", reason="needs the extra `parity`")
    transformers = pytest.importorskip("transformers", reason="needs the extra `parity`")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "hf")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder / "hf", dtype=torch.float32)
    for chat in ("on", "off"):
        found = as_json(folder, capsys, "--chat", chat, *PROMPTS)
        for prompt, one in zip(PROMPTS, found, strict=True):
            if chat == "on":
                turn = [{"role": "user", "content": prompt}]
                ids = tokenizer.apply_chat_template(
                    turn, add_generation_prompt=True, return_dict=False
                )
            else:
                ids = tokenizer(prompt)["input_ids"]
            given = torch.tensor([ids])
            with torch.no_grad():
                out = model.generate(
                    given,
                    attention_mask=torch.ones_like(given),
                    max_new_tokens=12,
                    do_sample=False,
                    eos_token_id=[2, 3],
                    pad_token_id=0,
                )
            due = tokenizer.decode(out[0, len(ids) :], skip_special_tokens=True)
            assert one["text"] == due
            assert one["prompt"] == prompt


def test_generate_prints_a_text_as_it_comes_and_all_of_it(folder, capsys, monkeypatch):
    (due,) = as_json(folder, capsys, PROMPTS[0])
    pieces = []
    show = generate._print_piece
    monkeypatch.setattr(generate, "_print_piece", lambda piece: (pieces.append(piece), show(piece)))
    out = told(folder, capsys, "--tokens", 12, PROMPTS[0])
    assert out == due["text"] + "\n"
    assert "".join(pieces) == due["text"]
    assert sum(map(bool, pieces)) > 3


def test_generate_says_several_prompts_one_after_another_in_batches_too(folder, capsys, tmp_path):
    texts = [one["text"] for one in as_json(folder, capsys, *PROMPTS, PROMPTS[0])]
    assert texts[0] == texts[2] != texts[1]
    (tmp_path / "prompts").write_text(f"{PROMPTS[1]}\n{PROMPTS[0]}\n")
    words = ["--tokens", 12, PROMPTS[0], "--file", tmp_path / "prompts"]
    due = "\n\n".join(texts) + "\n"
    assert told(folder, capsys, *words) == due
    assert told(folder, capsys, *words, "--batch", 2) == due


def test_generate_reads_standard_input_whole_or_by_lines(folder, capsys, monkeypatch):
    def stdin(text):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))

    stdin(f"{PROMPTS[0]}\n{PROMPTS[1]}\n")
    (one,) = as_json(folder, capsys, "-")
    assert one["prompt"] == "\n".join(PROMPTS)
    stdin("\n".join(PROMPTS))
    assert [x["prompt"] for x in as_json(folder, capsys, "--file", "-")] == PROMPTS


def test_generate_draws_by_its_seed(folder, capsys):
    draw = lambda seed: as_json(
        folder, capsys, "--temperature", 2, "--top-p", 0.9, "--seed", seed, PROMPTS[0]
    )
    assert draw(1) == draw(1) != draw(2)


def test_generate_stops_at_each_of_the_ends(folder, capsys, tmp_path):
    (whole,) = as_json(folder, capsys, "--chat", "off", PROMPTS[0])
    assert whole["cut"] and len(whole["ids"]) == 12
    config = folder / "ours" / run_folder.TOKENIZER / "generation_config.json"
    before = config.read_text()
    third = whole["ids"][2]
    try:
        config.write_text(json.dumps({"eos_token_id": [1, third]}))
        (short,) = as_json(folder, capsys, "--chat", "off", PROMPTS[0])
    finally:
        config.write_text(before)
    assert (short["ids"], short["cut"]) == (whole["ids"][: whole["ids"].index(third)], False)


def test_generate_goes_no_further_than_the_model_has_positions(folder, capsys, tmp_path):
    spec = json.loads((folder / "ours/model.json").read_text())
    spec["model"]["rope"]["longest"] = 16
    other = tmp_path / "ours"
    other.mkdir()
    for name in ("checkpoints", "tokenizer"):
        (other / name).symlink_to(folder / "ours" / name)
    (other / "model.json").write_text(json.dumps(spec))
    (found,) = as_json(tmp_path, capsys, "--chat", "off", "abcdefghijkl")
    assert (len(found["ids"]), found["cut"]) == (4, True)
    words = ["generate", "--checkpoint", other, "--chat", "off", "a" * 16]
    assert "takes 16 positions: the model has 16 (rope.longest)" in refused(words, capsys)


def test_generate_with_a_front_end_and_lora_writes_the_likeliest_tokens(tmp_path, capsys):
    write_checkpoint(tmp_path / "hf", FAMILIES["Phi-4-multimodal, Microsoft's"])
    phi_files.told("import", tmp_path / "hf", tmp_path / "ours")
    model = api.load(tmp_path / "ours")
    assert (model.spec.model.front, model.spec.lora.r) == ("conv", phi_files.R)
    (found,) = as_json(tmp_path, capsys, "--chat", "off", PROMPTS[0])
    asked = model.tokenizer.encode(PROMPTS[0])
    likeliest = model.logits([*asked, *found["ids"]]).argmax(-1)[len(asked) - 1 : -1]
    assert found["ids"] == likeliest.tolist() and len(found["ids"]) > 3


def test_generate_continues_with_a_run_that_hears(tmp_path, capsys):
    two_updates(tmp_path)
    (tmp_path / "run").rename(tmp_path / "ours")
    (found,) = as_json(tmp_path, capsys, "one two")
    assert len(found["ids"]) <= 12


@pytest.mark.parametrize(
    ("words", "rule"),
    [
        ([], "prompts: give one at least, or --file FILE"),
        ([""], "prompt='': must hold text"),
        (["a", "--tokens", "0"], "tokens=0: must be positive"),
        (["a", "--batch", "0"], "batch=0: must be positive"),
        (["a", "--temperature", "-1"], "temperature=-1.0: must be 0 or more"),
        (["a", "--top-p", "2"], "top_p=2.0: must lie in (0, 1]"),
        (["a", "--chat", "yes"], "--chat"),
        (["a", "--chat", "off", "--system", "b"], "system='b': needs a chat template"),
        (["--file", "none"], "none: is no file"),
        (["--file", "GAP"], "line 2: is empty: must hold a prompt"),
        (["--file", "BYTES"], "is no UTF-8 text"),
        (["a", "--checkpoint", "none"], "checkpoint=none: holds neither model.json nor run.json"),
    ],
    ids=lambda x: " ".join(x) if isinstance(x, list) else "",
)
def test_generate_refuses_what_it_cannot_answer(folder, tmp_path, capsys, words, rule):
    (tmp_path / "gap").write_text("a\n\nb\n")
    (tmp_path / "bytes").write_bytes(b"\xff\xfe")
    files = {"GAP": tmp_path / "gap", "BYTES": tmp_path / "bytes"}
    words = [files.get(word, word) for word in words]
    assert rule in refused(["generate", "--checkpoint", folder / "ours", *words], capsys)


def test_generate_into_a_closed_pipe_ends_with_its_status(folder, monkeypatch):
    read, write = os.pipe()
    os.close(read)
    with open(write, "w") as pipe:
        monkeypatch.setattr(sys, "stdout", pipe)
        words = ["generate", "--checkpoint", str(folder / "ours"), "--tokens", "12", PROMPTS[0]]
        assert cli.main(words) == 141
    assert pathlib.Path(folder / "ours").exists()
