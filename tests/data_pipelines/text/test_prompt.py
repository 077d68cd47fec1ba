import dataclasses

import pytest
import tokenizers
from tokenizers import models, normalizers, pre_tokenizers

from data_pipelines.text.byte_tokenizer import ByteTokenizer
from data_pipelines.text.json_tokenizer import JsonTokenizer
from data_pipelines.text.load_tokenizer import load_tokenizer
from data_pipelines.text.prompt import Prompt, asr_prompt
from melllm_jax.config.features import Text
from melllm_jax.errors import Mistake

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
