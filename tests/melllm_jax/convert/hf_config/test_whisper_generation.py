"""Which tokens stand around a transcript, as generation_config.json or config.json says it."""

import pytest

from melllm_jax.convert.hf_config.whisper_config import whisper_spec
from melllm_jax.errors import Mistake
from tests.support.whisper_files import (
    DE,
    EN,
    END,
    GENERATION,
    SILENT,
    START,
    TARGETS,
    TRANSCRIBE,
    TREE,
)

AUTO = ((START, TRANSCRIBE, SILENT), (EN, DE))


def rules(generation, **changes):
    return whisper_spec(TREE | changes, generation, "hf/config.json").rules


def told(*names, **changes):
    """GENERATION without some fields, and with others."""
    return {k: x for k, x in GENERATION.items() if k not in names} | changes


@pytest.mark.parametrize(
    ("generation", "expected"),
    [
        (GENERATION, AUTO),  # null is the language that is detected
        (told("forced_decoder_ids"), ((START, SILENT), (EN, DE))),
        (told("forced_decoder_ids", "lang_to_id"), ((START, SILENT), ())),
        (told("lang_to_id"), ((START, TRANSCRIBE, SILENT), ())),
        (told(forced_decoder_ids=[[1, EN], [2, 9]]), ((START, EN, 9, SILENT), ())),
        (told(forced_decoder_ids=[[1, EN], [2, SILENT]]), ((START, EN, SILENT), ())),
        (told("no_timestamps_token_id"), ((START, TRANSCRIBE), (EN, DE))),
        (told(language="<|de|>"), ((START, DE, TRANSCRIBE, SILENT), ())),
        (told("task_to_id", language="de"), ((START, DE, SILENT), ())),
        (told(task="transcribe"), AUTO),
    ],
)
def test_prompts_are_those_of_transformers(generation, expected):
    found = rules(generation)
    assert (found.prompt, found.languages) == expected
    assert found.ends == (END,)
    assert found.longest == TARGETS


def test_tokens_that_never_come_and_lengths_are_the_files():
    found = rules(told(max_length=3, eos_token_id=[END, 1]))
    assert found.suppressed[:3] == (5, 7, START)
    assert found.suppressed_first == (ord(" "), END)
    assert found.ends == (END, 1)
    assert found.longest == 3 + 4  # the prompt does not count
    none = rules(told("suppress_tokens", "begin_suppress_tokens"), suppress_tokens=[1])
    assert (none.suppressed, none.suppressed_first) == ((), ())


def test_without_the_file_config_json_says_them():
    given = {"suppress_tokens": [3], "begin_suppress_tokens": [4], "forced_decoder_ids": [[1, EN]]}
    found = rules(None, **given)
    assert (found.prompt, found.languages) == ((START, EN), ())
    assert (found.suppressed, found.suppressed_first, found.ends) == ((3,), (4,), (END,))
    assert found.longest == TARGETS


@pytest.mark.parametrize(
    ("v", "prompt", "languages", "first"),
    [
        (51864, (50257, 50362), 0, (220, 50256)),
        (51865, (50258, 50359, 50363), 99, (220, 50257)),
        (51866, (50258, 50360, 50364), 100, (220, 50257)),
    ],
)
def test_what_neither_says_is_as_in_the_published_vocabularies(v, prompt, languages, first):
    """The ids that transformers' own tokenizers give to the special tokens."""
    found = rules(None, vocab_size=v, decoder_start_token_id=prompt[0])
    assert found.prompt == prompt
    assert len(found.languages) == languages
    assert all(prompt[0] < i < prompt[-1] for i in found.languages)
    assert found.suppressed_first == first


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"suppress_tokens": [-1]}, "suppress_tokens=[-1]: must be ids"),
        ({"forced_decoder_ids": [[2, 5]]}, "of the places from 1 on"),
        ({"language": "fr"}, "language=<|fr|>: must be one that the file has an id for: <|de|>"),
        ({"task": "sing"}, "task=sing: must be one that the file has an id for: transcribe"),
        ({"eos_token_id": None}, "eos_token_id=null: must be an id or several"),
        ({"lang_to_id": {"<|en|>": "x"}}, "must be ids by name"),
    ],
)
def test_what_cannot_be_followed_is_refused_by_the_files_name(changes, rule):
    with pytest.raises(Mistake) as refusal:
        rules(told(**changes))
    assert str(refusal.value).startswith("hf/generation_config.json: ")
    assert rule in str(refusal.value)


def test_ids_beyond_the_vocabulary_are_refused():
    with pytest.raises(Mistake, match=r"rules.suppressed=\[264\]: ids must lie in 0…263"):
        rules(told(suppress_tokens=[264]))
