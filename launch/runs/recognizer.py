"""What reads the speech of utterances: a run, an import with a front end, or a Whisper."""

import abc
from collections.abc import Collection, Iterable, Sequence
import dataclasses
import pathlib
from typing import Literal

from flax import nnx
import jax
import jax.numpy as jnp

from data_pipelines.corpora.corpus import Corpus
from data_pipelines.corpora.utterance import Utterance
from data_pipelines.examples.asr_example import EvalExample, ExampleMaker
from data_pipelines.examples.whisper_example import WhisperExampleMaker
from data_pipelines.loader import pipeline
from data_pipelines.reject import Reject
from data_pipelines.text.load_tokenizer import load_tokenizer
from data_pipelines.text.tokenizer import Tokenizer
from launch.runs import model_loader, sound_token
from launch.runs.option_scorer import OptionScorer
from launch.runs.transcriber import (
    BatchTranscriber,
    Transcriber,
    WhisperTranscriber,
    read_trials,
    split_rejects,
)
from melllm_jax.checkpoints import run_folder
from melllm_jax.checkpoints.checkpointer import Checkpoints
from melllm_jax.config.data import Data
from melllm_jax.config.model import ModelSpec
from melllm_jax.config.run import Optim, Run
from melllm_jax.config.whisper import WhisperSpec
from melllm_jax.errors import Mistake
from melllm_jax.inference.sampling import DecodingOptions
from melllm_jax.models.parameters import is_alignment_head, split_model
from melllm_jax.models.speech_lm import SpeechLM
from melllm_jax.objectives.run_objective import objective_of
from melllm_jax.training.train_step import Update

# Of weights and products: a run's own is its optim.compute, an import's float32.
DtypeChoice = Literal["own", "float32", "bfloat16"]
Trials = tuple[list[EvalExample], list[Reject[int]]]


@dataclasses.dataclass(frozen=True, eq=False)
class Recognizer(abc.ABC):
    """A model that reads speech, on the mesh that was in force when it was loaded."""

    transcribe: BatchTranscriber
    dtype: str
    step: int  # updates after which it was saved; 0 for an import
    parameters: int  # weights that it computes with
    trained: int  # those of them that training changed; 0 for an import

    @property
    @abc.abstractmethod
    def options(self) -> OptionScorer | None:
        """What chooses among options; None where the model answers no questions."""

    @abc.abstractmethod
    def trials(self, corpus: Corpus, order: Sequence[int]) -> Trials:
        """The utterances at `order` to transcribe, and those that cannot be used."""

    @abc.abstractmethod
    def prompts(self, utterances: Sequence[Utterance]) -> list[EvalExample]:
        """What is read of each utterance. Raises Mistake for one that cannot be transcribed."""


@dataclasses.dataclass(frozen=True, eq=False)
class LanguageModelRecognizer(Recognizer):
    """A speech language model."""

    model: SpeechLM
    run: Run
    tokenizer: Tokenizer

    @property
    def options(self) -> OptionScorer:
        """What chooses among options."""
        return OptionScorer(self.model, self.run.data.t)

    def trials(self, corpus: Corpus, order: Sequence[int]) -> Trials:
        """The utterances at `order` to transcribe, and those that cannot be used."""
        return read_trials(corpus, self.run, self.tokenizer, order)

    def prompts(self, utterances: Sequence[Utterance]) -> list[EvalExample]:
        """The prompt of each utterance. Raises Mistake for one that cannot be transcribed."""
        return prompt_examples(utterances, self.run, self.tokenizer)


@dataclasses.dataclass(frozen=True, eq=False)
class WhisperRecognizer(Recognizer):
    """A Whisper."""

    examples: WhisperExampleMaker

    @property
    def options(self) -> None:
        """None: it transcribes alone."""
        return None

    def trials(self, corpus: Corpus, order: Sequence[int]) -> Trials:
        """The utterances at `order` to transcribe, and those that cannot be used."""
        return split_rejects(pipeline.whisper_examples(corpus, self.examples, order=order))

    def prompts(self, utterances: Sequence[Utterance]) -> list[EvalExample]:
        """The windows of each utterance. Raises Mistake for one that cannot be transcribed."""
        return require_usable(map(self.examples.eval_example, utterances))


def load_recognizer(folder: str, how: DecodingOptions, dtype: DtypeChoice = "own") -> Recognizer:
    """The newest weights in the folder of a run or of an import, laid out over the mesh in force.

    Raises Mistake for a folder without a model that hears, or without a checkpoint.
    """
    whisper = run_folder.read_whisper(folder)
    if whisper is not None:
        return load_whisper(folder, whisper, how, "float32" if dtype == "own" else dtype)
    if not run_folder.holds_checkpoint(folder):
        raise Mistake(f"run={folder}: holds no run.json, nor the model.json of an import")
    spec = run_folder.read_spec(folder)
    check_hears(folder, spec)
    if run_folder.holds_run(folder):
        return _load_run(folder, how, dtype)
    chosen = "float32" if dtype == "own" else dtype
    run, tokenizer = imported_run(folder, spec), load_tokenizer(spec.text.tokenizer)
    model = model_loader.load_model(pathlib.Path(folder), chosen).model
    transcribe = Transcriber(model, tokenizer, run, how)
    count = weight_count(model)
    return LanguageModelRecognizer(transcribe, chosen, 0, count, 0, model, run, tokenizer)


def load_whisper(
    folder: str, spec: WhisperSpec, how: DecodingOptions, dtype: str
) -> WhisperRecognizer:
    """The Whisper in a folder, as `load_recognizer`."""
    model_loader.mesh_for(spec)
    tokenizer = load_tokenizer(f"{folder}/{run_folder.TOKENIZER}")
    step, model = model_loader.restore_whisper(pathlib.Path(folder), spec, dtype)
    transcribe = WhisperTranscriber(model, tokenizer, how)
    examples = WhisperExampleMaker(spec.mel, spec.window)
    return WhisperRecognizer(transcribe, dtype, step, weight_count(model), 0, examples)


def _load_run(folder: str, how: DecodingOptions, dtype: DtypeChoice) -> LanguageModelRecognizer:
    run = run_folder.read_run(folder)
    words = "bytes" if run.text.tokenizer == "bytes" else f"{folder}/{run_folder.TOKENIZER}"
    tokenizer = load_tokenizer(words)
    update = Update(objective_of(run))
    shapes = update.shapes(jax.sharding.get_mesh())
    path = f"{folder}/{run_folder.CHECKPOINTS}"
    with Checkpoints(path, run.checkpoints) as checkpoints:
        step, weights = checkpoints.restore_weights(shapes.trained | shapes.frozen)
    chosen = run.optim.compute if dtype == "own" else dtype
    model = update.skeleton.model(weights, jnp.dtype(chosen))
    transcribe = Transcriber(model, tokenizer, run, how)
    sizes = weight_count(model), weight_count(model, update.names)
    return LanguageModelRecognizer(transcribe, chosen, step, *sizes, model, run, tokenizer)


def weight_count(model: nnx.Module, names: Collection[str] | None = None) -> int:
    """The number of a model's weights, or of those of `names`; heads of training's alone apart."""
    weights = {k: x for k, x in split_model(model)[1].items() if not is_alignment_head(k)}
    return sum(x.size for k, x in weights.items() if names is None or k in names)


def check_hears(folder: str, spec: ModelSpec) -> None:
    """Raises Mistake where the model in a folder has no front end."""
    if spec.model.front == "none":
        raise Mistake(f'run={folder}: model.front="none": it reads text alone, and hears nothing')


def imported_run(folder: str, spec: ModelSpec) -> Run:
    """An import as a run without updates: rows are as long as its positions go."""
    text = dataclasses.replace(spec.text, placeholder=sound_token.stored_id(folder, spec))
    data, optim = Data(t=spec.model.rope.longest, b=1), Optim(steps=1, compute="float32")
    return Run(
        name="import",
        model=spec.model,
        data=data,
        optim=optim,
        mel=spec.mel,
        text=text,
        lora=spec.lora,
    )


def prompt_examples(
    utterances: Sequence[Utterance], run: Run, tokenizer: Tokenizer
) -> list[EvalExample]:
    """The prompt of each utterance. Raises Mistake for one that `run` cannot transcribe."""
    trials = require_usable(map(ExampleMaker(run, tokenizer).eval_example, utterances))
    for trial in trials:
        needed = len(trial.columns["tokens"])
        if needed > run.data.t:
            raise Mistake(
                f"{trial.id}: {trial.duration:.1f} s take {needed} positions, more than "
                f"the row of data.t={run.data.t} that the model was trained on"
            )
    return trials


def require_usable(found: Iterable[EvalExample | Reject[int]]) -> list[EvalExample]:
    """The examples. Raises Mistake for the first that cannot be used."""
    trials = list[EvalExample]()
    for trial in found:
        if not isinstance(trial, EvalExample):
            raise Mistake(f"{trial.id}: {trial.detail}")
        trials.append(trial)
    return trials
