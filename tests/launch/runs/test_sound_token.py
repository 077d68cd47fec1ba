"""Special tokens that a template needs and a tokenizer lacks: refused, or rows of their own."""

import dataclasses

import numpy as np
import pytest

from data_pipelines.text.byte_tokenizer import ByteTokenizer
from data_pipelines.text.load_tokenizer import load_tokenizer
from data_pipelines.text.prompt import asr_prompt
from launch import cli
from launch.runs import sound_token
from melllm_jax.checkpoints import run_folder
from melllm_jax.config.features import Text
from melllm_jax.errors import Mistake
from tests.support import models, phi_files
from tests.support.families import FAMILIES, write_checkpoint, write_tokenizer
from tests.support.runs import compiled_once, compiled_quickly, corpus

once = pytest.fixture(scope="module", autouse=True)(compiled_once)
quick = pytest.fixture(scope="module", autouse=True)(compiled_quickly)


def run_of(v, **text):
    return dataclasses.replace(
        models.run(dataclasses.replace(models.MODEL, v=v)), text=Text(**text)
    )


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory):
    """SmolLM2's names: 256 letters and 17 tokens, none of them a template's of ours."""
    folder = tmp_path_factory.mktemp("names")
    write_tokenizer(folder, FAMILIES["SmolLM2"])
    return load_tokenizer(str(folder))


@pytest.mark.parametrize(("v", "grown"), [(273, 320), (300, 300), (275, 320)])
def test_a_template_s_tokens_come_after_the_tokenizer_s_own(smollm2, v, grown):
    run, tokenizer = sound_token.add_specials(
        run_of(v, template="phi4", missing="added", instruction="Hi"), smollm2
    )
    assert run.model.v == grown
    names = ("<|end|>", "<|assistant|>", "<|user|>")  # greedy decoding says the first of equals
    assert [tokenizer.specials[name] for name in names] == [273, 274, 275]
    words = tokenizer.encode("Hi")
    assert words == smollm2.encode("Hi")
    run = sound_token.give_placeholder(run, tokenizer)
    prompt = asr_prompt(tokenizer, run.text)
    assert (prompt.before, prompt.after) == ((275,), (*words, 273, 274))
    assert (prompt.end, prompt.audio) == (273, 276)
    assert sound_token.grown_vocabulary(run, tokenizer) == (320 if v < 276 else 0)


def test_tokens_that_are_lacking_are_refused_where_nobody_asked_for_them(smollm2):
    run, tokenizer = sound_token.add_specials(run_of(273, template="phi4"), smollm2)
    assert (run.model.v, tokenizer) == (273, smollm2)
    with pytest.raises(Mistake, match=r"no special token <\|assistant\|>.*--text.template chat"):
        asr_prompt(tokenizer, run.text)


def test_a_chat_template_and_a_whole_tokenizer_need_no_more(smollm2):
    chat = run_of(273, template="chat", missing="added")
    assert sound_token.add_specials(chat, smollm2) == (chat, smollm2)
    whole = run_of(300, template="phi4", missing="added")
    assert sound_token.add_specials(whole, ByteTokenizer()) == (whole, ByteTokenizer())


@pytest.mark.slow
def test_rows_of_new_tokens_are_said_kept_and_exported(tmp_path, capsys):
    theirs, ours, run, back = (tmp_path / name for name in "abcd")
    write_checkpoint(theirs, FAMILIES["SmolLM2"])
    phi_files.told("import", theirs, ours)
    data = corpus(tmp_path / "data", count=8)
    small = {"data.t": 64, "data.b": 8, "data.bins": 1, "data.threads": 1, "optim.steps": 1}
    small |= {"lora.r": 4, "lora.dropout": 0.0, "model.c": 8, "text.template": "plain"}
    small |= {"text.missing": "added", "checkpoints.every": 1, "model.remat": "none"}
    flags = [word for name, value in small.items() for word in (f"--{name}", str(value))]
    words = ["--init", ours, "--data", data, "--workdir", run, "--compiled", ""]
    assert cli.main(["train", "mel_llm_asr", *flags, *map(str, words)]) == 0
    said = f"vocabulary: 47 rows more than the 273 of {ours}, each the mean of those"
    assert said in capsys.readouterr().err
    assert run_folder.read_run(str(run)).model.v == 320
    phi_files.told("export", run, back)
    names = load_tokenizer(str(back)).specials
    assert (names["<|end|>"], names["<|assistant|>"]) == (273, 274)
    rows, given = (
        phi_files.load(folder / "model.safetensors")["model.embed_tokens.weight"]
        for folder in (back, theirs)
    )
    assert rows.shape[0] == 320
    new = rows[273:].astype(np.float32)
    np.testing.assert_allclose(new, [given.mean(0)] * 47, rtol=0, atol=2e-3)
