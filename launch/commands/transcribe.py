"""`melllm transcribe`: text of wav, flac, mp3 and ogg files."""

from collections.abc import Sequence
import dataclasses
import json

from etils import epath
from tyro.conf import Positional

from data_pipelines.audio import file_io
from data_pipelines.corpora.utterance import Utterance
from data_pipelines.examples.asr_example import EvalExample, ExampleMaker
from launch.runs import model_loader, transcriber
from launch.terminal.flags import parse
from melllm_jax.errors import Mistake
from melllm_jax.inference.sampling import DecodingOptions


@dataclasses.dataclass(frozen=True, kw_only=True)
class TranscribeArguments:
    """Read speech from files: one line of text a file, in their order."""

    files: Positional[tuple[str, ...]]  # wav, flac, mp3 or ogg
    run: str  # folder of the run
    batch: int = 1  # files decoded at once
    json: bool = False  # one JSON object with a list of transcripts instead of lines
    decoding: DecodingOptions = dataclasses.field(default_factory=DecodingOptions)


def main(argv: Sequence[str]) -> int:
    """`melllm transcribe --run DIR FILE…`."""
    arguments = parse(TranscribeArguments, argv, prog="melllm transcribe")
    found = transcribe(arguments)
    if arguments.json:
        print(json.dumps({"transcripts": [dataclasses.asdict(t) for t in found]}))
        return 0
    for t in found:
        note = " [stopped: it repeated itself]" if t.looped else " [cut off]" if t.cut else ""
        print(f"{t.id}\t{t.text}{note}" if len(found) > 1 else t.text + note)
    return 0


def transcribe(arguments: TranscribeArguments) -> list[transcriber.Transcript]:
    """The transcripts of the files. Raises Mistake for a file that is missing or no audio.

    Also for one that takes more positions than the rows that the model was trained on.
    """
    if not arguments.files:
        raise Mistake("files: name at least one audio file")
    lengths = [file_io.read_duration(file) for file in arguments.files]
    rows = transcriber.round_up_rows(arguments.batch)
    run, tokenizer, transcribe, _ = model_loader.load_transcriber(arguments.run, arguments.decoding)
    examples = ExampleMaker(run, tokenizer)
    trials: list[EvalExample] = []
    for file, seconds in zip(arguments.files, lengths, strict=True):
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
    return list(transcribe(trials, rows))
