"""Text of tokens that come one by one, never half a letter of it."""

from collections.abc import Sequence

from data_pipelines.text.tokenizer import Tokenizer

REPLACEMENT = "\ufffd"  # what a decoder writes for bytes that are no letter, or not yet one


class Detokenizer:
    """Gives the text of a growing list of tokens piece by piece.

    All pieces together are what `tokenizer.decode` makes of all tokens. What may still change is
    held back: bytes that begin a letter, until the rest of it comes. All tokens are decoded each
    time, as the text of one depends on those before it: 1 ms for some thousand tokens.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._given = 0  # characters of the text so far

    def __call__(self, tokens: Sequence[int], last: bool = False) -> str:
        """The text that `tokens`, all of them so far, add to what was given before.

        `last` gives what was held back, too: no more will come.
        """
        text = self._tokenizer.decode(tokens)
        sure = text if last else text.rstrip(REPLACEMENT)
        piece = sure[self._given :]
        self._given += len(piece)
        return piece
