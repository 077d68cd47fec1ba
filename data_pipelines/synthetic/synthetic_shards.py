"""Writes the synthetic corpus as shards of ready mel, which `melllm quickstart` trains on."""

from collections.abc import Callable, Mapping
import concurrent.futures
import functools
import multiprocessing
import os

from etils import epath
from jaxtyping import Float32
import numpy as np

from data_pipelines.audio.file_io import to_flac
from data_pipelines.audio.log_mel import Moments
from data_pipelines.corpora import shard_index, shard_writer
from data_pipelines.corpora.utterance import Utterance
from data_pipelines.prepare.record_statistics import (
    RecordRows,
    SplitTotals,
    columns,
    loudness_by_source,
)
from data_pipelines.prepare.validate import (
    PreparedRecord,
    RecordConfig,
    make_records,
)
from data_pipelines.reject import Reject
from data_pipelines.synthetic import espeak
from data_pipelines.synthetic.grammar import Split
from melllm_jax import files
from melllm_jax.config.features import Mel
from melllm_jax.errors import Fault
from melllm_jax.features.mel_filters import SAMPLE_RATE

CHUNK = 16  # utterances given to a process at a time
LOUDEST = 0.99  # largest sample of a mixture: FLAC clips at 1
NOISE = 1  # in the seed: separates the noise's random numbers from those of words and voice

Snrs = tuple[float, float]


def write_shards(
    folder: epath.PathLike,
    counts: Mapping[Split, int],
    mel: Mel,
    *,
    seed: int = 0,
    snrs: Snrs | None = None,
    processes: int | None = None,
    progress: Callable[[], None] = lambda: None,
) -> shard_index.ShardIndex:
    """Speaks the corpus in `processes` (by default one a core) and writes its mel in shards.

    counts: utterances of each split; snrs: as of `make_utterance`. The shards are the same for any
    number of processes. `progress` is called after every utterance. The index is written last.
    Raises Mistake where the extra `demo` is not installed.
    """
    out = files.place(folder)
    out.mkdir(parents=True, exist_ok=True)
    written: dict[str, tuple[shard_index.Shard, ...]] = {}
    facts: dict[str, shard_index.SplitSummary] = {}
    tallies, moments = [], Moments()
    # Spawned, not forked: the parent may have threads, and espeak-ng wants a process of its own.
    context = multiprocessing.get_context("spawn")
    workers = processes or os.cpu_count() or 1
    with concurrent.futures.ProcessPoolExecutor(workers, mp_context=context) as pool:
        for split, count in counts.items():
            make = functools.partial(_make_record, split, seed, mel, snrs)
            writer = shard_writer.ShardWriter(out, split, per_shard=5000)
            rows = RecordRows()
            for line, made in enumerate(pool.map(make, range(count), chunksize=CHUNK)):
                writer.add(made.record, made.utterance.duration)
                rows.add(made, line)
                if split == "train":
                    moments += made.moments
                progress()
            written[split] = writer.close()
            tally = SplitTotals()
            tally.add(rows.array(), rows.names())
            facts[split] = tally.summary({})
            tallies.append(tally)
            shard_writer.write_columns(out, split, [columns(rows.array())], count)
    statistics = (
        shard_index.MelStatistics(mel.kind, mel.m, *moments.constants()) if moments.count else None
    )
    index = shard_index.ShardIndex(
        mel, written, facts, statistics=statistics, loudness=loudness_by_source(tallies)
    )
    shard_index.write_index(out, index)
    return index


def make_utterance(split: Split, index: int, seed: int = 0, snrs: Snrs | None = None) -> Utterance:
    """An utterance of the corpus, with its sound as FLAC.

    snrs: lowest and highest ratio in dB of speech over noise, drawn evenly; None adds no noise.
    """
    spoken = espeak.speak_utterance(split, index, seed)
    wave = spoken.wave
    if snrs is not None:
        rng = np.random.default_rng((seed, espeak.SPLITS.index(split), index, NOISE))
        wave = _add_noise(wave, rng.uniform(*snrs), rng)
    seconds = len(wave) / SAMPLE_RATE
    return Utterance(spoken.id, spoken.text, seconds, spoken.speaker, audio=to_flac(wave))


def _add_noise(
    wave: Float32[np.ndarray, " w"], snr: float, rng: np.random.Generator
) -> Float32[np.ndarray, " w"]:
    """Speech with pink noise, whose power falls with frequency as that of speech does."""
    bins = np.fft.rfft(rng.standard_normal(len(wave)))
    noise = np.fft.irfft(bins / np.sqrt(np.maximum(np.arange(len(bins)), 1)), len(wave))
    level = np.sqrt(np.mean(wave**2) / np.mean(noise**2)) * 10 ** (-snr / 20)
    mixed = wave + level * noise
    return np.asarray(mixed * min(1.0, LOUDEST / np.abs(mixed).max()), np.float32)


def _make_record(
    split: Split, seed: int, mel: Mel, snrs: Snrs | None, index: int
) -> PreparedRecord:
    (found,) = make_records(make_utterance(split, index, seed, snrs), RecordConfig("mel", mel))
    if isinstance(found, Reject):
        raise Fault(f"{found.id}: espeak-ng said nothing usable: {found.detail}")
    return found
