"""A seeded sample of a corpus: what a command reads where reading all would take hours."""

import numpy as np

from data_pipelines.reader import Shards
from data_pipelines.sources import Corpus

LINES = 300_000  # of a manifest, 10 us each
RECORDS = 20_000  # of shards, whose sound comes along with every text: 5 GB of LibriSpeech as FLAC


def indices(corpus: Corpus, most: int, seed: int) -> list[int]:
    """Indices of up to `most` utterances in rising order, all of them where there are no more.

    `most` = 0 is LINES or RECORDS, by what the corpus lies in. The same for the same seed and size.
    """
    count = len(corpus)
    most = most or (RECORDS if isinstance(corpus, Shards) else LINES)
    if count <= most:
        return list(range(count))
    drawn = np.random.default_rng(seed).choice(count, most, replace=False, shuffle=False)
    found: list[int] = np.sort(drawn).tolist()
    return found
