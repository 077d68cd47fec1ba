"""The chain from records to batches taken apart, so that each stage can be timed by itself.

The stages are those of `pipeline.train_batches`, by the same functions, on the same utterances; one
thread runs them, one after another.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
import dataclasses
import functools
from typing import Any

import grain
from jaxtyping import Float
import numpy as np

from data_pipelines.augment import Draws, augmented
from data_pipelines.examples import WIRE, Examples, Reject, framed
from data_pipelines.interleave import asr_example
from data_pipelines.packed import Example, Packed, fill
from data_pipelines.prompt import asr_prompt
from data_pipelines.screen import Lost
from data_pipelines.sheet import blank
from data_pipelines.sources import Corpus, sound
from data_pipelines.text import Tokenizer
from data_pipelines.waves import Effects
from melllm_jax.batch import Batch
from melllm_jax.config import Run
from melllm_jax.errors import Mistake
from melllm_jax.mel_tables import HOP, RATE


@dataclasses.dataclass(frozen=True)
class Stages:
    """What does each stage over all utterances, in the order of the chain."""

    actions: Mapping[str, Callable[[], object]]
    utterances: int  # usable ones of those asked for
    audio: float  # seconds of sound that every stage but pack works on
    packed: float  # seconds of sound that pack works on, some of it several times


def stages(run: Run, tokenizer: Tokenizer, corpus: Corpus, indices: Iterable[int]) -> Stages:
    """The stages over the utterances at `indices`, unusable ones left out; all is in memory then.

    read: the record or the manifest's line. decode: to 16 kHz samples (a manifest's files are read
    here). change and augment: as run.data.augment says, of sound and of mel; each seed is the
    index. mel, tokenise, assemble: one example. pack: into rows, and rows into batches. Ready mel
    has no decode, change and mel. Raises Mistake where no utterance is usable.
    """
    effects, prompt = Effects(run.data.augment), asr_prompt(tokenizer, run.text)
    made = Examples(run, tokenizer, effects)
    trial = lambda index: made.train((0, corpus[index]), np.random.default_rng(index))
    tried = {int(index): trial(int(index)) for index in indices}
    examples = {i: one for i, one in tried.items() if not isinstance(one, Reject)}
    if not examples:
        reasons = {one.reason for one in tried.values() if isinstance(one, Reject)}
        raise Mistake(f"data={corpus.path}: no utterance is usable: {', '.join(sorted(reasons))}")
    utterances = [corpus[index] for index in examples]
    draws = lambda: [Draws(np.random.default_rng(index)) for index in examples]
    actions: dict[str, Callable[[], object]] = {
        "read": lambda: [corpus[index] for index in examples]
    }
    if corpus.mel is None:
        waves = [sound(one) for one in utterances]
        actions["decode"] = lambda: [sound(one) for one in utterances]
        if run.data.augment.on_sound:
            actions["change"] = lambda: [
                effects(wave, draw) for wave, draw in zip(waves, draws(), strict=True)
            ]
        mels = [framed(wave, run.mel, one.id) for wave, one in zip(waves, utterances, strict=True)]
        actions["mel"] = lambda: [framed(wave, run.mel, "") for wave in waves]
        audio = sum(wave.size for wave in waves) / RATE
    else:
        mels = [_ready(one.mel) for one in utterances]
        audio = sum(map(len, mels)) * HOP / RATE
    ids = [tokenizer.encode(one.text) for one in utterances]
    rows = _repeated(list(examples.values()), run)
    actions |= {
        "augment": lambda: [
            augmented(mel, run.data.augment, draw) for mel, draw in zip(mels, draws(), strict=True)
        ],
        "tokenise": lambda: [tokenizer.encode(one.text) for one in utterances],
        "assemble": lambda: [
            asr_example(mel, words, prompt, r=run.mel.r, dtype=WIRE[run.data.wire])
            for mel, words in zip(mels, ids, strict=True)
        ],
        "pack": lambda: list(_batches(rows, run)),
    }
    return Stages(actions, len(examples), audio, audio * len(rows) / len(examples))


def _ready(mel: Float[np.ndarray, "frames m"] | None) -> Float[np.ndarray, "frames m"]:
    assert mel is not None, "a corpus of ready mel has an utterance without"
    return mel


def _repeated(examples: list[dict[str, np.ndarray]], run: Run) -> list[dict[str, np.ndarray]]:
    """The examples so often that they would fill the packer's rows twice."""
    positions = sum(len(one["tokens"]) for one in examples)
    return examples * -(-2 * run.data.bins * run.data.t // positions)


def _batches(examples: Sequence[dict[str, Any]], run: Run) -> Iterator[Any]:
    """Batches of one lane."""
    packed = Packed(_Made(examples), _never, run.data.t, run.data.bins)
    count = run.data.b // run.data.streams
    return iter(packed.batch(count, batch_fn=functools.partial(_laid, run)))


def _never(turn: int) -> "Future[Any]":
    raise AssertionError(f"example {turn} is asked for again, though no place was gone to")


def _laid(run: Run, rows: Sequence[Sequence[Example]]) -> Batch:
    batch = blank(run, len(rows))
    fill(batch, 0, rows)
    return batch


class _Made(grain.IterDataset):
    """Examples that are there already, in order."""

    def __init__(self, examples: Sequence[dict[str, np.ndarray]]) -> None:
        super().__init__()
        self._examples = examples

    def __iter__(self) -> grain.DatasetIterator:
        return _MadeIterator(self._examples)


class _MadeIterator(grain.DatasetIterator):
    def __init__(self, examples: Sequence[dict[str, np.ndarray]]) -> None:
        super().__init__()
        self._examples, self._at = examples, 0

    def __next__(self) -> dict[str, Any]:
        if self._at == len(self._examples):
            raise StopIteration
        self._at += 1
        return self._examples[self._at - 1] | {"turn": self._at - 1, "lost": Lost(())}

    def get_state(self) -> dict[str, Any]:
        return {"next": self._at}

    def set_state(self, state: dict[str, Any]) -> None:
        self._at = state["next"]
