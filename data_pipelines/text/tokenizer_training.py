"""Trains a SentencePiece vocabulary on the transcripts of a corpus."""

from collections.abc import Iterable
import io
import re
from typing import Literal

from etils import epath
import sentencepiece

from data_pipelines.text.sentencepiece_tokenizer import SentencePieceTokenizer
from data_pipelines.text.tokenizer import SPECIALS
from melllm_jax.errors import Mistake

SentencePieceKind = Literal["unigram", "bpe", "char", "word"]
ALL_TOKENS = 1_000_000  # more tokens than any texts yield
_LINE = 1 << 24  # bytes: the library silently leaves out longer texts


def train_sentencepiece(
    texts: Iterable[str],
    folder: epath.PathLike,
    size: int,
    *,
    kind: SentencePieceKind = "unigram",
    byte_fallback: bool = False,
) -> SentencePieceTokenizer:
    """Trains a vocabulary of `size` tokens, special ones included, and writes it to `folder`.

    `size` = 0 takes all the tokens that the texts yield. Every character of the texts is a token
    (of "word", every word, the most frequent ones where `size` is less); others are refused by
    `encode`, or spelt in bytes (256 tokens more) with `byte_fallback`. The same texts in the same
    order give the same vocabulary. Raises Mistake, naming the bound, where `size` is more than the
    texts yield or too few for their characters.

    unigram: Kudo 2018, "Subword Regularization", https://arxiv.org/abs/1804.10959. bpe: Sennrich,
    Haddow and Birch 2016, https://arxiv.org/abs/1508.07909.
    """
    fewest = len(SPECIALS) + 2 + 256 * byte_fallback  # with <unk>, and one word
    if kind == "word" and 0 < size < fewest:
        raise Mistake(f"size={size}: leaves no room for a word: at least {fewest}")
    model = io.BytesIO()
    exact = size > 0 and kind != "char"  # char silently leaves out the rarest, or stays short
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(texts),
            model_writer=model,
            model_type=kind,
            vocab_size=size if exact else ALL_TOKENS,
            hard_vocab_limit=exact,
            byte_fallback=byte_fallback,
            character_coverage=1.0,
            control_symbols=list(SPECIALS),
            unk_id=0,
            bos_id=-1,
            eos_id=-1,
            pad_id=-1,
            max_sentence_length=_LINE,
            num_threads=1,  # sums in one order
            minloglevel=4,  # nothing on standard error
        )
    except RuntimeError as error:
        raise Mistake(f"size={size}: {_explain_failure(str(error))}") from error
    tokenizer = SentencePieceTokenizer(model.getvalue(), {})
    if size not in (0, tokenizer.size):
        few = "is too few for the characters of the texts: at least"
        many = "is more than the texts yield: at most"
        rule = few if size < tokenizer.size else many
        raise Mistake(f"size={size}: {rule} {tokenizer.size}")
    tokenizer.save(folder)
    return tokenizer


def _explain_failure(message: str) -> str:
    if most := re.search(r"value <= (\d+)", message):
        return f"is more than the texts yield: at most {most[1]}"
    if least := re.search(r"required_chars\. \d+ vs (\d+)", message):
        return f"is too few for the characters of the texts: at least {least[1]}"
    if "sentences_.empty()" in message:
        return "there are no texts to train on"
    return f"SentencePiece cannot be trained: {message}"
