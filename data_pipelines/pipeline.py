"""The Grain chain: corpora on disk → packed batches, its place in the stream saved exactly.

mix → shuffle → repeat → example → a lane's share → screen → pack → rows → tally, and the lanes'
rows side by side, made ahead. Up to the share all is a function of the seed and of one global
index; from there on of the lane alone, whichever host runs it. Imports no jax itself (Grain does).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import dataclasses
import functools
from typing import Any

import grain
import numpy as np

from data_pipelines.ahead import BUFFER, Read, Readers, Share
from data_pipelines.examples import Examples, Reject, Trial
from data_pipelines.lanes import Lanes
from data_pipelines.mixture import Mixture
from data_pipelines.packed import Packed
from data_pipelines.reader import Damaged
from data_pipelines.screen import DAMAGED, Count, Lost, Screen, Tally
from data_pipelines.sources import Corpus
from data_pipelines.subset import Subset
from data_pipelines.text import Tokenizer
from data_pipelines.utterance import Utterance
from data_pipelines.waves import Effects
from melllm_jax.batch import Batch
from melllm_jax.config import Data, Mel, Run
from melllm_jax.errors import Mistake


def train_batches(
    run: Run,
    tokenizer: Tokenizer,
    *,
    lanes: Sequence[int] | None = None,
    split: str = "train",
    say: Callable[[str], None] = lambda _: None,
) -> Lanes:
    """A stream of the Batch of some lanes, in NumPy: [rows t ...], all of them if None.

    It ends with the last full batch once every corpus is drawn data.epochs times, or never. `say`
    is told, once each, of damaged shards that are skipped.

    Every host must draw it with the same run, and with the lanes of its rows (`layout.lanes`). Of
    one corpus, all lanes together see every example once before any of them sees one again. The
    iterator's state is small and JSON; set in a new iterator over the same data and lanes, it goes
    on as if nothing had happened, and what Orbax saves of it is read by any hosts. Raises Mistake
    for data that is missing or is not what the run says, and later, from the iterator, once the
    share of unusable examples exceeds data.bad.
    """
    data, count = run.data, run.data.streams
    window, augment, order = _seeds(run.seed, 3)
    mixed = Mixture(data, split, order, functools.partial(_check, run))
    ready = mixed.tokenized(tokenizer.digest())
    train = functools.partial(_made, Examples(run, tokenizer, Effects(data.augment), ready))

    def chain(
        lane: int, mixture: Mixture, readers: Readers, counts: list[Count]
    ) -> grain.IterDataset:
        examples = grain.MapDataset.source(mixture).random_map(train, seed=augment)
        read = Read(examples, mixture, Share(lane, count, window), readers)
        rows = Packed(Screen(read, data, counts, say), read.again, data.t, data.bins)
        batches = rows.batch(data.b // count, drop_remainder=True, batch_fn=_batch)
        return Tally(batches, data, mixture)

    return Lanes(chain, data, range(count) if lanes is None else lanes, mixed)


def eval_examples(
    corpus: Corpus, run: Run, tokenizer: Tokenizer, *, order: Sequence[int] | None = None
) -> Iterator[Trial | Reject]:
    """Every utterance of `corpus` once, in `order` or in that of the file, unusable ones as Reject.

    `sources.by_length(corpus)` is the order that wastes least in batches. Utterances longer than
    data.longest, and references that no tokenizer knows, are tried like others.
    """
    _check_mel(corpus, run.mel)
    indices = range(len(corpus)) if order is None else order
    trials = grain.MapDataset.source(indices).map(corpus.__getitem__)
    yield from _read(trials.map(Examples(run, tokenizer).trial), run.data)


def _made(
    examples: Examples, drawn: tuple[int, Utterance | Damaged], rng: np.random.Generator
) -> dict[str, np.ndarray] | Reject:
    source, utterance = drawn
    if isinstance(utterance, Damaged):
        return Reject(source, utterance.path, DAMAGED, str(utterance))
    return examples.train((source, utterance), rng)


def _check(run: Run, corpus: Corpus | Subset) -> None:
    """Raises Mistake where a corpus does not suit the run."""
    _check_mel(corpus, run.mel)
    if corpus.mel is not None and (changes := run.data.augment.on_sound):
        names = ", ".join(changes)
        raise Mistake(f"data.augment: {names}: {corpus.path} holds ready mel, no sound")


def _check_mel(corpus: Corpus | Subset, cfg: Mel) -> None:
    """Raises Mistake where ready mel was made otherwise; r, how it is cut, is not in it."""
    if corpus.mel is None:
        return
    for field in dataclasses.fields(Mel):
        stored, wanted = getattr(corpus.mel, field.name), getattr(cfg, field.name)
        if field.name != "r" and stored != wanted:
            raise Mistake(f"mel.{field.name}={wanted}: {corpus.path} holds mel made with {stored}")


def _seeds(seed: int, count: int) -> list[int]:
    if seed < 0:
        raise Mistake(f"seed={seed}: must be 0 or more")
    return [int(word) for word in np.random.SeedSequence(seed).generate_state(count)]


def _read(examples: grain.MapDataset, cfg: Data) -> grain.IterDataset:
    options = grain.ReadOptions(num_threads=cfg.threads, prefetch_buffer_size=BUFFER * cfg.threads)
    return examples.to_iter_dataset(options)


def _batch(rows: Sequence[Mapping[str, Any]]) -> tuple[Batch, list[Lost]]:
    one = len(rows) == 1  # as in lanes of a row each: nothing to copy
    columns = {
        name: rows[0][name][None] if one else np.stack([row[name] for row in rows])
        for name in Batch._fields
    }
    return Batch(**columns), [lost for row in rows for lost in row["lost"]]
