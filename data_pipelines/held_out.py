"""A split as packed batches, each utterance once and in order: what a loss is held out on."""

from collections.abc import Iterator
import dataclasses

import numpy as np

from data_pipelines.examples import Examples, Reject
from data_pipelines.packed import Example, laid_out
from data_pipelines.screen import Lost
from data_pipelines.sources import Corpus
from data_pipelines.text import Tokenizer
from melllm_jax.batch import Batch
from melllm_jax.config import Augment, Run


@dataclasses.dataclass
class HeldOut:
    """Batches [b t ...] of up to `most` utterances of a corpus (0: all), not augmented.

    Utterances that give no example are left out, and counted in `rejected` by reason; `utterances`
    counts the others. The last batch is filled with empty rows.
    """

    corpus: Corpus
    run: Run
    tokenizer: Tokenizer
    most: int = 0

    def __post_init__(self) -> None:
        self.utterances = 0
        self.rejected: dict[str, int] = {}

    def __iter__(self) -> Iterator[Batch]:
        data = self.run.data
        rows: list[Example] = []
        for row in self._rows():
            rows.append(row)
            if len(rows) == data.b:
                yield _batch(rows)
                rows = []
        if rows:
            empty = {name: np.zeros_like(rows[0][name]) for name in Batch._fields}
            yield _batch([*rows, *[empty] * (data.b - len(rows))])

    def _rows(self) -> Iterator[Example]:
        """Rows of examples in order, each row as many as it holds."""
        row: list[Example] = []
        room = self.run.data.t
        for example in self._examples():
            t = len(example["tokens"])
            if t > room:
                yield laid_out(row, self.run.data.t)
                row, room = [], self.run.data.t
            row.append(example)
            room -= t
        if row:
            yield laid_out(row, self.run.data.t)

    def _examples(self) -> Iterator[Example]:
        plain = dataclasses.replace(self.run.data, augment=Augment())
        made = Examples(dataclasses.replace(self.run, data=plain), self.tokenizer)
        count = len(self.corpus)
        self.utterances, self.rejected = 0, {}
        for index in range(min(count, self.most) if self.most else count):
            example = made.train((0, self.corpus[index]), np.random.default_rng(index))
            if isinstance(example, Reject):
                self.rejected[example.reason] = self.rejected.get(example.reason, 0) + 1
                continue
            self.utterances += 1
            yield example | {"turn": index, "lost": Lost(())}


def _batch(rows: list[Example]) -> Batch:
    return Batch(*(np.stack([row[name] for row in rows]) for name in Batch._fields))
