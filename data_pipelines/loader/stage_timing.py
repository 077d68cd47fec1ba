"""Takes the chain from records to batches apart, so that each stage can be timed by itself.

The stages are those of `pipeline.train_batches`, with the same functions, on the same utterances.
One thread runs them, one after another.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
import dataclasses
import functools
from typing import Any

import grain
from jaxtyping import Float
import numpy as np

from data_pipelines.audio.sound import Sound
from data_pipelines.audio.spec_augment import RandomStreams, augment_mel
from data_pipelines.corpora.corpus import Corpus, load_utterance_sound
from data_pipelines.corpora.utterance import Utterance
from data_pipelines.examples.asr_example import TRANSFER_DTYPES, ExampleMaker, sound_to_mel
from data_pipelines.examples.interleave import asr_columns
from data_pipelines.examples.wave_augment import Effects
from data_pipelines.loader.batch_assembly import allocate_batch
from data_pipelines.loader.packing import BestFitPacking, ExampleColumns, write_rows
from data_pipelines.loader.reject_counts import RejectsBefore
from data_pipelines.reject import Reject
from data_pipelines.text.prompt import asr_prompt
from data_pipelines.text.tokenizer import Tokenizer
from melllm_jax.batch import Batch
from melllm_jax.config.run import Run
from melllm_jax.errors import Mistake
from melllm_jax.features.mel_filters import mel_rate


@dataclasses.dataclass(frozen=True)
class Stages:
    """A function for each stage, which does it for all utterances; in the order of the chain."""

    actions: Mapping[str, Callable[[], object]]
    utterances: int  # usable ones of those given
    audio: float  # seconds of sound that every stage but pack processes
    packed: float  # seconds of sound that pack processes, some of it several times


def make_stages(run: Run, tokenizer: Tokenizer, corpus: Corpus, indices: Iterable[int]) -> Stages:
    """The stages over the utterances at `indices`, without unusable ones; loads all into memory.

    read: the record or the manifest's line. decode: to 16 kHz samples (a manifest's files are read
    here). change and augment: as run.data.augment says, of sound and of mel; each seed is the
    index. mel, tokenise, assemble: one example. pack: into rows, and rows into batches. Ready mel
    has no decode, change and mel. Raises Mistake where no utterance is usable.
    """
    if run.model.front == "none":
        raise Mistake('model.front="none": the stages are those of speech: choose linear or conv')
    effects, prompt = Effects(run.data.augment), asr_prompt(tokenizer, run.text)
    maker = ExampleMaker(run, tokenizer, effects)
    make_example = lambda index: maker.train((0, corpus[index]), np.random.default_rng(index))
    tried = {int(index): make_example(int(index)) for index in indices}
    examples = {i: one for i, one in tried.items() if not isinstance(one, Reject)}
    if not examples:
        reasons = {one.reason for one in tried.values() if isinstance(one, Reject)}
        raise Mistake(f"data={corpus.path}: no utterance is usable: {', '.join(sorted(reasons))}")
    utterances = [corpus[index] for index in examples]
    draws = lambda: [RandomStreams(np.random.default_rng(index)) for index in examples]
    actions: dict[str, Callable[[], object]] = {
        "read": lambda: [corpus[index] for index in examples]
    }
    if corpus.mel is None:
        decode = lambda: [_mel_sound(one, run) for one in utterances]
        sounds, actions["decode"] = decode(), decode
        if run.data.augment.waveform_fields:
            actions["change"] = lambda: [
                sound.changed(lambda wave, draw=draw: effects(wave, draw))
                for sound, draw in zip(sounds, draws(), strict=True)
            ]
        mels = [
            sound_to_mel(sound, run.mel, one.id)
            for sound, one in zip(sounds, utterances, strict=True)
        ]
        actions["mel"] = lambda: [sound_to_mel(sound, run.mel, "") for sound in sounds]
        audio = sum(sound.seconds for sound in sounds)
    else:
        mels = [_ready_mel(one.mel) for one in utterances]
        audio = sum(map(len, mels)) * run.mel.hop_seconds
    ids = [tokenizer.encode(one.text) for one in utterances]
    rows = _repeat_examples(list(examples.values()), run)
    actions |= {
        "augment": lambda: [
            augment_mel(mel, run.data.augment, draw)
            for mel, draw in zip(mels, draws(), strict=True)
        ],
        "tokenise": lambda: [tokenizer.encode(one.text) for one in utterances],
        "assemble": lambda: [
            asr_columns(mel, words, prompt, r=run.mel.r, dtype=TRANSFER_DTYPES[run.data.wire])
            for mel, words in zip(mels, ids, strict=True)
        ],
        "pack": lambda: list(_batches(rows, run)),
    }
    return Stages(actions, len(examples), audio, audio * len(rows) / len(examples))


def _mel_sound(utterance: Utterance, run: Run) -> Sound:
    """The sound of an utterance at the rate that its mel is made from."""
    sound = load_utterance_sound(utterance)
    return sound.at(mel_rate(run.mel, sound.rate))


def _ready_mel(mel: Float[np.ndarray, "frames m"] | None) -> Float[np.ndarray, "frames m"]:
    assert mel is not None, "a corpus of ready mel has an utterance without"
    return mel


def _repeat_examples(
    examples: list[dict[str, np.ndarray]], run: Run
) -> list[dict[str, np.ndarray]]:
    """The examples, repeated until they would fill the packer's rows twice."""
    positions = sum(len(one["tokens"]) for one in examples)
    return examples * -(-2 * run.data.bins * run.data.t // positions)


def _batches(examples: Sequence[dict[str, Any]], run: Run) -> Iterator[Any]:
    """The batches of one lane."""
    packed = BestFitPacking(_ExampleList(examples), _no_reread, run.data.t, run.data.bins)
    count = run.data.b // run.data.lane_count
    return iter(packed.batch(count, batch_fn=functools.partial(_make_batch, run)))


def _no_reread(draw_index: int) -> "Future[Any]":
    raise AssertionError(f"example {draw_index} is asked for again, though no place was gone to")


def _make_batch(run: Run, rows: Sequence[Sequence[ExampleColumns]]) -> Batch:
    batch = allocate_batch(run, len(rows))
    write_rows(batch, 0, rows)
    return batch


class _ExampleList(grain.IterDataset):
    """Examples that are in memory already, in order."""

    def __init__(self, examples: Sequence[dict[str, np.ndarray]]) -> None:
        super().__init__()
        self._examples = examples

    def __iter__(self) -> grain.DatasetIterator:
        return _ExampleListIterator(self._examples)


class _ExampleListIterator(grain.DatasetIterator):
    def __init__(self, examples: Sequence[dict[str, np.ndarray]]) -> None:
        super().__init__()
        self._examples, self._at = examples, 0

    def __next__(self) -> dict[str, Any]:
        if self._at == len(self._examples):
            raise StopIteration
        self._at += 1
        index = self._at - 1
        return self._examples[index] | {"draw_index": index, "rejects_before": RejectsBefore(())}

    def get_state(self) -> dict[str, Any]:
        return {"next": self._at}

    def set_state(self, state: dict[str, Any]) -> None:
        self._at = state["next"]
