from collections import defaultdict

import numpy as np
import pytest

from data_pipelines.prepare import deduplicate
from data_pipelines.prepare.record_statistics import ROW


def rows(sounds, names, line=0):
    found = np.zeros(len(sounds), ROW)
    found["sound"] = np.array(sounds)[:, None]
    found["name"] = np.array(names)[:, None]
    found["line"] = np.arange(len(sounds)) + line
    return found


def lost(parts, sounds=True, order=1):
    """(rank, shard, row) → (reason, rank and line of the one that stays), by way of bundles."""
    buckets, losses, found = defaultdict(list), defaultdict(list), {}
    for (rank, shard), part in list(parts.items())[::order]:
        for bucket, content in deduplicate.bundles(part, rank, shard, sounds):
            buckets[bucket] += [content, content]  # as where a runner sends it again
    for contents in buckets.values():
        for place, content in deduplicate.find_repeats(contents):
            losses[place].append(content)
    for place, contents in losses.items():
        for loss in deduplicate.merge_repeats(contents):
            reason = deduplicate.REASONS[loss["kind"]]
            found[(*place, int(loss["row"]))] = (reason, int(loss["rank"]), int(loss["line"]))
    return found


def test_splits_to_train_on_come_last():
    assert deduplicate.sort_splits({"train", "valid", "dev"}) == ["dev", "valid", "train"]
    found = deduplicate.sort_splits({"train-other-500", "train-clean-100", "validated"})
    assert found == ["validated", "train-clean-100", "train-other-500"]


def test_records_that_repeat_an_earlier_one_are_lost():
    parts = {
        (0, 0): rows([1, 2], [1, 2]),
        (1, 0): rows([3, 2, 1], [3, 4, 5]),
        (1, 1): rows([4, 3], [3, 6], line=3),
    }
    expected = {
        (1, 0, 1): ("duplicate", 0, 1),
        (1, 0, 2): ("duplicate", 0, 0),
        (1, 1, 0): ("duplicate id", 1, 0),
        (1, 1, 1): ("duplicate", 1, 0),
    }
    assert lost(parts) == lost(parts, order=-1) == expected
    assert lost(parts, sounds=False) == {(1, 1, 0): ("duplicate id", 1, 0)}


def test_an_id_of_another_split_is_no_repetition():
    assert lost({(0, 0): rows([1], [7]), (1, 0): rows([2], [7])}) == {}


@pytest.mark.parametrize("half", [0, 1])
def test_digests_that_share_one_half_repeat_nothing(half):
    found = rows([7, 7, 7], [1, 2, 3])
    found["sound"][:, half] += np.arange(3, dtype=np.uint64) * deduplicate.BUCKETS  # of one bucket
    assert lost({(0, 0): found}) == {}


def test_losses_of_many_records_are_those_of_a_plain_search():
    rng = np.random.default_rng(0)
    parts, seen, expected = {}, {}, set()
    for rank in range(2):
        for shard in range(5):
            sounds = rng.integers(0, 2**62, 8)[rng.integers(0, 8, 100)] if shard % 2 else None
            sounds = rng.integers(0, 300, 100) if sounds is None else sounds
            parts[rank, shard] = rows(sounds, np.arange(100) + 100 * shard)
            for row, sound in enumerate(sounds):
                if seen.setdefault(int(sound), (rank, shard, row)) != (rank, shard, row):
                    expected.add((rank, shard, row))
    assert lost(parts).keys() == expected
