"""Writes synthetic speech as shards: of the grammar of quickstart, of a text, or of questions."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
import concurrent.futures
import dataclasses
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
from data_pipelines.synthetic import espeak, spoken_text
from data_pipelines.synthetic.grammar import Split, sentence
from data_pipelines.synthetic.spoken_questions import SpokenQuestion
from data_pipelines.synthetic.spoken_text import Manner
from melllm_jax import files
from melllm_jax.config.features import Mel
from melllm_jax.features.mel_filters import SAMPLE_RATE

CHUNK = 16  # utterances given to a process at a time
LOUDEST = 0.99  # largest sample of a mixture: FLAC clips at 1
NOISE = 1  # in the seed: separates the noise's random numbers from those of words and voice

SINGLE_VOICE, WORDS_PER_MINUTE, PITCH = "en-us", 170, 50

Snrs = tuple[float, float]
Jobs = Mapping[Split, Sequence[Callable[[], Utterance]]]


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
    """Writes the corpus of the grammar, as ready mel, by `write_utterances`.

    counts: utterances of each split; snrs: as of `make_utterance`.
    """
    jobs = grammar_jobs(counts, seed, snrs)
    record_config = RecordConfig("mel", mel)
    return write_utterances(folder, jobs, record_config, processes=processes, progress=progress)


def write_utterances(
    folder: epath.PathLike,
    jobs: Jobs,
    record_config: RecordConfig,
    *,
    processes: int | None = None,
    progress: Callable[[], None] = lambda: None,
) -> shard_index.ShardIndex:
    """Makes the utterances in `processes` (by default one a core) and writes them in shards.

    jobs: of each split, functions of an utterance each, which are pickled; record_config: what is
    stored of them, FLAC or mel. The shards are the same for any number of processes. What cannot be
    used is left out and counted. `progress` is called after every utterance. The index is written
    last. Raises Mistake where an extra that a voice needs is not installed.
    """
    out = files.place(folder)
    out.mkdir(parents=True, exist_ok=True)
    written: dict[str, tuple[shard_index.Shard, ...]] = {}
    facts: dict[str, shard_index.SplitSummary] = {}
    tallies, moments = [], Moments()
    make = functools.partial(_make_record, record_config)
    # Spawned, not forked: the parent may have threads, and espeak-ng wants a process of its own.
    context = multiprocessing.get_context("spawn")
    workers = processes or os.cpu_count() or 1
    with concurrent.futures.ProcessPoolExecutor(workers, mp_context=context) as pool:
        for split, some in jobs.items():
            writer = shard_writer.ShardWriter(out, split, per_shard=5000)
            rows, rejects = RecordRows(), Counter[str]()
            for line, made in enumerate(pool.map(make, some, chunksize=CHUNK)):
                progress()
                if isinstance(made, Reject):
                    rejects[made.reason] += 1
                    continue
                writer.add(made.record, made.utterance.duration)
                rows.add(made, line)
                if split == "train":
                    moments += made.moments
            written[split] = writer.close()
            tally = SplitTotals()
            tally.add(rows.array(), rows.names())
            facts[split] = tally.summary(rejects)
            tallies.append(tally)
            shard_writer.write_columns(out, split, [columns(rows.array())], tally.count)
    mel = record_config.mel
    statistics = (
        shard_index.MelStatistics(mel.kind, mel.m, *moments.constants()) if moments.count else None
    )
    index = shard_index.ShardIndex(
        mel if record_config.store == "mel" else None,
        written,
        facts,
        statistics=statistics,
        loudness=loudness_by_source(tallies),
    )
    shard_index.write_index(out, index)
    return index


def grammar_jobs(counts: Mapping[Split, int], seed: int = 0, snrs: Snrs | None = None) -> Jobs:
    """The jobs of the corpus of the grammar."""
    return {
        split: [functools.partial(make_utterance, split, at, seed, snrs) for at in range(count)]
        for split, count in counts.items()
    }


def single_voice_jobs(counts: Mapping[Split, int], seed: int = 0) -> Jobs:
    """The jobs of the grammar's sentences in one voice as it is, with nothing drawn but the words.

    The voice is espeak-ng's "en-us", at 170 words a minute.
    """
    return {
        split: [functools.partial(make_plain_utterance, split, at, seed) for at in range(count)]
        for split, count in counts.items()
    }


def make_plain_utterance(split: Split, index: int, seed: int = 0) -> Utterance:
    """An utterance of `single_voice_jobs`, with its sound as FLAC."""
    rng = np.random.default_rng((seed, espeak.SPLITS.index(split), index))
    text = sentence(split, rng)
    wave = espeak.speak(text, SINGLE_VOICE, WORDS_PER_MINUTE, PITCH)
    name = f"{split}-{index:06d}"
    return _encode(
        espeak.SpokenUtterance(name, text, SINGLE_VOICE, wave), (seed, split, index), None
    )


def text_jobs(
    sentences: Mapping[Split, Sequence[str]], manner: Manner, snrs: Snrs | None = None
) -> Jobs:
    """The jobs that speak the sentences of each split, in their order."""
    return {
        split: [
            functools.partial(make_spoken_sentence, text, split, at, manner, snrs)
            for at, text in enumerate(some)
        ]
        for split, some in sentences.items()
    }


def question_jobs(
    questions: Mapping[Split, Sequence[SpokenQuestion]], manner: Manner, snrs: Snrs | None = None
) -> Jobs:
    """The jobs that speak the questions of each split that has some, in their order."""
    return {
        split: [
            functools.partial(make_spoken_question, question, split, at, manner, snrs)
            for at, question in enumerate(some)
        ]
        for split, some in questions.items()
        if some
    }


def make_utterance(split: Split, index: int, seed: int = 0, snrs: Snrs | None = None) -> Utterance:
    """An utterance of the corpus, with its sound as FLAC.

    snrs: lowest and highest ratio in dB of speech over noise, drawn evenly; None adds no noise.
    """
    return _encode(espeak.speak_utterance(split, index, seed), (seed, split, index), snrs)


def make_spoken_sentence(
    text: str, split: Split, index: int, manner: Manner, snrs: Snrs | None = None
) -> Utterance:
    """The utterance of a sentence, with its sound as FLAC; snrs: as of `make_utterance`."""
    spoken = spoken_text.speak_sentence(text, split, index, manner)
    return _encode(spoken, (manner.seed, split, index), snrs)


def make_spoken_question(
    question: SpokenQuestion, split: Split, index: int, manner: Manner, snrs: Snrs | None = None
) -> Utterance:
    """The task that a spoken question is, its sound as of `make_spoken_sentence`."""
    heard, task = make_spoken_sentence(question.text, split, index, manner, snrs), question.task
    return dataclasses.replace(
        heard,
        text=task.turns[-1].words,
        turns=task.turns,
        task=task.task,
        metric=task.metric,
        answers=task.answers,
        options=task.options,
    )


def _encode(
    spoken: espeak.SpokenUtterance, place: tuple[int, Split, int], snrs: Snrs | None
) -> Utterance:
    wave = spoken.wave
    if snrs is not None:
        seed, split, index = place
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
    record_config: RecordConfig, job: Callable[[], Utterance]
) -> PreparedRecord | Reject[str]:
    (found,) = make_records(job(), record_config)
    return found
