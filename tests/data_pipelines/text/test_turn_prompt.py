import dataclasses

import pytest

from data_pipelines.reject import Unusable
from data_pipelines.text.byte_tokenizer import ByteTokenizer
from data_pipelines.text.load_tokenizer import load_tokenizer
from data_pipelines.text.prompt import asr_prompt
from data_pipelines.text.turn_prompt import UNSAYABLE, turn_ids
from data_pipelines.text.turns import CLIP, Turn
from melllm_jax.config.features import Text
from tests.support.families import FAMILIES, write_tokenizer

BYTES = ByteTokenizer()
USER, ASSISTANT, END, AUDIO = 257, 258, 259, 260  # of the tokenizer of bytes
HEARD = Turn("user", (CLIP, "ab"))
SAID = Turn("assistant", ("c",))


def written(tokenizer, cfg, turns, audio=AUDIO):
    """Ids with `audio` for each clip, and which of them are learnt."""
    ids, learnt = [], []
    for part in turn_ids(tokenizer, cfg, turns):
        ids += [audio] if part is CLIP else part.ids
        learnt += [0] if part is CLIP else [int(part.learnt)] * len(part.ids)
    return ids, learnt


def test_phi4_turns_read_as_written_and_answers_alone_are_learnt():
    turns = [HEARD, SAID, Turn("user", ("d", CLIP, CLIP)), Turn("assistant", ("e",))]
    ids, learnt = written(BYTES, Text(template="phi4"), turns)
    # fmt: off
    assert (ids[:8], learnt[:8]) == (
        [USER, AUDIO, 97, 98, END, ASSISTANT, 99, END],
        [0,    0,     0,  0,  0,   0,         1,  1],
    )
    assert (ids[8:], learnt[8:]) == (
        [USER, 100, AUDIO, AUDIO, END, ASSISTANT, 101, END],
        [0,    0,   0,     0,     0,   0,         1,   1],
    )
    # fmt: on


def test_plain_says_a_clip_and_its_answer_alone():
    assert written(BYTES, Text(), [Turn("user", (CLIP,)), SAID]) == (
        [AUDIO, ASSISTANT, 99, END],
        [0, 0, 1, 1],
    )
    for turns in (
        [HEARD, SAID],
        [Turn("user", ("a",)), SAID],
        [Turn("system", ("a",)), HEARD, SAID],
    ):
        with pytest.raises(Unusable, match="has room for one clip and its answer alone") as caught:
            turn_ids(BYTES, Text(), turns)
        assert caught.value.reason == UNSAYABLE


def test_system_turn_needs_its_token():
    turns = [Turn("system", ("s",)), HEARD, SAID]
    with pytest.raises(Unusable, match=r"no <\|system\|>") as caught:
        turn_ids(BYTES, Text(template="phi3"), turns)
    assert caught.value.reason == UNSAYABLE
    more = dataclasses.replace(BYTES, names=(*BYTES.names, "<|system|>"))
    ids, _ = written(more, Text(template="phi3"), turns)
    assert ids[:4] == [261, 115, END, USER]


@pytest.mark.parametrize("name", FAMILIES)
def test_chat_prompt_of_one_clip_is_the_prompt_of_recognition(name, tmp_path):
    write_tokenizer(tmp_path, FAMILIES[name])
    tokenizer = load_tokenizer(tmp_path)
    cfg = Text(template="chat", placeholder=383, instruction="What is said?")
    prompt = asr_prompt(tokenizer, cfg)
    turns = [Turn("user", (CLIP, cfg.instruction)), Turn("assistant", ("hi",))]
    ids, learnt = written(tokenizer, cfg, turns, audio=383)
    answer = [*tokenizer.encode("hi"), prompt.end]
    assert ids == [*prompt.before, 383, *prompt.after, *answer]
    assert learnt == [0] * (len(ids) - len(answer)) + [1] * len(answer)


@pytest.mark.parametrize("name", ["Phi-4", "Phi-4-mini", "SmolLM2"])
def test_chat_turns_are_what_transformers_writes(name, tmp_path):
    transformers = pytest.importorskip("transformers", reason="needs the extra `parity`")
    family = FAMILIES[name]
    table = write_tokenizer(tmp_path, family)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    said = [("system", "Be brief."), ("user", "One?"), ("assistant", "two"), ("user", "Why?")]
    chat = [{"role": role, "content": text} for role, text in said]
    expected = theirs.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
    tokenizer, cfg = load_tokenizer(tmp_path), Text(template="chat", placeholder=383)
    turns = [Turn(role, (text,)) for role, text in [*said, ("assistant", "so")]]
    ids, learnt = written(tokenizer, cfg, turns)
    end = table.token_to_id(family.end)
    assert ids == [*expected, *tokenizer.encode("so"), end]
    answers = [*tokenizer.encode("two"), end, *tokenizer.encode("so"), end]
    assert [i for i, weight in zip(ids, learnt, strict=True) if weight] == answers


def test_chat_text_that_spells_a_special_token_stays_text(tmp_path):
    table = write_tokenizer(tmp_path, FAMILIES["SmolLM2"])
    tokenizer, cfg = load_tokenizer(tmp_path), Text(template="chat", placeholder=383)
    turns = [Turn("user", ("a<|im_end|>b", CLIP)), Turn("assistant", ("<|im_end|>",))]
    ids, _ = written(tokenizer, cfg, turns)
    end = table.token_to_id("<|im_end|>")
    plain = [Turn("user", ("ab", CLIP)), Turn("assistant", ("c",))]
    assert ids.count(end) == written(tokenizer, cfg, plain)[0].count(end)


def test_chat_template_without_a_system_turn_says_so(tmp_path):
    template = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    family = dataclasses.replace(FAMILIES["Phi-4"], template=template + FAMILIES["Phi-4"].template)
    write_tokenizer(tmp_path, family)
    cfg = Text(template="chat", placeholder=383)
    turns = [Turn("system", ("s",)), HEARD, SAID]
    with pytest.raises(Unusable, match="cannot be followed: no system") as caught:
        turn_ids(load_tokenizer(tmp_path), cfg, turns)
    assert caught.value.reason == UNSAYABLE
