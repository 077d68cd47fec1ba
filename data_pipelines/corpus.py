"""The synthetic corpus as shards of ready mel: what `melllm quickstart` trains on."""

from collections.abc import Callable, Mapping
import concurrent.futures
import functools
import multiprocessing
import os

from etils import epath

from data_pipelines import shards, synth
from data_pipelines.audio import to_flac
from data_pipelines.examples import Reject
from data_pipelines.grammar import Split
from data_pipelines.prepare import record
from data_pipelines.utterance import Utterance
from melllm_jax.config import Mel
from melllm_jax.errors import Fault
from melllm_jax.mel_tables import RATE

CHUNK = 16  # utterances a process speaks before it is given more


def write_shards(
    folder: epath.PathLike,
    counts: Mapping[Split, int],
    mel: Mel,
    *,
    seed: int = 0,
    processes: int | None = None,
    tick: Callable[[], None] = lambda: None,
) -> shards.Index:
    """Speak the corpus with `processes` (by default one a core) and write its mel in shards.

    counts: utterances of each split. The shards are the same for any number of processes. tick is
    called after every utterance. The index is written last. Raises Mistake where the extra `demo`
    is not installed.
    """
    out = epath.Path(folder)
    out.mkdir(parents=True, exist_ok=True)
    written: dict[str, tuple[shards.Shard, ...]] = {}
    # Spawned, not forked: the parent may have threads, and espeak-ng wants a process of its own.
    context = multiprocessing.get_context("spawn")
    workers = processes or os.cpu_count() or 1
    with concurrent.futures.ProcessPoolExecutor(workers, mp_context=context) as pool:
        for split, count in counts.items():
            make = functools.partial(_record, split, seed, mel)
            writer = shards.Writer(out, split, per_shard=5000)
            for made in pool.map(make, range(count), chunksize=CHUNK):
                writer.add(*made)
                tick()
            written[split] = writer.close()
    index = shards.Index(mel, written)
    shards.write_index(out, index)
    return index


def utterance(split: Split, index: int, seed: int = 0) -> Utterance:
    """An utterance of the corpus with its sound as FLAC."""
    spoken = synth.utterance(split, index, seed)
    seconds = len(spoken.wave) / RATE
    flac = to_flac(spoken.wave)
    return Utterance(spoken.id, spoken.text, seconds, spoken.speaker, audio=flac)


def _record(split: Split, seed: int, mel: Mel, index: int) -> tuple[bytes, float]:
    made = record(utterance(split, index, seed), mel)
    if isinstance(made, Reject):
        raise Fault(f"{made.id}: espeak-ng said nothing usable: {made.detail}")
    return made
