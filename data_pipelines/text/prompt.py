"""The prompts of speech recognition: tokens before a clip, after it, and after the transcript."""

import dataclasses
import re

from data_pipelines.reject import Unusable
from data_pipelines.text.chat_template import ChatTemplate
from data_pipelines.text.tokenizer import Tokenizer
from melllm_jax.config.features import Text
from melllm_jax.errors import Mistake

# The placeholder of a patch in our own vocabularies, in Phi-4-MM's (id 200011), and the first free
# token of Phi-3 and of Phi-4.
_PLACEHOLDERS = ("<|audio|>", "<|endoftext11|>", "<|placeholder1|>", "<|dummy_0|>")
_TOKEN_NAME = re.compile(r"<\|[^<>|\s]+\|>")  # what is meant for a token and never for words


@dataclasses.dataclass(frozen=True)
class Prompt:
    """Token ids around a clip and its transcript."""

    before: tuple[int, ...]  # before the clip
    after: tuple[int, ...]  # after the clip, before the transcript
    end: int  # ends the transcript
    audio: int  # stands at every position of the clip


def named_placeholder(tokenizer: Tokenizer) -> int | None:
    """Id of the tokenizer's token for the positions of a clip; None where it has none."""
    names = (tokenizer.specials.get(name) for name in _PLACEHOLDERS)
    return next((i for i in names if i is not None), None)


def placeholder_id(tokenizer: Tokenizer, cfg: Text) -> int:
    """Id that stands at every position of a clip: the config's, or else the tokenizer's.

    Raises Mistake where neither has one.
    """
    if cfg.placeholder >= 0:
        return cfg.placeholder
    found = named_placeholder(tokenizer)
    return tokenizer.special(_PLACEHOLDERS[0]) if found is None else found


def asr_prompt(tokenizer: Tokenizer, cfg: Text) -> Prompt:
    """The prompt of `cfg.template` in the ids of `tokenizer`.

    "plain": clip, <|assistant|>. "phi3" and "phi4": <|user|>, clip, the instruction, <|end|>,
    <|assistant|>. The two do not differ in ids: Phi-3's template puts a line break after each of
    its special tokens, and its tokenizer strips the blanks after them again (`rstrip` of its added
    tokens). No <s> stands in front. Sources: the model cards, `chat_template` and
    `added_tokens_decoder` of microsoft/Phi-3-mini-4k-instruct (revision of May 2024 on),
    Phi-4-mini-instruct and Phi-4-multimodal-instruct; the audio placeholder is `audio_token_id` in
    transformers' Phi4MultimodalAudioConfig. "chat": what the tokenizer's own chat template writes
    of a user's clip and instruction, in the ids that transformers gives it.

    Raises Mistake where the tokenizer lacks one of these tokens or cannot hold the instruction.
    """
    if cfg.template == "chat":
        before, after, end = chat_ids(tokenizer, cfg)
        return Prompt(tuple(before), tuple(after), end, placeholder_id(tokenizer, cfg))
    start, end = _special(tokenizer, "<|assistant|>"), end_id(tokenizer, cfg)
    audio_id = placeholder_id(tokenizer, cfg)
    if cfg.template == "plain":
        return Prompt((), (start,), end, audio_id)
    try:
        words = tokenizer.encode(cfg.instruction)
    except Unusable as error:
        raise Mistake(f"text.instruction={cfg.instruction!r}: {error}") from error
    return Prompt((_special(tokenizer, "<|user|>"),), (*words, end, start), end, audio_id)


def _special(tokenizer: Tokenizer, name: str) -> int:
    """Id of a special token. Raises Mistake, which tells of a chat template that does without."""
    try:
        return tokenizer.special(name)
    except Mistake as error:
        if tokenizer.chat is None:
            raise
        raise Mistake(f"{error}; --text.template chat takes the tokenizer's own words") from error


def template_specials(cfg: Text) -> tuple[str, ...]:
    """Names of the special tokens that `cfg.template` needs; a chat template has its tokenizer's.

    What ends a reply comes first: of new tokens, which are all as likely, greedy decoding says the
    first.
    """
    if cfg.template == "chat":
        return ()
    return ("<|end|>", "<|assistant|>", *(() if cfg.template == "plain" else ("<|user|>",)))


def end_id(tokenizer: Tokenizer, cfg: Text) -> int:
    """Id that ends a transcript. Raises Mistake where the tokenizer has none."""
    return chat_ids(tokenizer, cfg)[2] if cfg.template == "chat" else _special(tokenizer, "<|end|>")


def chat_ids(tokenizer: Tokenizer, cfg: Text) -> tuple[list[int], list[int], int]:
    """Ids before and after the clip, and what ends a reply, by the tokenizer's chat template."""
    chat = tokenizer.chat
    if chat is None:
        raise Mistake(
            'text.template="chat": no chat template lies beside the tokenizer '
            "(tokenizer_config.json, chat_template.jinja): choose plain, phi3 or phi4"
        )
    turns = chat.turns(cfg.instruction)
    written = "".join(dataclasses.astuple(turns)).replace(cfg.instruction, "")
    _check_token_names(tokenizer, chat, written)
    try:
        before, after, ending = map(
            tokenizer.encode_marked, (turns.before, turns.after, turns.ending)
        )
    except Unusable as error:
        raise Mistake(f"text.instruction={cfg.instruction!r}: in {chat.path}: {error}") from error
    special = set(tokenizer.specials.values())
    end = next((i for i in ending if i in special), None)
    if end is None:
        end = tokenizer.specials.get(dict(chat.tokens).get("eos_token", ""))
    if end is None:
        raise Mistake(f"{chat.path}: no special token ends a reply of its chat template")
    return before, after, end


def _check_token_names(tokenizer: Tokenizer, chat: ChatTemplate, written: str) -> None:
    """Raises Mistake for a token of the template that the tokenizer would spell by letters."""
    own = [token for name, token in chat.tokens if name in chat.source and token in written]
    for token in [*_TOKEN_NAME.findall(written), *own]:
        try:
            lacks = len(tokenizer.encode_marked(token)) != 1
        except Unusable:
            lacks = True
        if lacks:
            raise Mistake(
                f"{chat.path}: its chat template writes {token}: no token of the tokenizer"
            )
