"""The Grain chain: corpora on disk → packed batches, its place in the stream saved exactly.

mix → shuffle → repeat → example → a lane's share → screen → pack → rows → tally, and the lanes'
rows side by side, made ahead. Up to the share all is a function of the seed and of one global
index; from there on of the lane alone, whichever host runs it. Imports no jax itself (Grain does).
"""

from collections.abc import Iterator, Mapping, Sequence
import dataclasses
import functools
from typing import Any

import grain
import numpy as np

from data_pipelines.examples import Examples, Reject, Trial
from data_pipelines.lanes import BUFFER, Lanes, Packed, Read, Readers, Share
from data_pipelines.screen import Count, Lost, Screen, Tally
from data_pipelines.sources import Corpus, digest, open_source
from data_pipelines.text import Tokenizer
from data_pipelines.utterance import Utterance
from melllm_jax.batch import Batch
from melllm_jax.config import Data, Mel, Run
from melllm_jax.errors import Mistake

_COLUMNS = ("tokens", "patches", "frames", "clips", "loss_weight", "sources")


def train_batches(
    run: Run, tokenizer: Tokenizer, *, lanes: Sequence[int] | None = None, split: str = "train"
) -> grain.IterDataset:
    """An endless stream of the Batch of some lanes, in NumPy: [rows t ...], all of them if None.

    Every host must draw it with the same run, and with the lanes of its rows (`layout.lanes`). Of
    one corpus, all lanes together see every example once before any of them sees one again. The
    iterator's state is small and JSON; set in a new iterator over the same data and lanes, it goes
    on as if nothing had happened, and what Orbax saves of it is read by any hosts. Raises Mistake
    for data that is missing or is not what the run says, and later, from the iterator, once the
    share of unusable examples exceeds data.bad.
    """
    data, count = run.data, run.data.streams
    corpora = _opened(run, split)
    window, augment, pack, *order = _seeds(run.seed, 3 + len(corpora))
    drawn = grain.MapDataset.mix(
        [_endless(corpus, i, order[i]) for i, corpus in enumerate(corpora)],
        [source.weight for source in data.sources],
    )
    examples = drawn.random_map(Examples(run, tokenizer).train, seed=augment)

    def chain(lane: int, readers: Readers, counts: list[Count]) -> grain.IterDataset:
        rows = Packed(
            Screen(Read(examples, Share(lane, count, window), readers), data, counts),
            first=1 + lane * data.bins // count,
            bins=data.bins,
            length_struct=dict.fromkeys(_COLUMNS, data.t),
            seed=pack,
            meta_features=(*_COLUMNS[1:], "lost"),
        )
        return Tally(rows.batch(data.b // count, batch_fn=_batch), data, len(corpora))

    mine = range(count) if lanes is None else lanes
    return Lanes(chain, data, mine, [len(corpus) for corpus in corpora])


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


def _opened(run: Run, split: str) -> list[Corpus]:
    if not run.data.sources:
        raise Mistake("data.sources=(): needs one corpus at least")
    corpora = []
    for source in run.data.sources:
        corpus = open_source(source.path, split)
        _check_mel(corpus, run.mel)
        if split == "train" and source.digest not in ("", now := digest(source.path, split)):
            raise Mistake(f"data.sources.digest={source.digest}: {source.path} has {now} now")
        corpora.append(corpus)
    return corpora


def _check_mel(corpus: Corpus, cfg: Mel) -> None:
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


def _endless(corpus: Corpus, number: int, seed: int) -> grain.MapDataset:
    """Every utterance of a corpus with the corpus's number, each epoch in another order."""
    once = grain.MapDataset.source(corpus).shuffle(seed=seed)
    return once.repeat().map(functools.partial(_numbered, number))


def _numbered(number: int, utterance: Utterance) -> tuple[int, Utterance]:
    return number, utterance


def _read(examples: grain.MapDataset, cfg: Data) -> grain.IterDataset:
    options = grain.ReadOptions(num_threads=cfg.threads, prefetch_buffer_size=BUFFER * cfg.threads)
    return examples.to_iter_dataset(options)


def _batch(rows: Sequence[Mapping[str, Any]]) -> tuple[Batch, list[Lost]]:
    columns = {name: np.stack([row[name] for row in rows]) for name in _COLUMNS}
    columns["segments"] = np.stack([row["tokens_segment_ids"] for row in rows])
    columns["positions"] = np.stack([row["tokens_positions"] for row in rows])
    return Batch(**columns), [lost for row in rows for lost in row["lost"]]
