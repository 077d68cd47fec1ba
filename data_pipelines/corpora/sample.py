"""A seeded sample of a corpus, for commands that would take hours to read all of it."""

import numpy as np

from data_pipelines.corpora.corpus import Corpus
from data_pipelines.corpora.shard_reader import ShardReader

MANIFEST_SAMPLE = 300_000  # of a manifest, 10 us each
# Of shards, where every text is read together with its sound: 5 GB of LibriSpeech as FLAC.
SHARD_SAMPLE = 20_000


def sample_indices(corpus: Corpus, most: int, seed: int) -> list[int]:
    """Indices of up to `most` utterances in rising order, all where there are no more.

    most: 0 takes MANIFEST_SAMPLE or SHARD_SAMPLE, by the kind of corpus. The same for the same seed
    and size of corpus.
    """
    count = len(corpus)
    most = most or (SHARD_SAMPLE if isinstance(corpus, ShardReader) else MANIFEST_SAMPLE)
    if count <= most:
        return list(range(count))
    drawn = np.random.default_rng(seed).choice(count, most, replace=False, shuffle=False)
    found: list[int] = np.sort(drawn).tolist()
    return found
