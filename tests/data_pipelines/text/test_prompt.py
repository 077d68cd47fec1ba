import dataclasses
import json
import os
import pathlib

import pytest
import tokenizers
from tokenizers import models, normalizers, pre_tokenizers

from data_pipelines.text.byte_tokenizer import ByteTokenizer
from data_pipelines.text.json_tokenizer import JsonTokenizer
from data_pipelines.text.load_tokenizer import load_tokenizer
from data_pipelines.text.prompt import Prompt, asr_prompt, end_id
from melllm_jax.config.features import Text
from melllm_jax.errors import Mistake
from tests.support.families import FAMILIES, write_tokenizer

INSTRUCTION = "Transcribe the audio clip into text."


def phi3_table():
    """Phi-3's conventions at a small size.

    ▁ before each stretch of text, bytes for the rest, added tokens that take blanks after them.
    """
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), "▁"]
    pieces += sorted(set(INSTRUCTION.replace(" ", "")))
    table = tokenizers.Tokenizer(
        models.BPE({piece: i for i, piece in enumerate(pieces)}, [], byte_fallback=True)
    )
    table.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    for name in ("<|endoftext|>", "<|assistant|>", "<|placeholder1|>", "<|end|>", "<|user|>"):
        taking = name != "<|endoftext|>"
        table.add_special_tokens([tokenizers.AddedToken(name, rstrip=taking, normalized=False)])
    return table


def phi4_table():
    """Phi-4's conventions at a small size: byte-level BPE without merges, nothing put before."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    table = tokenizers.Tokenizer(models.BPE({piece: i for i, piece in enumerate(alphabet)}, []))
    table.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    table.add_special_tokens(
        ["<|endoftext|>", "<|endoftext11|>", "<|assistant|>", "<|end|>", "<|user|>"]
    )
    return table


def test_prompt_plain_is_one_start_token_after_the_clip():
    prompt = asr_prompt(load_tokenizer("bytes"), Text(template="plain"))
    assert prompt == Prompt(before=(), after=(258,), end=259, audio=260)


def test_prompt_own_tokens_in_a_chat_template_stand_around_clip_and_instruction():
    prompt = asr_prompt(load_tokenizer("bytes"), Text(template="phi4", instruction="Hi"))
    assert prompt == Prompt(before=(257,), after=(72, 105, 259, 258), end=259, audio=260)


def test_prompt_phi3_equals_its_template_read_by_its_tokenizer():
    table = phi3_table()
    prompt = asr_prompt(JsonTokenizer(table.to_str()), Text(template="phi3"))
    written = f"<|user|>\n<|placeholder1|>{INSTRUCTION}<|end|>\n<|assistant|>\n"
    expected = table.encode(written, add_special_tokens=False).ids
    assert [*prompt.before, prompt.audio, *prompt.after] == expected
    assert prompt.end == table.token_to_id("<|end|>")


def test_prompt_phi4_equals_its_template_read_by_its_tokenizer():
    table = phi4_table()
    prompt = asr_prompt(JsonTokenizer(table.to_str()), Text(template="phi4"))
    written = f"<|user|><|endoftext11|>{INSTRUCTION}<|end|><|assistant|>"
    expected = table.encode(written, add_special_tokens=False).ids
    assert [*prompt.before, prompt.audio, *prompt.after] == expected
    assert prompt.end == table.token_to_id("<|end|>")


def test_prompt_without_any_audio_placeholder_is_a_mistake():
    tokenizer = dataclasses.replace(ByteTokenizer(), names=("<|user|>", "<|assistant|>", "<|end|>"))
    with pytest.raises(Mistake, match=r"no special token <\|audio\|>"):
        asr_prompt(tokenizer, Text(template="plain"))


def test_prompt_chat_template_without_a_user_token_is_a_mistake():
    tokenizer = dataclasses.replace(
        ByteTokenizer(), names=("<|audio|>", "<|assistant|>", "<|end|>")
    )
    with pytest.raises(Mistake, match=r"no special token <\|user\|>"):
        asr_prompt(tokenizer, Text(template="phi3"))


def test_prompt_instruction_outside_the_table_is_a_mistake_naming_the_field():
    table = tokenizers.Tokenizer(models.BPE({"a": 0, "<unk>": 1}, [], unk_token="<unk>"))
    table.add_special_tokens(["<|user|>", "<|audio|>", "<|assistant|>", "<|end|>"])
    with pytest.raises(Mistake, match=r"text.instruction='ab': unknown characters: 'b'"):
        asr_prompt(JsonTokenizer(table.to_str()), Text(template="phi4", instruction="ab"))


@pytest.mark.parametrize("name", FAMILIES)
def test_prompt_of_a_family_is_what_its_own_template_writes(name, tmp_path):
    family = FAMILIES[name]
    table = write_tokenizer(tmp_path, family)
    tokenizer = load_tokenizer(tmp_path)
    cfg = Text(template="chat", placeholder=-1 if family.sound else tokenizer.size)
    prompt = asr_prompt(tokenizer, cfg)
    assert prompt.end == end_id(tokenizer, cfg) == table.token_to_id(family.end)
    assert prompt.audio == (table.token_to_id(family.sound) if family.sound else tokenizer.size)
    transformers = pytest.importorskip("transformers", reason="needs the extra `parity`")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    chat = [{"role": "user", "content": f"{family.sound or ''}{INSTRUCTION}"}]
    ids = theirs.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
    assert [*prompt.before, *[prompt.audio] * bool(family.sound), *prompt.after] == ids


@pytest.mark.parametrize(
    ("template", "says"),
    [
        ("{{ raise_exception('no users here') }}", "cannot be followed: no users here$"),
        ("{% if %}", "cannot be followed: "),
        ("{{ messages[0].nothing.at_all }}", "cannot be followed: "),
        ("{{ ''.__class__.__mro__ }}", "cannot be followed: "),
        ("hello", "cannot be followed: writes the clip not just once$"),
        ("{{ messages[0].content }}", "cannot be followed: writes the reply not just once$"),
        ("{% for m in messages %}{{ m.content }}{% endfor %}", "no special token ends a reply"),
    ],
)
def test_prompt_of_a_template_that_cannot_be_followed_is_a_mistake(template, says, tmp_path):
    write_tokenizer(tmp_path, dataclasses.replace(FAMILIES["Phi-4"], template=template, eos="no"))
    with pytest.raises(Mistake, match=says):
        asr_prompt(load_tokenizer(tmp_path), Text(template="chat"))


@pytest.mark.parametrize(
    ("template", "bos", "lacks"),
    [
        ("<|header|>{{ messages[0].content }}", "<|endoftext|>", "<|header|>"),
        ("{{ bos_token }}{{ messages[0].content }}", "<s>", "<s>"),
    ],
)
def test_prompt_of_a_template_whose_token_the_tokenizer_lacks_is_a_mistake(
    template, bos, lacks, tmp_path
):
    """transformers would spell it by letters, which no model has seen."""
    write_tokenizer(tmp_path, FAMILIES["Phi-4-mini"])
    file = tmp_path / "tokenizer_config.json"
    reply = "{% if messages[1] %}{{ messages[1].content }}<|end|>{% endif %}"
    more = {"chat_template": template + reply, "bos_token": bos}
    file.write_text(json.dumps(json.loads(file.read_text()) | more))
    with pytest.raises(Mistake) as caught:
        asr_prompt(load_tokenizer(tmp_path), Text(template="chat", placeholder=300))
    says = f"{file}: its chat template writes {lacks}: no token of the tokenizer"
    assert str(caught.value) == says


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}<|user|>{{ m.content[0].text }}<|end|>{% endfor %}",  # parts alone
        "{% for m in messages %}<|user|>{% generation %}{{ m.content }}<|end|>"
        "{% endgeneration %}{% endfor %}",
    ],
)
def test_prompt_templates_of_parts_and_with_marked_replies_are_followed(template, tmp_path):
    """A template of a file of its own counts before the tokenizer's config."""
    table = write_tokenizer(tmp_path, FAMILIES["Phi-4-mini"])
    (tmp_path / "chat_template.jinja").write_text(template, encoding="utf-8-sig")
    cfg = Text(template="chat", instruction="A", placeholder=300)
    prompt = asr_prompt(load_tokenizer(tmp_path), cfg)
    user, end, letter = map(table.token_to_id, ("<|user|>", "<|end|>", "A"))
    assert prompt == Prompt((user,), (letter, end), end, 300)


def test_prompt_without_a_chat_template_says_what_else_there_is():
    with pytest.raises(Mistake, match=r"no chat template .*: choose plain, phi3 or phi4"):
        asr_prompt(load_tokenizer("bytes"), Text(template="chat"))


def test_prompt_of_other_tokens_than_the_template_asks_for_names_the_chat_template(tmp_path):
    write_tokenizer(tmp_path, FAMILIES["Phi-4"])
    with pytest.raises(Mistake, match=r"no special token .*; --text.template chat"):
        asr_prompt(load_tokenizer(tmp_path), Text(template="phi4"))


def test_prompt_may_say_which_id_stands_for_sound():
    assert asr_prompt(load_tokenizer("bytes"), Text(placeholder=7)).audio == 7


def test_prompt_of_the_real_smollm2_is_what_transformers_writes():
    """The instruction stands after the clip, so its words are parted from the line before it."""
    folder = pathlib.Path(os.environ.get("MELLLM_MODELS", ""), "smollm2-135m")
    if not (folder / "tokenizer.json").exists():
        pytest.skip("MELLLM_MODELS names no folder with smollm2-135m")
    transformers = pytest.importorskip("transformers", reason="needs the extra `parity`")
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer = load_tokenizer(folder)
    prompt = asr_prompt(tokenizer, Text(template="chat", placeholder=tokenizer.size))
    chat = [{"role": "user", "content": f"<file_sep>{INSTRUCTION}"}]
    ids = theirs.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
    assert [*prompt.before, tokenizer.special("<file_sep>"), *prompt.after] == ids
    assert prompt.end == tokenizer.special("<|im_end|>")
