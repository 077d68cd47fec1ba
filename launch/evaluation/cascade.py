"""A cascade: a Whisper turns speech into text, and an LLM is asked in these words.

Its transcripts are the Whisper's. In a task what is heard of a clip takes the clip's place in the
chat prompt of the LLM, which answers as a speech language model does: greedily, or by the option
that it finds likeliest. Seconds of work are those of both.
"""

from collections.abc import Iterator, Sequence
import dataclasses
import pathlib
import time

import jax
import numpy as np

from data_pipelines.corpora.corpus import Corpus
from data_pipelines.corpora.utterance import Utterance
from data_pipelines.examples.asr_example import EvalExample
from data_pipelines.examples.cascade_example import CascadeExampleMaker, CascadeTask, heard_turns
from data_pipelines.loader import pipeline
from data_pipelines.reject import Unusable
from data_pipelines.text.load_tokenizer import load_tokenizer
from data_pipelines.text.text_prompt import end_ids
from data_pipelines.text.tokenizer import Tokenizer
from data_pipelines.text.turn_prompt import turn_ids
from data_pipelines.text.turns import Turn
from launch.runs import model_loader
from launch.runs.model_loader import CheckpointModel
from launch.runs.option_scorer import Choice, OptionScorer
from launch.runs.recognizer import (
    DtypeChoice,
    Recognizer,
    Trials,
    load_whisper,
    require_usable,
    weight_count,
)
from launch.runs.text_generator import text_columns
from launch.runs.transcriber import ANSWER_TOKENS, BatchTranscriber, Transcript, split_rejects
from melllm_jax.checkpoints import run_folder
from melllm_jax.config.features import Text
from melllm_jax.errors import Mistake
from melllm_jax.inference.generate import Decoder, prompt_batch
from melllm_jax.inference.sampling import DecodingOptions
from melllm_jax.objectives.run_objective import objective_of
from melllm_jax.training.train_step import Update

PROBE = (Turn("user", ("Why?",)), Turn("assistant", ("So.",)))


@dataclasses.dataclass(frozen=True)
class Answer(Transcript):
    """What was answered, and to which words."""

    heard: str  # in all clips, a line each


class CascadeTranscriber(BatchTranscriber):
    """Reads trials with a Whisper, and answers those that are tasks with an LLM."""

    def __init__(
        self,
        hear: BatchTranscriber,
        llm: CheckpointModel,
        tokenizer: Tokenizer,
        cfg: Text,
        how: DecodingOptions,
    ) -> None:
        """`tokenizer` and `cfg` are the LLM's: the words around what is heard."""
        super().__init__(tokenizer)
        self._hear, self._llm, self._cfg = hear, llm, cfg
        self._decoder = Decoder(llm.model, end_ids(tokenizer, cfg), how)

    @property
    def compile_seconds(self) -> float:
        """Seconds spent compiling so far."""
        return self._hear.compile_seconds + self._decoder.compile_seconds

    def ask(self, tasks: Sequence[CascadeTask], rows: int) -> Iterator[tuple[EvalExample, str]]:
        """Each task with the LLM's prompt for its columns, and what was heard in its clips."""
        clips = [clip for task in tasks for clip in task.clips]
        heard = iter([self._sayable(t.text) for t in self._hear(clips, rows)])
        spec = self._llm.spec
        width = 0 if spec.model.front == "none" else spec.mel.p
        for task in tasks:
            texts = [next(heard) for _ in task.clips]
            turns = heard_turns(task.turns, texts)
            parts = turn_ids(self._tokenizer, self._cfg, turns, answered=False)
            ids = [i for part in parts if part is not None for i in part.ids]
            columns = text_columns(ids, width)
            yield dataclasses.replace(task, columns=columns), "\n".join(texts)

    def _read(self, part: Sequence[EvalExample], rows: int) -> list[Transcript]:
        tasks = [trial for trial in part if isinstance(trial, CascadeTask)]
        others = [trial for trial in part if not isinstance(trial, CascadeTask)]
        answers, heard = iter(self._answers(tasks, rows)), iter(list(self._hear(others, rows)))
        return [next(answers if isinstance(trial, CascadeTask) else heard) for trial in part]

    def _answers(self, tasks: Sequence[CascadeTask], rows: int) -> list[Transcript]:
        """The LLM's answers to at most `rows` tasks."""
        asked = list(self.ask(tasks, rows))
        if not asked:
            return []
        room, limit = self._llm.spec.model.rope.longest, self._decoder.options.limit
        limits = np.zeros(rows, np.int32)
        for row, (task, _) in enumerate(asked):
            most = max(limit(task.duration), ANSWER_TOKENS)  # as a speech language model's
            limits[row] = max(min(most, room - len(task.columns["tokens"])), 0)
        batch = prompt_batch([task.columns for task, _ in asked], rows)
        out = jax.device_get(self._decoder(batch, limits))
        return [
            Answer(
                task.id,
                self._tokenizer.decode(out.tokens[i, : out.lengths[i]].tolist()),
                task.duration,
                bool(out.looped[i]),
                not (out.ended[i] or out.looped[i]),
                heard,
            )
            for i, (task, heard) in enumerate(asked)
        ]

    def _sayable(self, text: str) -> str:
        """What was heard, without the characters that the LLM's vocabulary lacks."""
        if self._encodes(text):
            return text
        kept = (x for x in text if x.isspace() or self._encodes(x))
        return "".join(kept).strip()

    def _encodes(self, text: str) -> bool:
        try:
            return bool(self._tokenizer.encode(text))
        except Unusable:
            return False


class CascadeOptionScorer(OptionScorer):
    """Chooses among options by what an LLM finds likeliest after what a Whisper heard."""

    def __init__(self, cascade: CascadeTranscriber, llm: CheckpointModel) -> None:
        super().__init__(llm.model, 0)  # rows as long as they need to be
        self._cascade = cascade

    def __call__(self, trials: Sequence[EvalExample], rows: int) -> list[Choice]:
        """As of an OptionScorer. What the Whisper compiles is counted by the cascade alone."""
        began, compiling = time.perf_counter(), self._cascade.compile_seconds
        tasks = [trial for trial in trials if isinstance(trial, CascadeTask)]
        asked = [task for task, _ in self._cascade.ask(tasks, rows)]
        compiled = self._cascade.compile_seconds - compiling
        self.seconds += time.perf_counter() - began - compiled
        return super().__call__(asked, rows)


@dataclasses.dataclass(frozen=True, eq=False)
class CascadeRecognizer(Recognizer):
    """A Whisper and an LLM."""

    transcribe: CascadeTranscriber
    llm: CheckpointModel
    examples: CascadeExampleMaker

    @property
    def options(self) -> OptionScorer:
        """What chooses among options."""
        return CascadeOptionScorer(self.transcribe, self.llm)

    def trials(self, corpus: Corpus, order: Sequence[int]) -> Trials:
        """The utterances at `order` to hear, and those that cannot be used."""
        return split_rejects(pipeline.whisper_examples(corpus, self.examples, order=order))

    def prompts(self, utterances: Sequence[Utterance]) -> list[EvalExample]:
        """What is heard of each utterance. Raises Mistake for one that cannot be used."""
        return require_usable(map(self.examples.eval_example, utterances))


def check_cascade(run: str, llm: str) -> None:
    """Raises Mistake where `run` is no folder of a Whisper, or `llm` none of an LLM."""
    for field, folder in (("run", run), ("llm", llm)):
        if not run_folder.holds_checkpoint(folder):
            raise Mistake(f"{field}={folder}: holds no run.json, nor the model.json of an import")
    if run_folder.read_whisper(run) is None:
        raise Mistake(f"run={run}: holds no Whisper: what --llm answers must be heard by one")
    if run_folder.read_front(llm) is not None:
        what = "a front end alone" if run_folder.read_whisper(llm) is None else "a Whisper"
        raise Mistake(f"llm={llm}: holds {what}: must be a language model, which answers")


def load_cascade(
    run: str, llm: str, how: DecodingOptions, dtype: DtypeChoice = "own"
) -> CascadeRecognizer:
    """The Whisper in `run` and the LLM in `llm`, laid out over the mesh in force.

    Weights are float32 unless `dtype` says otherwise; `how` is of both. Raises Mistake as
    `check_cascade`, and for an LLM whose tokenizer has no words for a question and its answer.
    """
    check_cascade(run, llm)
    whisper, spec = run_folder.read_whisper(run), run_folder.read_spec(llm)
    assert whisper is not None, "check_cascade has it"
    chosen = "float32" if dtype == "own" else dtype
    tokenizer = load_tokenizer(spec.text.tokenizer)
    own = spec.text.template if tokenizer.chat is None else "chat"
    cfg = dataclasses.replace(spec.text, template=own)
    try:
        turn_ids(tokenizer, cfg, PROBE, answered=False)
    except Mistake as error:
        raise Mistake(f"llm={llm}: cannot be asked: {error}") from error
    model_loader.mesh_for(spec)
    first = load_whisper(run, whisper, how, chosen)
    model = model_loader.load_model(pathlib.Path(llm), chosen)
    cascade = CascadeTranscriber(first.transcribe, model, tokenizer, cfg, how)
    examples = CascadeExampleMaker(whisper.mel, whisper.window, tokenizer, cfg)
    learnt = (
        Update(objective_of(run_folder.read_run(llm))).names if run_folder.holds_run(llm) else ()
    )
    sizes = first.parameters + weight_count(model.model), weight_count(model.model, learnt)
    return CascadeRecognizer(cascade, chosen, model.step, *sizes, model, examples)
