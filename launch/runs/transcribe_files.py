"""Transcribes sound files with a run."""

from collections.abc import Sequence

from etils import epath
import jax

from data_pipelines.audio import file_io
from data_pipelines.corpora.utterance import Utterance
from data_pipelines.examples.asr_example import EvalExample, ExampleMaker
from data_pipelines.text.tokenizer import Tokenizer
from launch.runs import model_loader, transcriber
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
    lengths = [file_io.read_duration(file) for file in files]
    rows = transcriber.round_up_rows(batch)
    with jax.set_mesh(model_loader.all_devices_mesh()):
        run, tokenizer, transcribe, _ = model_loader.load_transcriber(run_folder, decoding)
        return list(transcribe(_examples(files, lengths, run, tokenizer), rows))


def _examples(
    files: Sequence[str], lengths: Sequence[float], run: Run, tokenizer: Tokenizer
) -> list[EvalExample]:
    """The example of each file of so many seconds. Raises Mistake for one that cannot be used."""
    examples = ExampleMaker(run, tokenizer)
    trials: list[EvalExample] = []
    for file, seconds in zip(files, lengths, strict=True):
        trial = examples.eval_example(Utterance(file, "", seconds, "", epath.Path(file)))
        if not isinstance(trial, EvalExample):
            raise Mistake(f"{file}: {trial.detail}")
        needed = len(trial.columns["tokens"])
        if needed > run.data.t:
            raise Mistake(
                f"{file}: {seconds:.1f} s take {needed} positions, more than the row of "
                f"data.t={run.data.t} that the model was trained on"
            )
        trials.append(trial)
    return trials
