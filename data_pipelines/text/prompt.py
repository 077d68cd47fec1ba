"""The prompts of speech recognition: tokens before a clip, after it, and after the transcript."""

import dataclasses

from data_pipelines.reject import Unusable
from data_pipelines.text.tokenizer import Tokenizer
from melllm_jax.config.features import Text
from melllm_jax.errors import Mistake

# The placeholder of a patch in our own vocabularies, in Phi-4-MM's (id 200011), and Phi-3's first
# free token.
_PLACEHOLDERS = ("<|audio|>", "<|endoftext11|>", "<|placeholder1|>")


@dataclasses.dataclass(frozen=True)
class Prompt:
    """Token ids around a clip and its transcript."""

    before: tuple[int, ...]  # before the clip
    after: tuple[int, ...]  # after the clip, before the transcript
    end: int  # ends the transcript
    audio: int  # stands at every position of the clip


def placeholder_id(tokenizer: Tokenizer) -> int:
    """Id that stands at every position of a clip. Raises Mistake where the tokenizer has none."""
    return tokenizer.special(
        next((x for x in _PLACEHOLDERS if x in tokenizer.specials), _PLACEHOLDERS[0])
    )


def asr_prompt(tokenizer: Tokenizer, cfg: Text) -> Prompt:
    """The prompt of `cfg.template` in the ids of `tokenizer`.

    "plain": clip, <|assistant|>. "phi3" and "phi4": <|user|>, clip, the instruction, <|end|>,
    <|assistant|>. The two do not differ in ids: Phi-3's template puts a line break after each of
    its special tokens, and its tokenizer strips the blanks after them again (`rstrip` of its added
    tokens). No <s> stands in front. Sources: the model cards, `chat_template` and
    `added_tokens_decoder` of microsoft/Phi-3-mini-4k-instruct (revision of May 2024 on),
    Phi-4-mini-instruct and Phi-4-multimodal-instruct; the audio placeholder is `audio_token_id` in
    transformers' Phi4MultimodalAudioConfig.

    Raises Mistake where the tokenizer lacks one of these tokens or cannot hold the instruction.
    """
    start, end = tokenizer.special("<|assistant|>"), tokenizer.special("<|end|>")
    audio_id = placeholder_id(tokenizer)
    if cfg.template == "plain":
        return Prompt((), (start,), end, audio_id)
    try:
        words = tokenizer.encode(cfg.instruction)
    except Unusable as error:
        raise Mistake(f"text.instruction={cfg.instruction!r}: {error}") from error
    return Prompt((tokenizer.special("<|user|>"),), (*words, end, start), end, audio_id)
