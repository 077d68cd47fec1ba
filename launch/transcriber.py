"""A trained run that reads speech: its config, tokenizer and weights, and the loop over batches."""

from collections.abc import Iterable, Iterator, Sequence
import dataclasses
import itertools
import time

import jax
import numpy as np

from data_pipelines import text
from data_pipelines.examples import Trial
from data_pipelines.prompt import asr_prompt
from data_pipelines.text import Tokenizer
from melllm_jax import config, layout, rundir
from melllm_jax.checkpoint import Checkpoints
from melllm_jax.decode import Decoder, Decoding, prompts
from melllm_jax.errors import Mistake
from melllm_jax.model import SpeechLM
from melllm_jax.update import Update


@dataclasses.dataclass(frozen=True)
class Transcript:
    """What was heard in one utterance."""

    id: str
    text: str
    seconds: float  # of audio
    looped: bool  # the repetition guard stopped it
    cut: bool  # the token limit stopped it


class Transcriber:
    """Reads trials in batches with a model; counts seconds of work and of compiling apart."""

    def __init__(self, model: SpeechLM, tokenizer: Tokenizer, run: config.Run, how: Decoding):
        self.decoder = Decoder(model, asr_prompt(tokenizer, run.text).end, how)
        self._tokenizer = tokenizer
        self.seconds = 0.0  # of work: features, prefill, generation; without compiling

    @property
    def compiling(self) -> float:
        """Seconds spent compiling so far."""
        return self.decoder.compiling

    def __call__(self, trials: Iterable[Trial], rows: int) -> Iterator[Transcript]:
        """Transcripts in the order of `trials`, decoded `rows` at a time."""
        parts = _parts(trials, rows)
        while True:
            began, compiling = time.perf_counter(), self.compiling
            part = next(parts, None)
            found = [] if part is None else self._read(part, rows)
            self.seconds += time.perf_counter() - began - (self.compiling - compiling)
            if part is None:
                return
            yield from found

    def _read(self, part: Sequence[Trial], rows: int) -> list[Transcript]:
        limits = np.zeros(rows, np.int32)
        limits[: len(part)] = [self.decoder.how.limit(trial.duration) for trial in part]
        batch = prompts([trial.columns for trial in part], rows)
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


def _parts(trials: Iterable[Trial], rows: int) -> Iterator[list[Trial]]:
    trials = iter(trials)
    while part := list(itertools.islice(trials, rows)):
        yield part


def tokenizer_of(workdir: str, run: config.Run) -> Tokenizer:
    """The tokenizer that a run was trained with: the copy in its folder."""
    return text.load("bytes" if run.text.tokenizer == "bytes" else f"{workdir}/tokenizer")


def load(workdir: str, how: Decoding) -> tuple[config.Run, Tokenizer, Transcriber, int]:
    """The run in a folder, its tokenizer, a transcriber of its newest weights, and their step.

    Weights are laid out over all devices here, rows split among them. Raises Mistake for a folder
    without a run or a checkpoint.
    """
    run = rundir.read(workdir)
    tokenizer = tokenizer_of(workdir, run)
    mesh = layout.make_mesh(config.Mesh())
    jax.set_mesh(mesh)
    update = Update(run)
    shapes = update.shapes(mesh)
    path = f"{workdir}/checkpoints"
    with Checkpoints(path, run.keep) as checkpoints:
        step, weights = checkpoints.restore_weights(shapes.trained | shapes.frozen)
    model = update.skeleton.model(weights, update.dtype)
    return run, tokenizer, Transcriber(model, tokenizer, run, how), step


def rows_here(rows: int) -> int:
    """`rows`, or the next number that the devices here share evenly. Raises Mistake below 1."""
    if rows < 1:
        raise Mistake(f"batch={rows}: must be positive")
    return rows + -rows % jax.device_count()
