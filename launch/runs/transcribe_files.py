"""Transcribes sound files with a run, or with an imported checkpoint."""

from collections.abc import Sequence

import jax

from launch.runs import model_loader, transcriber
from launch.runs.recognizer import DtypeChoice, load_recognizer
from launch.runs.sounds import file_utterance
from launch.runs.transcriber import Transcript
from melllm_jax.errors import Mistake
from melllm_jax.inference.sampling import DecodingOptions


def transcribe_files(
    files: Sequence[str],
    folder: str,
    batch: int = 1,
    decoding: DecodingOptions = DecodingOptions(),  # noqa: B008 frozen
    dtype: DtypeChoice = "own",
) -> list[Transcript]:
    """The transcripts of the files, `batch` decoded at once, by the model in `folder`.

    Raises Mistake where there is none, for a file that is missing or no audio, and for one that
    takes more positions than the rows that the model was trained on.
    """
    if not files:
        raise Mistake("files: name at least one audio file")
    utterances = [file_utterance(file) for file in files]
    rows = transcriber.round_up_rows(batch)
    with jax.set_mesh(model_loader.all_devices_mesh()):
        recognizer = load_recognizer(folder, decoding, dtype)
        return list(recognizer.transcribe(recognizer.prompts(utterances), rows))
