import numpy as np

from data_pipelines.corpora.manifest import Manifest
from data_pipelines.corpora.sample import MANIFEST_SAMPLE, sample_indices


class Lines(Manifest):
    """A corpus of so many utterances, none of which is read."""

    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count


def lines(count, most, seed=0):
    return sample_indices(Lines(count), most, seed)


def test_indices_of_a_small_corpus_are_all():
    assert lines(5, 5) == lines(5, 9) == [0, 1, 2, 3, 4]


def test_indices_of_a_large_corpus_are_some_rising_and_the_same_for_a_seed():
    found = lines(50_000_000, 1000)
    assert len(set(found)) == 1000
    assert (np.diff(found) > 0).all() and found[0] >= 0 and found[-1] < 50_000_000
    assert found == lines(50_000_000, 1000) != lines(50_000_000, 1000, 1)
    assert 24e6 < np.mean(found) < 26e6


def test_indices_without_a_number_are_those_of_so_many_lines():
    assert len(lines(MANIFEST_SAMPLE + 7, 0)) == MANIFEST_SAMPLE
