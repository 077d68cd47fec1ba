"""Transcribes sound files with a run."""

from collections.abc import Sequence

import jax

from data_pipelines.corpora.utterance import Utterance
from data_pipelines.examples.asr_example import EvalExample, ExampleMaker
from data_pipelines.text.tokenizer import Tokenizer
from launch.runs import model_loader, transcriber
from launch.runs.sounds import file_utterance
from launch.runs.transcriber import Transcript
from melllm_jax.config.run import Run
from melllm_jax.errors import Mistake
from melllm_jax.inference.sampling import DecodingOptions


def transcribe_files(
    files: Sequence[str],
    run_folder: str,
    batch: int = 1,
    decoding: DecodingOptions = DecodingOptions(),  # noqa: B008 frozen
) -> list[Transcript]:
    """The transcripts of the files, `batch` decoded at once.

    Raises Mistake where there is none, for a file that is missing or no audio, and for one that
    takes more positions than the rows that the model was trained on.
    """
    if not files:
        raise Mistake("files: name at least one audio file")
    utterances = [file_utterance(file) for file in files]
    rows = transcriber.round_up_rows(batch)
    with jax.set_mesh(model_loader.all_devices_mesh()):
        run, tokenizer, transcribe, _ = model_loader.load_transcriber(run_folder, decoding)
        return list(transcribe(prompt_examples(utterances, run, tokenizer), rows))


def prompt_examples(
    utterances: Sequence[Utterance], run: Run, tokenizer: Tokenizer
) -> list[EvalExample]:
    """The prompt of each utterance. Raises Mistake for one that `run` cannot transcribe."""
    examples = ExampleMaker(run, tokenizer)
    trials: list[EvalExample] = []
    for utterance in utterances:
        trial = examples.eval_example(utterance)
        if not isinstance(trial, EvalExample):
            raise Mistake(f"{utterance.id}: {trial.detail}")
        needed = len(trial.columns["tokens"])
        if needed > run.data.t:
            raise Mistake(
                f"{utterance.id}: {utterance.duration:.1f} s take {needed} positions, more than "
                f"the row of data.t={run.data.t} that the model was trained on"
            )
        trials.append(trial)
    return trials
