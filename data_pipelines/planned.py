"""The tasks of preparing a folder: which lines become which shard."""

from collections.abc import Iterator
import mmap
import os

from etils import epath
import numpy as np

from data_pipelines.duplicates import ranks
from data_pipelines.manifest import SUFFIX, mapped
from data_pipelines.sources import open_source, splits
from data_pipelines.task import Task
from melllm_jax.errors import Mistake

CHUNK = 1 << 24  # bytes searched at a time for line ends


def tasks(source: epath.PathLike, per_shard: int) -> list[Task]:
    """Those of every split of a folder, so many utterances each, in the order that records have.

    A folder of manifests is searched for line ends only. Raises Mistake where there is nothing to
    prepare, or only mel, which has lost its sound.
    """
    folder, found = epath.Path(source), []
    for split in ranks(splits(folder)):
        path = folder / f"{split}{SUFFIX}"
        if path.exists():
            cuts = _cuts(mapped(path), per_shard)
        else:
            path, corpus = folder, open_source(folder, split)
            if corpus.mel is not None:
                raise Mistake(f"source={source}: holds ready mel: preparing starts from audio")
            starts = range(0, len(corpus), per_shard)
            stops = [min(start + per_shard, len(corpus)) for start in starts]
            cuts = ((a, b, a, b - a) for a, b in zip(starts, stops, strict=True))
        mine = [Task(split, i, os.fspath(path), *cut) for i, cut in enumerate(cuts)]
        if not mine:
            raise Mistake(f"{path}: has 0 lines: needs one an utterance")
        found += mine
    return found


def _cuts(content: mmap.mmap | bytes, per_shard: int) -> Iterator[tuple[int, int, int, int]]:
    """First byte, byte after the last, first line and filled lines of each part."""
    start = line = 0  # of the part
    begins = number = filled = 0  # of the next line: its first byte and number; those of the part
    for base in range(0, len(content), CHUNK):
        part = np.frombuffer(content[base : base + CHUNK], np.uint8)
        stops = np.flatnonzero(part == ord("\n")) + base
        if base + CHUNK >= len(content) and (not stops.size or stops[-1] + 1 < len(content)):
            stops = np.append(stops, len(content))
        if not stops.size:
            continue
        has = stops > np.concatenate([[begins], stops[:-1] + 1])
        counts = filled + np.cumsum(has)
        for last in np.flatnonzero(has & (counts % per_shard == 0)).tolist():
            stop = int(stops[last]) + 1
            yield start, min(stop, len(content)), line, per_shard
            start, line = stop, number + last + 1
        begins, number, filled = int(stops[-1]) + 1, number + len(stops), int(counts[-1])
        filled %= per_shard
    if filled:
        yield start, len(content), line, filled
