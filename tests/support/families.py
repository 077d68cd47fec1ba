"""The model families of the card, each with its published special tokens and chat template.

Vocabularies are small: letters that stand for bytes, then the added tokens in the published order
with the published flags. Sources: tokenizer_config.json of microsoft/Phi-3-mini-4k-instruct,
Phi-3-medium-4k-instruct, Phi-3.5-mini-instruct, phi-4, Phi-4-mini-instruct, Phi-4-mini-reasoning,
Phi-4-multimodal-instruct, HuggingFaceTB/SmolLM2-135M-Instruct, meta-llama/Llama-3.1-8B-Instruct,
Qwen/Qwen2.5-0.5B-Instruct and Qwen/Qwen3-0.6B, the last three's templates without their tools.
"""

import dataclasses
import json

import numpy as np
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers

from tests.support import llama_files, phi_files
from tests.support.paths import ROOT

V = 384  # rows of each model: more than any table has names, but for SmolLM2's
PLACEHOLDERS = [f"<|placeholder{i}|>" for i in range(1, 7)]
PHI_3 = [
    *("<|endoftext|>", "<|assistant|>", *PLACEHOLDERS[:4], "<|system|>", "<|end|>"),
    *(*PLACEHOLDERS[4:], "<|user|>"),
]
PHI_4 = [
    *("<|dummy_0|>", "<|endoftext|>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>"),
    *("<|dummy_1|>", "<|dummy_2|>", "<|dummy_3|>", "<|im_start|>", "<|im_end|>", "<|im_sep|>"),
    *("<|dummy_4|>", "<|endofprompt|>", "<|dummy_85|>"),
]
PLAIN_TOOLS = ["<|tool|>", "<|/tool|>", "<|tool_call|>", "<|/tool_call|>", "<|tool_response|>"]
PHI_4_MINI = [
    *("<|endoftext|>", "<|endofprompt|>", "<|assistant|>", "<|end|>", "<|user|>", "<|system|>"),
    *(*PLAIN_TOOLS, "<|tag|>"),
]
PHI_4_MM = ["<|endoftext|>", "<|endoftext10|>", "<|endoftext11|>", *PHI_4_MINI[1:]]
SMOLLM2 = [
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<repo_name>", "<reponame>", "<file_sep>"),
    *("<filename>", "<gh_stars>", "<issue_start>", "<issue_comment>", "<issue_closed>"),
    *("<jupyter_start>", "<jupyter_text>", "<jupyter_code>", "<jupyter_output>"),
    *("<jupyter_script>", "<empty_output>"),
]
LLAMA_3 = [
    *("<|begin_of_text|>", "<|end_of_text|>", "<|reserved_special_token_0|>"),
    *("<|finetune_right_pad_id|>", "<|start_header_id|>", "<|end_header_id|>"),
    *("<|eom_id|>", "<|eot_id|>", "<|python_tag|>"),
]
QWEN_2 = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<tool_call>"]
QWEN_3 = [*QWEN_2, "<tool_response>", "</tool_response>", "<think>", "</think>"]
PLAIN = {*PLAIN_TOOLS, "<tool_call>", *QWEN_3[-4:]}  # added, and not special
KEEP_BLANKS = (SMOLLM2, LLAMA_3, QWEN_2, QWEN_3)  # of their tokens, none takes those after it
TAKES_NO_BLANKS = {"<|endoftext|>", "<|endoftext10|>", "<|endoftext11|>", "<|endofprompt|>"}

MINI_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'system' %}"
    "{{'<|system|>\n' + message['content'] + '<|end|>\n'}}{% elif message['role'] == 'user' %}"
    "{{'<|user|>\n' + message['content'] + '<|end|>\n'}}{% elif message['role'] == 'assistant' %}"
    "{{'<|assistant|>\n' + message['content'] + '<|end|>\n'}}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)
MEDIUM_TEMPLATE = (
    "{% for message in messages %}{% if (message['role'] == 'user') %}"
    "{{'<|user|>' + '\n' + message['content'] + '<|end|>' + '\n' + '<|assistant|>' + '\n'}}"
    "{% elif (message['role'] == 'assistant') %}{{message['content'] + '<|end|>' + '\n'}}"
    "{% endif %}{% endfor %}"
)
PHI_4_TEMPLATE = (
    "{% for message in messages %}{% if (message['role'] == 'system') %}"
    "{{'<|im_start|>system<|im_sep|>' + message['content'] + '<|im_end|>'}}"
    "{% elif (message['role'] == 'user') %}"
    "{{'<|im_start|>user<|im_sep|>' + message['content'] + '<|im_end|>'}}"
    "{% elif (message['role'] == 'assistant') %}"
    "{{'<|im_start|>assistant<|im_sep|>' + message['content'] + '<|im_end|>'}}"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant<|im_sep|>' }}{% endif %}"
)
PHI_4_MINI_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'system' and 'tools' in message"
    " and message['tools'] is not none %}{{ '<|' + message['role'] + '|>' + message['content']"
    " + '<|tool|>' + message['tools'] + '<|/tool|>' + '<|end|>' }}{% else %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% else %}{{ eos_token }}{% endif %}"
)
REASONING_TEMPLATE = (
    "{{ '<|system|>Your name is Phi, an AI math expert developed by Microsoft.' }}"
    "{% for message in messages %}{% if message['role'] == 'system' %} {{ message['content'] }}"
    "{% if 'tools' in message and message['tools'] is not none %}"
    "{{ '<|tool|>' + message['tools'] + '<|/tool|>' }}{% endif %}{% endif %}{% endfor %}"
    "{{ '<|end|>' }}{% for message in messages %}{% if message['role'] != 'system' %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% else %}{{ eos_token }}{% endif %}"
)
SMOLLM2_TEMPLATE = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
    "<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content']"
    " + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

LLAMA_3_TEMPLATE, QWEN_2_TEMPLATE, QWEN_3_TEMPLATE = (
    (ROOT / f"tests/support/chat_templates/{name}.jinja").read_text()
    for name in ("llama_3_1", "qwen2_5", "qwen3")
)


@dataclasses.dataclass(frozen=True)
class Family:
    """What is published of a family's tokenizer."""

    names: list[str]  # of its special tokens
    template: str
    eos: str
    end: str  # what ends a reply
    sound: str | None = None  # the token that stands for sound, if it has one
    kind: str = "text"  # of its checkpoint, in `phi_files` or `llama_files`
    fills: bool = False  # whether every row of the embedding has a name


FAMILIES = {
    "Phi-3-mini": Family(PHI_3, MINI_TEMPLATE, "<|endoftext|>", "<|end|>", "<|placeholder1|>"),
    "Phi-3-medium": Family(PHI_3, MEDIUM_TEMPLATE, "<|endoftext|>", "<|end|>", "<|placeholder1|>"),
    "Phi-3.5-mini": Family(
        PHI_3,
        MINI_TEMPLATE.replace("'system' %}", "'system' and message['content'] %}"),
        *("<|endoftext|>", "<|end|>", "<|placeholder1|>"),
    ),
    "Phi-4": Family(PHI_4, PHI_4_TEMPLATE, "<|im_end|>", "<|im_end|>", "<|dummy_0|>"),
    "Phi-4-mini": Family(PHI_4_MINI, PHI_4_MINI_TEMPLATE, "<|endoftext|>", "<|end|>"),
    "Phi-4-mini-reasoning": Family(PHI_4_MINI, REASONING_TEMPLATE, "<|endoftext|>", "<|end|>"),
    "Phi-4-multimodal, Microsoft's": Family(
        PHI_4_MM, PHI_4_MINI_TEMPLATE, "<|endoftext|>", "<|end|>", "<|endoftext11|>", "microsoft"
    ),
    "Phi-4-multimodal, transformers'": Family(
        PHI_4_MM, PHI_4_MINI_TEMPLATE, "<|endoftext|>", "<|end|>", "<|endoftext11|>", "transformers"
    ),
    "SmolLM2": Family(
        SMOLLM2, SMOLLM2_TEMPLATE, "<|im_end|>", "<|im_end|>", kind="llama", fills=True
    ),
    "Llama-3.1": Family(LLAMA_3, LLAMA_3_TEMPLATE, "<|eot_id|>", "<|eot_id|>", kind="llama3"),
    "Qwen2.5": Family(QWEN_2, QWEN_2_TEMPLATE, "<|im_end|>", "<|im_end|>", kind="qwen2"),
    "Qwen3": Family(QWEN_3, QWEN_3_TEMPLATE, "<|im_end|>", "<|im_end|>", kind="qwen3"),
}


def write_tokenizer(folder, family):
    """tokenizer.json and tokenizer_config.json of a family, as published but for the words."""
    folder.mkdir(parents=True, exist_ok=True)
    phi_3 = family.names == PHI_3
    table = _sentence_pieces() if phi_3 else _byte_letters()
    for name in family.names:
        both = family.names == PHI_4  # takes blanks on both sides
        token = tokenizers.AddedToken(
            name,
            lstrip=both,
            rstrip=both or name not in TAKES_NO_BLANKS and family.names not in KEEP_BLANKS,
            normalized=False,
            special=name not in PLAIN,
        )
        (table.add_tokens if name in PLAIN else table.add_special_tokens)([token])
    (folder / "tokenizer.json").write_text(table.to_str())
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "chat_template": family.template,
        "eos_token": family.eos,
        "bos_token": "<s>" if phi_3 else family.names[0],
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return table


def write_checkpoint(folder, family):
    """A model of the family of one shape for all: random, tied, two layers."""
    rows = len(phi_files_names(folder, family)) if family.fills else V
    kind = "tied" if family.kind == "text" else family.kind
    llama = kind in llama_files.TREES
    named = (llama_files if llama else phi_files).tensors(kind)
    draw = np.random.default_rng(0)
    embedding = draw.standard_normal((rows, phi_files.D), dtype=np.float32) * np.float32(0.2)
    named["model.embed_tokens.weight"] = embedding
    tree = llama_files.TREES[kind] if llama else phi_files.TREES[kind]
    tree = tree | {"vocab_size": rows, "max_position_embeddings": 4096}
    if not llama:
        tree |= {"original_max_position_embeddings": 4096, "rope_scaling": None}
    if family.kind == "transformers":
        sound = PHI_4_MM.index("<|endoftext11|>") + 256
        tree |= {"audio_config": tree["audio_config"] | {"audio_token_id": sound}}
    phi_files.write(folder, tree, named)
    write_tokenizer(folder, family)
    return folder


def phi_files_names(folder, family):
    """Every name in a family's table, by id."""
    return write_tokenizer(folder, family).get_vocab(with_added_tokens=True)


def _byte_letters():
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    table = tokenizers.Tokenizer(models.BPE({piece: i for i, piece in enumerate(alphabet)}, []))
    table.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    table.decoder = decoders.ByteLevel()
    return table


def _sentence_pieces():
    """Phi-3's: ▁ before each stretch of text, bytes for what is no piece."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), "▁"]
    model = models.BPE(
        {piece: i for i, piece in enumerate(pieces)}, [], byte_fallback=True, unk_token="<unk>"
    )
    table = tokenizers.Tokenizer(model)
    table.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    table.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    special = [tokenizers.AddedToken(name, normalized=False) for name in ("<unk>", "<s>")]
    table.add_special_tokens(special)
    table.add_tokens([tokenizers.AddedToken("</s>", rstrip=True, normalized=False)])
    return table
