"""A trained run that reads speech: its config, tokenizer and weights, and the loop over batches."""

from collections.abc import Iterable, Iterator, Sequence
import dataclasses
import itertools
import time

import jax
import numpy as np

from data_pipelines.corpora.corpus import Corpus
from data_pipelines.corpora.utterance import ASR
from data_pipelines.examples.asr_example import EvalExample
from data_pipelines.loader import pipeline
from data_pipelines.reject import Reject
from data_pipelines.text.prompt import asr_prompt
from data_pipelines.text.tokenizer import Tokenizer
from melllm_jax.config.run import Run
from melllm_jax.errors import Mistake
from melllm_jax.evaluation.wer import Normalizer, Score, score_transcripts
from melllm_jax.inference.generate import Decoder, prompt_batch
from melllm_jax.inference.sampling import DecodingOptions
from melllm_jax.models.speech_lm import SpeechLM

ANSWER_TOKENS = 128  # of an answer, which may be as long as this to the shortest question


@dataclasses.dataclass(frozen=True)
class Transcript:
    """What was heard in one utterance."""

    id: str
    text: str
    seconds: float  # of audio
    looped: bool  # the repetition guard stopped it
    cut: bool  # the token limit stopped it

    @property
    def line(self) -> str:
        """The text in one line: a blank for each line break, of whatever kind."""
        return " ".join(self.text.splitlines())


class Transcriber:
    """Reads trials in batches with a model; counts seconds of work and of compiling apart."""

    def __init__(self, model: SpeechLM, tokenizer: Tokenizer, run: Run, how: DecodingOptions):
        self.decoder = Decoder(model, asr_prompt(tokenizer, run.text).end, how)
        self._tokenizer = tokenizer
        self.seconds = 0.0  # of work: features, prefill, generation; without compiling

    @property
    def compile_seconds(self) -> float:
        """Seconds spent compiling so far."""
        return self.decoder.compile_seconds

    def __call__(self, trials: Iterable[EvalExample], rows: int) -> Iterator[Transcript]:
        """Transcripts in the order of `trials`, decoded `rows` at a time."""
        parts = _parts(trials, rows)
        while True:
            began, compiling = time.perf_counter(), self.compile_seconds
            part = next(parts, None)
            found = [] if part is None else self._read(part, rows)
            self.seconds += time.perf_counter() - began - (self.compile_seconds - compiling)
            if part is None:
                return
            yield from found

    def score(
        self, trials: Sequence[EvalExample], rows: int, normalizer: Normalizer = "none"
    ) -> tuple[list[Transcript], Score]:
        """Transcripts of all `trials`, decoded `rows` at a time, and their word error rate."""
        heard = list(self(trials, rows))
        references = [trial.reference for trial in trials]
        return heard, score_transcripts(references, [t.text for t in heard], normalizer)

    def _limit(self, trial: EvalExample) -> int:
        """Most tokens of an answer: by the seconds of sound, which says little of an answer's."""
        by_sound = self.decoder.options.limit(trial.duration)
        return by_sound if trial.task == ASR else max(by_sound, ANSWER_TOKENS)

    def _read(self, part: Sequence[EvalExample], rows: int) -> list[Transcript]:
        limits = np.zeros(rows, np.int32)
        limits[: len(part)] = [self._limit(trial) for trial in part]
        batch = prompt_batch([trial.columns for trial in part], rows)
        out = jax.device_get(self.decoder(batch, limits))
        return [
            Transcript(
                trial.id,
                self._tokenizer.decode(out.tokens[i, : out.lengths[i]].tolist()),
                trial.duration,
                bool(out.looped[i]),
                not (out.ended[i] or out.looped[i]),
            )
            for i, trial in enumerate(part)
        ]


def read_trials(
    corpus: Corpus, run: Run, tokenizer: Tokenizer, order: Sequence[int]
) -> tuple[list[EvalExample], list[Reject[int]]]:
    """The utterances at `order` to transcribe, and those that cannot be used."""
    trials: list[EvalExample] = []
    rejects: list[Reject[int]] = []
    for found in pipeline.eval_examples(corpus, run, tokenizer, order=order):
        if isinstance(found, EvalExample):
            trials.append(found)
        else:
            rejects.append(found)
    return trials, rejects


def _parts(trials: Iterable[EvalExample], rows: int) -> Iterator[list[EvalExample]]:
    trials = iter(trials)
    while part := list(itertools.islice(trials, rows)):
        yield part


def round_up_rows(rows: int, devices: int | None = None) -> int:
    """`rows`, or the next number that `devices` share evenly, by default all that are here.

    Raises Mistake below 1.
    """
    if rows < 1:
        raise Mistake(f"batch={rows}: must be positive")
    return rows + -rows % (devices or jax.device_count())
