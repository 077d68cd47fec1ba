"""Training a SentencePiece table on the transcripts of a corpus."""

from collections.abc import Iterable
import io
import re

from etils import epath
import sentencepiece

from data_pipelines.text import SPECIALS, SentencePiece
from melllm_jax.errors import Mistake

_LINE = 1 << 24  # bytes: the library leaves out longer texts without a word


def train_sentencepiece(
    texts: Iterable[str], folder: epath.PathLike, v: int, *, byte_fallback: bool = False
) -> SentencePiece:
    """A unigram table of `v` tokens, special ones included, written to `folder` as well.

    `v` = 0 takes all the tokens that the texts yield. Every character of the texts is a token;
    others are refused by `encode`, or spelt in bytes (256 tokens more) with `byte_fallback`. The
    same texts in the same order give the same table. Raises Mistake, saying the bound, where `v`
    is more than the texts yield or too few for their characters.

    Kudo 2018, "Subword Regularization", https://arxiv.org/abs/1804.10959.
    """
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(texts),
            model_writer=model,
            model_type="unigram",
            vocab_size=v or 1_000_000,
            hard_vocab_limit=v > 0,
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
        raise Mistake(f"v={v}: {_rule(str(error))}") from error
    tokenizer = SentencePiece(model.getvalue(), {})
    tokenizer.save(folder)
    return tokenizer


def _rule(message: str) -> str:
    if most := re.search(r"value <= (\d+)", message):
        return f"is more than the texts yield: at most {most[1]}"
    if least := re.search(r"required_chars\. \d+ vs (\d+)", message):
        return f"is too few for the characters of the texts: at least {least[1]}"
    if "sentences_.empty()" in message:
        return "there are no texts to train on"
    return f"SentencePiece cannot be trained: {message}"
