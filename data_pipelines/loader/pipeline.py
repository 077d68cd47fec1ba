"""The Grain chain from corpora on disk to packed batches; its state is saved and restored exactly.

mix → shuffle → repeat → example → a lane's sample → drop rejects → pack → rows → count rejects.
Then the rows of the lanes are assembled into batches and prefetched. Up to the lane's sample all
is a function of the seed and of one global index, from there on of the lane alone, whichever host
runs it. This module imports no jax itself (Grain does).

Three parts of Grain are not used, because batches must be equal to the bit, also after a resume,
for any number of hosts and worker processes. `mp_prefetch` warns that packing changes with the
number of workers: hence lanes, `worker_pool` and `shared_buffers`. `ElasticIterator` (0.2.18)
refuses datasets that make one element of many, as packing does: hence a state saved by lane. (Grain
0.2.19 has elastic interleaving: to be looked at.) Its best-fit packing fills 95 % of a row where
`packing` fills 98 %, and its state is not the handful of draw indices that ours is.
"""

from collections.abc import Callable, Iterator, Sequence
import dataclasses
import functools
from typing import Any

import grain
import numpy as np

from data_pipelines.corpora.corpus import Corpus
from data_pipelines.corpora.shard_reader import DamagedShard
from data_pipelines.corpora.subset import Subset
from data_pipelines.corpora.utterance import Utterance
from data_pipelines.examples.asr_example import EvalExample, ExampleMaker
from data_pipelines.examples.run_examples import RunExampleMaker, make_examples
from data_pipelines.examples.vocoder_example import VocoderExampleMaker
from data_pipelines.examples.wave_augment import Effects
from data_pipelines.examples.whisper_example import WhisperExampleMaker
from data_pipelines.loader.lanes import Lanes
from data_pipelines.loader.mixture import Mixture
from data_pipelines.loader.packing import BestFitPacking
from data_pipelines.loader.prefetch import BUFFER, LaneSampler, PrefetchDataset, ReaderPool
from data_pipelines.loader.reject_counts import (
    DAMAGED,
    LaneCounts,
    LogOnce,
    RejectCounter,
    RejectFilter,
)
from data_pipelines.loader.worker_pool import WorkerSetup
from data_pipelines.reject import Reject
from data_pipelines.text.tokenizer import Tokenizer
from melllm_jax.config.data import Data
from melllm_jax.config.features import Mel
from melllm_jax.config.run import BaseRun, Run
from melllm_jax.config.vocoder_run import VocoderRun
from melllm_jax.errors import Mistake


def train_batches(
    run: BaseRun,
    tokenizer: Tokenizer,
    *,
    lanes: Sequence[int] | None = None,
    split: str = "train",
    log: Callable[[str], None] = lambda _: None,
) -> Lanes:
    """A stream of batches with the rows of some lanes, in NumPy: [rows t ...]; None: all lanes.

    It ends with the last full batch once every corpus is drawn data.epochs times, or never. `log`
    is called, once each, with damaged shards that are skipped.

    Every host must make it with the same run, and with the lanes of its own rows
    (`sharding.host_lanes`). Of one corpus, all lanes together see every example once before any of
    them sees one again. The iterator's state is small and JSON; set in a new iterator over the same
    data and lanes, it continues as if nothing had happened, and what Orbax saves of it can be read
    by any hosts.

    Raises Mistake for data that is missing or is not what the run says, and later, from the
    iterator, once the share of unusable examples exceeds data.max_reject_share.
    """
    given = range(run.data.lane_count) if lanes is None else lanes
    return make_lanes(run, tokenizer, given, split, LogOnce(log))


def make_lanes(
    run: BaseRun,
    tokenizer: Tokenizer,
    lanes: Sequence[int],
    split: str,
    log_once: Callable[[str, str], None],
) -> Lanes:
    """`train_batches` of these lanes; `log_once` gets a damaged shard and what is wrong with it."""
    data = run.data
    window, augment, order = _seeds(run.seed, 3)
    run_mixture = Mixture(data, split, order, functools.partial(_check, run))
    ready = run_mixture.sources_with_ids_of(tokenizer.digest())
    train = functools.partial(
        _train_example, make_examples(run, tokenizer, Effects(data.augment), ready)
    )

    def chain(
        lane: int, mixture: Mixture, readers: ReaderPool, counts: list[LaneCounts]
    ) -> grain.IterDataset:
        make_example = ExampleMap(mixture, train, augment)
        sampler = LaneSampler(lane, data.lane_count, window)
        examples = PrefetchDataset(make_example, mixture, sampler, readers)
        usable = RejectFilter(examples, data, counts, log_once)
        rows = BestFitPacking(usable, examples.reread, data.t, data.bins)
        batches = rows.batch(data.b // data.lane_count, drop_remainder=True, batch_fn=list)
        return RejectCounter(batches, data, mixture)

    workers = WorkerSetup(split, tokenizer.digest(), log_once)
    return Lanes(chain, run, lanes, run_mixture, workers)


def eval_examples(
    corpus: Corpus, run: Run, tokenizer: Tokenizer, *, order: Sequence[int] | None = None
) -> Iterator[EvalExample | Reject[int]]:
    """Every utterance of `corpus` once, in `order` or in the file's, unusable ones as Reject.

    `corpus.indices_longest_first(corpus)` is the order that pads batches least. Utterances longer
    than data.longest, and references that the tokenizer cannot encode, are included.
    """
    _check_mel(corpus, run.mel)
    make = ExampleMaker(run, tokenizer).eval_example
    yield from _map_corpus(corpus, make, order, run.data.threads)


def whisper_examples(
    corpus: Corpus, make: WhisperExampleMaker, *, order: Sequence[int] | None = None
) -> Iterator[EvalExample | Reject[int]]:
    """As `eval_examples`, what a Whisper hears. Raises Mistake for a corpus of ready mel."""
    if corpus.mel is not None:
        rule = "a Whisper needs the sound, since it hears silence after it"
        raise Mistake(f"data={corpus.path}: holds ready mel: {rule}")
    yield from _map_corpus(corpus, make.eval_example, order, Data.threads)


def _map_corpus(
    corpus: Corpus,
    make: Callable[[Utterance], EvalExample | Reject[int]],
    order: Sequence[int] | None,
    threads: int,
) -> Iterator[EvalExample | Reject[int]]:
    """What `make` makes of each utterance, in their order, by several threads ahead."""
    indices = range(len(corpus)) if order is None else order
    examples = grain.MapDataset.source(indices).map(corpus.__getitem__).map(make)
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=BUFFER * threads)
    yield from examples.to_iter_dataset(options)


class ExampleMap:
    """Makes the example of a global index, with a random generator of its own.

    It draws the same numbers as in Grain's `random_map`: by Philox (Salmon et al. 2011), keyed by
    the seed, from a counter that is the index. Grain's own takes 20 µs more an example, to set the
    state of a generator and to estimate what was read.
    """

    def __init__(
        self,
        mixture: Mixture,
        example: Callable[[tuple[int, Utterance | DamagedShard], np.random.Generator], Any],
        seed: int,
    ) -> None:
        self._mixture, self._example = mixture, example
        self._key = np.random.Philox(seed).state["state"]["key"]

    def __call__(self, index: int) -> Any:
        rng = np.random.Philox(key=self._key, counter=[0, 0, 0, index])
        return self._example(self._mixture[index], np.random.Generator(rng))


def _train_example(
    examples: RunExampleMaker | VocoderExampleMaker,
    drawn: tuple[int, Utterance | DamagedShard],
    rng: np.random.Generator,
) -> dict[str, np.ndarray] | Reject[int]:
    source, utterance = drawn
    if isinstance(utterance, DamagedShard):
        return Reject(source, utterance.path, DAMAGED, str(utterance))
    return examples.train((source, utterance), rng)


def _check(run: BaseRun, corpus: Corpus | Subset) -> None:
    """Raises Mistake where a corpus does not suit the run."""
    if isinstance(run, VocoderRun):
        if corpus.mel is not None:
            raise Mistake(f"data={corpus.path}: holds ready mel: a vocoder learns from the sound")
        return
    assert isinstance(run, Run)
    if not run.has_sound:  # that of the corpus is not read
        return
    _check_mel(corpus, run.mel)
    if corpus.mel is not None and (changes := run.data.augment.waveform_fields):
        names = ", ".join(changes)
        raise Mistake(f"data.augment: {names}: {corpus.path} holds ready mel, no sound")


def _check_mel(corpus: Corpus | Subset, cfg: Mel) -> None:
    """Raises Mistake where ready mel was made with other settings; `r` plays no part in it."""
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
