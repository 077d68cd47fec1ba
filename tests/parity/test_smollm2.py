"""The real SmolLM2 writes and scores what it does in transformers: MELLLM_MODELS names it."""

import json
import os
import pathlib

import pytest

from tests.support import phi_files
from tests.support.references import torch, transformers
from tests.support.runs import done

FOLDER = pathlib.Path(os.environ.get("MELLLM_MODELS", ""), "smollm2-135m-phi3")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (FOLDER / "model.safetensors").exists(),
        reason="MELLLM_MODELS names no folder with smollm2-135m-phi3",
    ),
]
PROMPTS = [
    "What is the capital of France?",
    "Write a haiku about the sea.",
    "def fibonacci(n):",
    "The three laws of thermodynamics are",
    "Translate to French: Good morning, my friend.",
    "Once upon a time, in a village by the river,",
    "List five animals that can fly.",
    "Ein kurzer Satz über Käse:",
    "Why is the sky blue? Explain it to a child.",
    "2 + 2 = 4, 3 + 3 = 6, 4 + 4 =",
]
PARAGRAPH = (
    "The harbour town wakes before the sun does. Fishermen check their nets by lamplight, and the "
    "smell of fresh bread drifts from the bakery at the corner of the market square. By eight "
    "o'clock the first ferry has left for the islands, carrying schoolteachers, tourists with "
    "cameras, and a few crates of vegetables. Nobody complains: the café on board serves hot "
    "chocolate, and from the upper deck you can sometimes see seals resting on the rocks."
)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """The import, transformers' model and its tokenizer."""
    folder = tmp_path_factory.mktemp("smollm2") / "ours"
    phi_files.told("import", FOLDER, folder)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32)
    return folder, theirs, transformers.AutoTokenizer.from_pretrained(FOLDER)


def as_users_do(*words):
    """What a command prints in a process of its own: on one device, compiled with optimisations."""
    status, out, _ = done([str(word) for word in words], XLA_FLAGS=None)
    assert status == 0
    return out


@pytest.mark.parametrize("chat", ["on", "off"])
def test_smollm2_continues_ten_prompts_as_transformers_does(place, chat):
    folder, theirs, tokenizer = place
    words = ["--checkpoint", folder, "--chat", chat, "--tokens", 64, "--batch", 10, "--json"]
    found = [json.loads(line) for line in as_users_do("generate", *words, *PROMPTS).splitlines()]
    for prompt, one in zip(PROMPTS, found, strict=True):
        ids = tokenizer(prompt)["input_ids"]
        if chat == "on":
            turn = [{"role": "user", "content": prompt}]
            ids = tokenizer.apply_chat_template(turn, add_generation_prompt=True, return_dict=False)
        end = [] if one["cut"] else [theirs.generation_config.eos_token_id]
        # What is the likeliest after each beginning of it is what greedy decoding writes.
        written = [*one["ids"], *end]
        with torch.no_grad():
            told = theirs(torch.tensor([[*ids, *written]])).logits[0, len(ids) - 1 : -1]
        assert written == told.argmax(-1).tolist(), prompt
        assert len(one["ids"]) == 64 or not one["cut"]
        assert one["text"] == tokenizer.decode(one["ids"], skip_special_tokens=True)


@pytest.mark.parametrize("window", [2048, 64])
def test_smollm2_has_the_perplexity_of_transformers(place, tmp_path, window):
    folder, theirs, tokenizer = place
    (tmp_path / "a.txt").write_text(PARAGRAPH)
    words = ["--checkpoint", folder, "--text", tmp_path / "a.txt", "--window", window, "--json"]
    found = json.loads(as_users_do("evaluate", *words))
    ids = tokenizer(PARAGRAPH, return_tensors="pt")["input_ids"]
    nats, scored, count = 0.0, 1, ids.shape[1]
    for start in range(0, count, window // 2):
        part = ids[:, start : start + window]
        with torch.no_grad():
            told = theirs(part).logits.log_softmax(-1)[0]
        stop = start + part.shape[1]
        nats -= sum(told[i - start - 1, ids[0, i]].item() for i in range(scored, stop))
        scored = stop
        if stop == count:
            break
    due = float(torch.exp(torch.tensor(nats / (count - 1))))
    assert found["tokens"] == count - 1
    assert abs(found["perplexity"] - due) < 1e-3
