"""A prompt of text has the ids that transformers gives it, and an answer ends at all its ends."""

import json

import pytest
import tokenizers

from data_pipelines.text.byte_tokenizer import ByteTokenizer
from data_pipelines.text.load_tokenizer import load_tokenizer
from data_pipelines.text.text_prompt import end_ids, text_prompt
from melllm_jax.config.features import Text
from melllm_jax.errors import Mistake
from tests.support.families import FAMILIES, write_tokenizer

QUESTION = "Who wrote <|end|> é?"


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("system", ["", "Be brief."])
def test_prompt_is_what_transformers_makes_of_it(name, system, tmp_path):
    write_tokenizer(tmp_path, FAMILIES[name])
    tokenizer = load_tokenizer(tmp_path)
    transformers = pytest.importorskip("transformers", reason="needs the extra `parity`")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    chat = [{"role": "system", "content": system}] * bool(system)
    chat += [{"role": "user", "content": QUESTION}]
    due = theirs.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
    assert text_prompt(tokenizer, QUESTION, system=system) == due
    assert text_prompt(tokenizer, QUESTION, chat="off") == theirs(QUESTION)["input_ids"]


def test_prompt_without_a_template_stands_behind_what_opens_a_text(tmp_path):
    table = write_tokenizer(tmp_path, FAMILIES["Phi-4-mini"])
    start = table.token_to_id("<|tag|>")
    table.post_processor = tokenizers.processors.TemplateProcessing(
        single="<|tag|> $A", special_tokens=[("<|tag|>", start)]
    )
    (tmp_path / "tokenizer.json").write_text(table.to_str())
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.opening == (start,)
    assert tokenizer.encode("a") == table.encode("a", add_special_tokens=False).ids
    opened = text_prompt(tokenizer, "a", chat="off", opening=tokenizer.opening)
    assert opened == table.encode("a").ids
    assert ByteTokenizer().opening == ()


@pytest.mark.parametrize(
    ("files", "due"),
    [
        ({}, ["<|end|>", "<|endoftext|>"]),  # of the template's reply, and eos_token
        ({"generation_config.json": {"eos_token_id": [7, 9]}}, [7, 9, "<|end|>", "<|endoftext|>"]),
        ({"config.json": {"eos_token_id": 8}}, [8, "<|end|>", "<|endoftext|>"]),
        (
            {"generation_config.json": {"eos_token_id": 7}, "config.json": {"eos_token_id": 8}},
            [7, "<|end|>", "<|endoftext|>"],
        ),
    ],
    ids=["none", "generation", "config", "both"],
)
def test_ends_are_those_of_the_files_the_template_and_the_tokenizer(files, due, tmp_path):
    table = write_tokenizer(tmp_path, FAMILIES["Phi-4-mini"])
    for name, tree in files.items():
        (tmp_path / name).write_text(json.dumps(tree))
    cfg = Text(tokenizer=str(tmp_path), template="chat")
    ids = {table.token_to_id(x) if isinstance(x, str) else x for x in due}
    assert end_ids(load_tokenizer(tmp_path), cfg) == tuple(sorted(ids))


def test_ends_of_a_run_of_bytes_are_that_of_a_transcript():
    assert end_ids(ByteTokenizer(), Text()) == (ByteTokenizer().special("<|end|>"),)


@pytest.mark.parametrize(
    ("text", "how", "rule"),
    [
        ("", {}, "prompt='': must hold text"),
        ("a", {"chat": "on"}, "chat=on: no chat template lies beside the tokenizer"),
        ("a", {"system": "b"}, "system='b': needs a chat template, which is not used here"),
        ("\udcff", {}, r"prompt='\\udcff': unknown characters"),
    ],
)
def test_prompt_that_cannot_be_is_a_mistake(text, how, rule):
    with pytest.raises(Mistake, match=rule):
        text_prompt(ByteTokenizer(), text, **how)


def test_prompt_whose_template_refuses_a_system_message_is_a_mistake(tmp_path):
    write_tokenizer(tmp_path, FAMILIES["Phi-4-mini"])
    refusing = "{% if messages[0].role == 'system' %}{{ raise_exception('none here') }}{% endif %}x"
    (tmp_path / "chat_template.jinja").write_text(refusing)
    tokenizer = load_tokenizer(tmp_path)
    with pytest.raises(Mistake, match="cannot be followed: none here$"):
        text_prompt(tokenizer, "a", system="b")
    with pytest.raises(Mistake, match="cannot be followed: leaves the question out$"):
        text_prompt(tokenizer, "a")
