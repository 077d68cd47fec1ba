"""A conversation in the ids of a tokenizer, by the template of a run.

Recognition is its simplest case: the one turn of a clip and the run's instruction has the ids of
`prompt.asr_prompt`. Each answer, with the token that ends it, is learnt, and nothing else is. What
a template has no words for is Unusable, for the reason UNSAYABLE.
"""

from collections.abc import Sequence
import dataclasses

from data_pipelines.reject import Unusable
from data_pipelines.text.chat_template import ChatTemplate
from data_pipelines.text.prompt import end_id
from data_pipelines.text.tokenizer import Tokenizer
from data_pipelines.text.turns import CLIP, Turn
from melllm_jax.config.features import Text
from melllm_jax.errors import Mistake

UNSAYABLE = "not in the template"  # the reason of what a template has no words for
_FIRST_MARK = 0xF0000  # characters of private use stand for the parts while a template is rendered


@dataclasses.dataclass(frozen=True)
class Ids:
    """A stretch of text."""

    ids: tuple[int, ...]
    learnt: bool


def turn_ids(
    tokenizer: Tokenizer, cfg: Text, turns: Sequence[Turn], *, answered: bool = True
) -> list[Ids | None]:
    """The ids of turns that `check_turns` passes, and CLIP for each clip.

    The last is the answer, which is left out where they are only asked.

    "plain" says a clip and its answer alone. "phi3" and "phi4": <|system|>, <|user|> or
    <|assistant|>, the parts of the turn in order, <|end|>. "chat": what the tokenizer's own chat
    template writes; contents that spell a special token are still text, and encoded by themselves.

    Raises Unusable, with UNSAYABLE or as `Tokenizer.encode` does; Mistake as `asr_prompt` does.
    """
    end = end_id(tokenizer, cfg)
    if cfg.template == "plain":
        asked = _plain(tokenizer, turns)
    elif cfg.template == "chat":
        assert tokenizer.chat is not None, "end_id has it"
        asked = _chat(tokenizer, tokenizer.chat, turns, end)
    else:
        asked = _own_tokens(tokenizer, cfg.template, turns, end)
    return [*asked, _answer(tokenizer, turns[-1].words, end)] if answered else asked


def _plain(tokenizer: Tokenizer, turns: Sequence[Turn]) -> list[Ids | None]:
    if len(turns) > 2 or turns[0].parts != (CLIP,):
        rule = "has room for one clip and its answer alone: choose phi3, phi4 or chat"
        raise Unusable(UNSAYABLE, f'text.template="plain": {rule}')
    return [CLIP, Ids((tokenizer.special("<|assistant|>"),), learnt=False)]


def _own_tokens(
    tokenizer: Tokenizer, template: str, turns: Sequence[Turn], end: int
) -> list[Ids | None]:
    """All turns but the last, and the token that begins an answer."""
    if turns[0].role == "system" and "<|system|>" not in tokenizer.specials:
        rule = "has a system turn, for which the tokenizer has no <|system|>"
        raise Unusable(UNSAYABLE, f'text.template="{template}": {rule}')
    found: list[Ids | None] = []
    for turn in turns[:-1]:
        found.append(Ids((tokenizer.special(f"<|{turn.role}|>"),), learnt=False))
        if turn.role == "assistant":
            found.append(_answer(tokenizer, turn.words, end))
            continue
        for part in turn.parts:
            found.append(CLIP if part is CLIP else Ids(tuple(tokenizer.encode(part)), learnt=False))
        found.append(Ids((end,), learnt=False))
    return [*found, Ids((tokenizer.special("<|assistant|>"),), learnt=False)]


def _chat(
    tokenizer: Tokenizer, chat: ChatTemplate, turns: Sequence[Turn], end: int
) -> list[Ids | None]:
    """All turns but the last, and what begins an answer, as the template writes them.

    Text is encoded together with the template around it, as transformers does, between clips and
    answers; an answer by itself, as a model writes it.
    """
    parts = [(turn.role, part) for turn in turns[:-1] for part in turn.parts]
    marks = "".join(chr(_FIRST_MARK + number) for number in range(len(parts)))
    unused = iter(marks)
    messages = [(turn.role, "".join(next(unused) for _ in turn.parts)) for turn in turns[:-1]]
    try:
        text = chat.render(messages, marks, add_generation_prompt=True)
    except Mistake as error:
        raise Unusable(UNSAYABLE, str(error)) from error
    found: list[Ids | None] = []
    written, answered = "", False  # text that is not yet encoded, and whether an answer precedes it
    for mark, (role, part) in zip(marks, parts, strict=True):
        before, text = text.split(mark)
        written += before
        if part is not CLIP and role != "assistant" and not _spells_special(tokenizer, part):
            written += part
            continue
        found += _template_ids(tokenizer, written, end if answered else None)
        written, answered = "", role == "assistant"
        if part is CLIP:
            found.append(CLIP)
        else:
            found.append(Ids(tuple(tokenizer.encode(part)), learnt=answered))
    return [*found, *_template_ids(tokenizer, written + text, end if answered else None)]


def _template_ids(tokenizer: Tokenizer, text: str, end: int | None) -> list[Ids]:
    """What a template wrote; `end` is learnt where it is the first special token of it."""
    ids = tuple(tokenizer.encode_marked(text))
    special = set(tokenizer.specials.values())
    at = next((i for i, token in enumerate(ids) if token in special), None)
    if at is None or ids[at] != end:
        return [Ids(ids, learnt=False)]
    return [Ids(ids[:at], False), Ids(ids[at : at + 1], True), Ids(ids[at + 1 :], False)]


def _answer(tokenizer: Tokenizer, text: str, end: int) -> Ids:
    return Ids((*tokenizer.encode(text), end), learnt=True)


def _spells_special(tokenizer: Tokenizer, text: str) -> bool:
    return any(name in text for name in tokenizer.specials)
