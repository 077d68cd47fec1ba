"""A seeded sample of a corpus: what a command reads where reading all would take hours."""

import numpy as np

from data_pipelines.corpora.corpus import Corpus
from data_pipelines.corpora.shard_reader import ShardReader

MANIFEST_SAMPLE = 300_000  # of a manifest, 10 us each
SHARD_SAMPLE = (
    20_000  # of shards, whose sound comes along with every text: 5 GB of LibriSpeech as FLAC
)


def sample_indices(corpus: Corpus, most: int, seed: int) -> list[int]:
    """Indices of up to `most` utterances in rising order, all of them where there are no more.

    `most` = 0 is LINES or RECORDS, by what the corpus lies in. The same for the same seed and size.
    """
    count = len(corpus)
    most = most or (SHARD_SAMPLE if isinstance(corpus, ShardReader) else MANIFEST_SAMPLE)
    if count <= most:
        return list(range(count))
    drawn = np.random.default_rng(seed).choice(count, most, replace=False, shuffle=False)
    found: list[int] = np.sort(drawn).tolist()
    return found
