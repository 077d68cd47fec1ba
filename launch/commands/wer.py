"""`melllm wer REF HYP`: word error rate between two files of transcripts."""

from collections.abc import Sequence, Set
import dataclasses
import json
import pathlib
from typing import Annotated

from tyro.conf import Positional, arg

from launch.terminal.flags import parse
from melllm_jax.errors import Mistake
from melllm_jax.evaluation.wer import Normalizer, Score, score_transcripts

MAX_IDS = 3  # ids that a message names before it stops


@dataclasses.dataclass(frozen=True)
class WerArguments:
    """Word error rate of HYP against REF, in percent; the order of the lines is of no account.

    Both files hold one utterance a line, as JSON {"id": ..., "text": ...} or as id, a tab and text.
    An utterance with an empty reference is left out and counted.
    """

    ref: Annotated[pathlib.Path, Positional, arg(metavar="REF")]  # what was said
    hyp: Annotated[
        pathlib.Path, Positional, arg(metavar="HYP")
    ]  # what was recognised, under the same ids
    normalizer: Normalizer = "whisper"  # whisper: Whisper's English one; none: words as they are
    json: bool = False  # print one JSON object; its wer is a share, not a percentage


def main(argv: Sequence[str]) -> int:
    """Print the word errors. Raises Mistake for files that cannot be read or do not match."""
    args = parse(WerArguments, argv, prog="melllm wer")
    references, hypotheses = read_transcripts(args.ref), read_transcripts(args.hyp)
    _check_ids(args.ref, references.keys() - hypotheses.keys(), args.hyp)
    _check_ids(args.hyp, hypotheses.keys() - references.keys(), args.ref)
    texts = list(references.values())
    result = score_transcripts(texts, [hypotheses[id] for id in references], args.normalizer)
    print(json.dumps(dataclasses.asdict(result)) if args.json else format_score(result))
    return 0


def read_transcripts(path: pathlib.Path) -> dict[str, str]:
    """Text by id of a file with one utterance a line, {"id", "text"} or id, tab, text.

    Other fields of an object are of no account, nor are blank lines. Raises Mistake for a file that
    cannot be read, a line of neither form and an id that comes twice.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (FileNotFoundError, IsADirectoryError) as error:
        raise Mistake(f"{path}: is no file") from error
    except UnicodeDecodeError as error:
        raise Mistake(f"{path}: is no UTF-8 text: {error.reason} at byte {error.start}") from error
    texts: dict[str, str] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        id, text = _parse_line(line, f"{path} line {number}")
        if id in texts:
            raise Mistake(f"{path} line {number}: id {id!r} comes twice")
        texts[id] = text
    return texts


def format_score(result: Score) -> str:
    """The score in words, the rate in percent."""
    left_out = f"; {result.empty} left out, their reference is empty" if result.empty else ""
    return (
        f"WER {100 * result.wer:.2f} %: {result.substitutions} substituted, "
        f"{result.deletions} deleted, {result.insertions} inserted; "
        f"{result.words} words in {result.utterances} utterances{left_out}\n"
        f"normalizer {result.normalizer}, scorer {result.scorer}"
    )


def _parse_line(line: str, where: str) -> tuple[str, str]:
    if not line.lstrip().startswith("{"):
        id, tab, text = line.partition("\t")
        if not tab:
            raise Mistake(f"{where}: is neither JSON nor id, tab, text: {line[:40]!r}")
        return id.strip(), text.strip()
    try:
        fields = json.loads(line)
    except json.JSONDecodeError as error:
        raise Mistake(f"{where}: is no JSON: {error}") from error
    for name in ("id", "text"):
        if not isinstance(fields.get(name), str):
            raise Mistake(f"{where}: {name}={fields.get(name)!r} must be a string")
    return fields["id"].strip(), fields["text"]


def _check_ids(path: pathlib.Path, alone: Set[str], other: pathlib.Path) -> None:
    if alone:
        some = ", ".join(sorted(alone)[:MAX_IDS]) + (", …" if len(alone) > MAX_IDS else "")
        raise Mistake(f"{path}: {len(alone)} ids are not in {other}: {some}")
