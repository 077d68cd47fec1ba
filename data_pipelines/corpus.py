"""The synthetic corpus as shards of ready mel: what `melllm quickstart` trains on."""

from collections.abc import Callable, Mapping
import concurrent.futures
import functools
import multiprocessing
import os

from etils import epath
from jaxtyping import Float32
import numpy as np

from data_pipelines import shards, synth
from data_pipelines.audio import to_flac
from data_pipelines.checked import Made, Making, Refused, made
from data_pipelines.grammar import Split
from data_pipelines.mel import Moments
from data_pipelines.tally import Rows, Tally, columns, spread
from data_pipelines.utterance import Utterance
from melllm_jax.config import Mel
from melllm_jax.errors import Fault
from melllm_jax.mel_tables import RATE

CHUNK = 16  # utterances a process speaks before it is given more
LOUDEST = 0.99  # largest sample of a mixture: FLAC clips at 1
NOISE = 1  # tells the noise's random numbers from those of the words and the voice

Snrs = tuple[float, float]


def write_shards(
    folder: epath.PathLike,
    counts: Mapping[Split, int],
    mel: Mel,
    *,
    seed: int = 0,
    snrs: Snrs | None = None,
    processes: int | None = None,
    tick: Callable[[], None] = lambda: None,
) -> shards.Index:
    """Speak the corpus with `processes` (by default one a core) and write its mel in shards.

    counts: utterances of each split; snrs: as of `utterance`. The shards are the same for any
    number of processes. tick is called after every utterance. The index is written last. Raises
    Mistake where the extra `demo` is not installed.
    """
    out = epath.Path(folder)
    out.mkdir(parents=True, exist_ok=True)
    written: dict[str, tuple[shards.Shard, ...]] = {}
    facts: dict[str, shards.Facts] = {}
    tallies, moments = [], Moments()
    # Spawned, not forked: the parent may have threads, and espeak-ng wants a process of its own.
    context = multiprocessing.get_context("spawn")
    workers = processes or os.cpu_count() or 1
    with concurrent.futures.ProcessPoolExecutor(workers, mp_context=context) as pool:
        for split, count in counts.items():
            make = functools.partial(_made, split, seed, mel, snrs)
            writer = shards.Writer(out, split, per_shard=5000)
            rows = Rows()
            for line, made in enumerate(pool.map(make, range(count), chunksize=CHUNK)):
                writer.add(made.record, made.utterance.duration)
                rows.add(made, line)
                if split == "train":
                    moments += made.moments
                tick()
            written[split] = writer.close()
            tally = Tally()
            tally.add(rows.array(), rows.names())
            facts[split] = tally.facts({})
            tallies.append(tally)
            shards.write_columns(out, split, [columns(rows.array())], count)
    statistics = shards.Statistics(mel.kind, mel.m, *moments.constants()) if moments.count else None
    index = shards.Index(mel, written, facts, statistics=statistics, loudness=spread(tallies))
    shards.write_index(out, index)
    return index


def utterance(split: Split, index: int, seed: int = 0, snrs: Snrs | None = None) -> Utterance:
    """An utterance of the corpus with its sound as FLAC.

    snrs: lowest and highest ratio in dB of speech over noise, drawn evenly; None adds no noise.
    """
    spoken = synth.utterance(split, index, seed)
    wave = spoken.wave
    if snrs is not None:
        rng = np.random.default_rng((seed, synth.SPLITS.index(split), index, NOISE))
        wave = _noisy(wave, rng.uniform(*snrs), rng)
    seconds = len(wave) / RATE
    return Utterance(spoken.id, spoken.text, seconds, spoken.speaker, audio=to_flac(wave))


def _noisy(
    wave: Float32[np.ndarray, " w"], snr: float, rng: np.random.Generator
) -> Float32[np.ndarray, " w"]:
    """Speech in pink noise, whose power falls with frequency as that of speech does."""
    bins = np.fft.rfft(rng.standard_normal(len(wave)))
    noise = np.fft.irfft(bins / np.sqrt(np.maximum(np.arange(len(bins)), 1)), len(wave))
    level = np.sqrt(np.mean(wave**2) / np.mean(noise**2)) * 10 ** (-snr / 20)
    mixed = wave + level * noise
    return np.asarray(mixed * min(1.0, LOUDEST / np.abs(mixed).max()), np.float32)


def _made(split: Split, seed: int, mel: Mel, snrs: Snrs | None, index: int) -> Made:
    (found,) = made(utterance(split, index, seed, snrs), Making("mel", mel))
    if isinstance(found, Refused):
        raise Fault(f"{found.id}: espeak-ng said nothing usable: {found.detail}")
    return found
