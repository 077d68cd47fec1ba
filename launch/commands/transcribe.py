"""`melllm transcribe`: text of wav, flac, mp3 and ogg files."""

from collections.abc import Sequence
import dataclasses
import json
import sys

from tyro.conf import Positional

from launch.runs.recognizer import DtypeChoice
from launch.runs.transcribe_files import transcribe_files
from launch.runtime import compile_cache
from launch.terminal.flags import parse
from melllm_jax.inference.sampling import DecodingOptions


@dataclasses.dataclass(frozen=True, kw_only=True)
class TranscribeArguments:
    """Read speech from files: one line of text a file, in their order."""

    files: Positional[tuple[str, ...]]  # wav, flac, mp3 or ogg
    run: str  # folder of the run, or of an import: a Whisper, or a model with a front end
    batch: int = 1  # files decoded at once
    dtype: DtypeChoice = "own"  # of products; own: a run's optim.compute, an import's float32
    json: bool = False  # one JSON object with a list of transcripts instead of lines
    decoding: DecodingOptions = dataclasses.field(default_factory=DecodingOptions)


def main(argv: Sequence[str]) -> int:
    """`melllm transcribe --run DIR FILE…`."""
    arguments = parse(TranscribeArguments, argv, prog="melllm transcribe")
    with compile_cache.use_folder(compile_cache.FOLDER):
        found = transcribe_files(
            arguments.files, arguments.run, arguments.batch, arguments.decoding, arguments.dtype
        )
    if arguments.json:
        print(json.dumps({"transcripts": [dataclasses.asdict(t) for t in found]}))
        return 0
    for t in found:
        name = " ".join(t.id.replace("\t", " ").splitlines())
        print(f"{name}\t{t.line}" if len(found) > 1 else t.line)
        if t.looped or t.cut:  # beside the text: a reader would take it for words
            why = "stopped, because it repeated itself" if t.looped else "cut off"
            print(f"{name}: {why}", file=sys.stderr)
    return 0
