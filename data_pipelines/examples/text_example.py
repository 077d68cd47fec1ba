"""The text of one utterance to the columns of one example; its sound is not read."""

from collections.abc import Sequence, Set

import numpy as np

from data_pipelines.corpora.utterance import Utterance
from data_pipelines.examples.asr_example import TRANSFER_DTYPES, too_wide_reason
from data_pipelines.reject import MALFORMED, Reject, Unusable
from data_pipelines.text.prompt import end_id
from data_pipelines.text.tokenizer import Tokenizer
from data_pipelines.text.turn_prompt import UNSAYABLE, turn_ids
from data_pipelines.text.turns import CLIP
from melllm_jax.config.run import Run


class TextExampleMaker:
    """Makes the examples of a run that learns from text alone.

    `ready` are the indices of the corpora that hold the ids of `tokenizer` beside their text.
    """

    def __init__(self, run: Run, tokenizer: Tokenizer, ready: Set[int] = frozenset()) -> None:
        self._run, self._tokenizer, self._ready = run, tokenizer, ready
        self._end = end_id(tokenizer, run.text)

    def train(
        self, drawn: tuple[int, Utterance], rng: np.random.Generator
    ) -> dict[str, np.ndarray] | Reject[int]:
        """Columns [t ...] of an utterance's text and the index of its corpus; nothing is drawn.

        The columns are those of `ExampleMaker.train`, without patches. The end token stands before
        the text too, so that the text's first token is a target as well. Of a task, which may have
        no sound, the answers alone are learnt.
        """
        source, utterance = drawn
        data = self._run.data
        if utterance.flaw:
            return Reject(source, utterance.id, MALFORMED, utterance.flaw)
        try:
            tokens, weights = self._weighted_ids(source, utterance)
            t = len(tokens)
            if t > data.t:
                raise Unusable(too_wide_reason(data), f"{utterance.id}: takes t={t} positions")
        except Unusable as error:
            return Reject(source, utterance.id, error.reason, str(error))
        zeros = np.zeros(t, np.int32)
        return {
            "tokens": np.array(tokens, np.int32),
            "patches": np.zeros((t, self._run.patch_width), TRANSFER_DTYPES[data.wire]),
            "frames": zeros,
            "clips": zeros,
            "loss_weight": np.array(weights, np.float32),
            "sources": np.full(t, source, np.int32),
        }

    def _weighted_ids(self, source: int, utterance: Utterance) -> tuple[list[int], list[float]]:
        """The ids of an utterance, and the weight of each. Raises Unusable."""
        if not utterance.turns:
            ids: Sequence[int] | None = utterance.tokens if source in self._ready else None
            if ids is None:
                ids = self._tokenizer.encode(utterance.text)
            return [self._end, *ids, self._end], [0.0] + [1.0] * (len(ids) + 1)
        tokens, weights = list[int](), list[float]()
        for part in turn_ids(self._tokenizer, self._run.text, utterance.turns):
            if part is CLIP:
                raise Unusable(UNSAYABLE, f'{utterance.id}: has sound: model.front="none"')
            tokens += part.ids
            weights += [float(part.learnt)] * len(part.ids)
        return tokens, weights
