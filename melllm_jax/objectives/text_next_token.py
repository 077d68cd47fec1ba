"""Cross-entropy of the next token of text alone: a language model without a front end."""

import dataclasses

from melllm_jax.errors import Mistake
from melllm_jax.objectives.next_token import NextToken


@dataclasses.dataclass(frozen=True)
class TextNextToken(NextToken):
    """A language model on the text of a corpus, whose sound is not read.

    Every token after a document's first is a target (`data_pipelines.examples.text_example` weighs
    them so). Raises Mistake for a run with a front end, which would stay as it was made.
    """

    def __post_init__(self) -> None:
        if self.run.model.front != "none":
            raise Mistake(f'model.front="{self.run.model.front}": text alone needs none')
