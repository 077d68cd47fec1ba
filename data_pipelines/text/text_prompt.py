"""Prompts of text alone, the tokens that open a text, and those that end what a model writes."""

from collections.abc import Mapping
from typing import Any, Literal

from etils import epath

from data_pipelines.reject import Unusable
from data_pipelines.text.prompt import chat_ids, end_id
from data_pipelines.text.tokenizer import Tokenizer, check_text
from melllm_jax.config.features import Text
from melllm_jax.errors import Mistake
from melllm_jax.json_text import read_object

ChatUse = Literal["auto", "on", "off"]  # auto: on where the tokenizer has a chat template


def text_prompt(
    tokenizer: Tokenizer,
    text: str,
    *,
    chat: ChatUse = "auto",
    system: str = "",
    opening: tuple[int, ...] = (),
) -> list[int]:
    """Ids of a text to be continued, or of a question to be answered by the chat template.

    They are those that transformers gives the same text: what spells a special token is one.
    `opening` stands before a text that no template writes. Raises Mistake for a text that is empty
    or that the vocabulary lacks, and where a template is asked for and there is none.
    """
    if not text:
        raise Mistake("prompt='': must hold text")
    if chat == "on" and tokenizer.chat is None:
        raise Mistake("chat=on: no chat template lies beside the tokenizer: give --chat off")
    use = tokenizer.chat if chat != "off" else None
    if system and use is None:
        raise Mistake(f"system={_shorten(system)}: needs a chat template, which is not used here")
    try:
        for given in filter(str.strip, (text, system)):
            check_text(given)
        if use is not None:
            return tokenizer.encode_marked(use.ask(text, system))
        return [*opening, *tokenizer.encode_marked(text)]
    except Unusable as error:
        raise Mistake(f"prompt={_shorten(text)}: {error}") from error


def end_ids(tokenizer: Tokenizer, cfg: Text) -> tuple[int, ...]:
    """All ids that end what a model writes, in rising order; there may be none.

    Those that generation_config.json beside the tokenizer lists, or else config.json; the
    tokenizer's eos_token and what ends a reply of its chat template; the end of a transcript.
    """
    found: set[int] = set(_listed_ends(cfg.tokenizer))
    if tokenizer.chat is not None:
        name = dict(tokenizer.chat.tokens).get("eos_token", "")
        found |= {i for token, i in tokenizer.specials.items() if token == name}
    for ending in (lambda: chat_ids(tokenizer, cfg)[2], lambda: end_id(tokenizer, cfg)):
        try:
            found.add(ending())
        except Mistake:  # it has no template, or not the tokens of ours
            continue
    return tuple(sorted(found))


def _listed_ends(tokenizer: str) -> list[int]:
    """What the files beside a tokenizer list as eos_token_id, the first that says one."""
    for name in ("generation_config.json", "config.json"):
        file = epath.Path(tokenizer) / name
        tree: Mapping[str, Any] = read_object(file) if file.exists() else {}
        listed = tree.get("eos_token_id")
        ids: list[Any] = listed if isinstance(listed, list) else [listed]
        if listed is not None and all(type(i) is int for i in ids):
            return ids
    return []


def _shorten(text: str) -> str:
    return repr(text if len(text) <= 40 else f"{text[:39]}…")
