"""A split as packed batches, each utterance once and in order, to compute a held-out loss on."""

from collections.abc import Iterator
import dataclasses

import numpy as np

from data_pipelines.corpora.corpus import Corpus
from data_pipelines.examples.run_examples import make_examples
from data_pipelines.loader.packing import ExampleColumns, pack_row
from data_pipelines.loader.reject_counts import RejectsBefore
from data_pipelines.reject import Reject
from data_pipelines.text.tokenizer import Tokenizer
from melllm_jax.batch import Batch
from melllm_jax.config.data import Augment
from melllm_jax.config.run import BaseRun


@dataclasses.dataclass
class EvalBatches:
    """Batches [b t ...] of up to `limit` utterances of a corpus (0: all), not augmented.

    Unusable utterances are left out, and counted in `rejected` by reason; `utterances` counts the
    others. The last batch is filled up with empty rows.
    """

    corpus: Corpus
    run: BaseRun
    tokenizer: Tokenizer
    limit: int = 0

    def __post_init__(self) -> None:
        self.utterances = 0
        self.rejected: dict[str, int] = {}

    def __iter__(self) -> Iterator[Batch]:
        data = self.run.data
        rows: list[ExampleColumns] = []
        for row in self._rows():
            rows.append(row)
            if len(rows) == data.b:
                yield _stack_rows(rows)
                rows = []
        if rows:
            empty = {name: np.zeros_like(rows[0][name]) for name in Batch._fields}
            yield _stack_rows([*rows, *[empty] * (data.b - len(rows))])

    def _rows(self) -> Iterator[ExampleColumns]:
        """Packed rows: examples in order, as many in each row as fit."""
        row: list[ExampleColumns] = []
        room = self.run.data.t
        for example in self._examples():
            t = len(example["tokens"])
            if t > room:
                yield pack_row(row, self.run.data.t)
                row, room = [], self.run.data.t
            row.append(example)
            room -= t
        if row:
            yield pack_row(row, self.run.data.t)

    def _examples(self) -> Iterator[ExampleColumns]:
        plain = dataclasses.replace(self.run.data, augment=Augment())
        maker = make_examples(dataclasses.replace(self.run, data=plain), self.tokenizer)
        count = len(self.corpus)
        self.utterances, self.rejected = 0, {}
        for index in range(min(count, self.limit) if self.limit else count):
            example = maker.train((0, self.corpus[index]), np.random.default_rng(index))
            if isinstance(example, Reject):
                self.rejected[example.reason] = self.rejected.get(example.reason, 0) + 1
                continue
            self.utterances += 1
            yield example | {"draw_index": index, "rejects_before": RejectsBefore(())}


def _stack_rows(rows: list[ExampleColumns]) -> Batch:
    return Batch(*(np.stack([row[name] for row in rows]) for name in Batch._fields))
