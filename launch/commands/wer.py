"""`melllm wer REF HYP`: word error rate between two files of transcripts."""

from collections.abc import Sequence, Set
import dataclasses
import json
import pathlib
from typing import Annotated, Any

from tyro.conf import Positional, arg

from launch.terminal.flags import parse
from melllm_jax.errors import Fault, Mistake
from melllm_jax.evaluation.wer import Normalizer, Score, score_transcripts
from melllm_jax.json_text import parse_json

MAX_IDS = 3  # ids that a message names before it stops


@dataclasses.dataclass(frozen=True)
class WerArguments:
    """Word error rate of HYP against REF, in percent; the order of the lines is of no account.

    Both files hold one utterance a line, as JSON {"id": ..., "text": ...} or as id, a tab and text:
    what `melllm evaluate` keeps and what `melllm transcribe` prints of several files. An utterance
    with an empty reference is left out and counted, and one that `evaluate` rejected.
    """

    ref: Annotated[pathlib.Path, Positional, arg(metavar="REF")]  # what was said
    # what was recognised, under the same ids
    hyp: Annotated[pathlib.Path, Positional, arg(metavar="HYP")]
    # whisper: Whisper's English one, which forgives accents of Latin letters, but here counts the
    # marks of other scripts and takes no dot for a word; none: words as they are
    normalizer: Normalizer = "whisper"
    json: bool = False  # print one JSON object; its wer is a share, not a percentage


def main(argv: Sequence[str]) -> int:
    """Print the word errors. Raises Mistake for files that cannot be read or do not match."""
    args = parse(WerArguments, argv, prog="melllm wer")
    references, hypotheses = read_transcripts(args.ref), read_transcripts(args.hyp)
    _check_ids(args.ref, references.keys() - hypotheses.keys(), args.hyp)
    _check_ids(args.hyp, hypotheses.keys() - references.keys(), args.ref)
    pairs = [(text, hypotheses[id]) for id, text in references.items()]
    heard = [(ref, hyp) for ref, hyp in pairs if ref is not None and hyp is not None]
    result = score_transcripts([r for r, _ in heard], [h for _, h in heard], args.normalizer)
    rejected = len(pairs) - len(heard)
    if args.json:
        print(json.dumps(dataclasses.asdict(result) | {"rejected": rejected}))
    else:
        print(format_score(result, rejected))
    return 0


def read_transcripts(path: pathlib.Path) -> dict[str, str | None]:
    """Text by id of a file with one utterance a line, {"id", "text"} or id, tab, text.

    None stands for an utterance that `melllm evaluate` rejected. Other fields of an object are of
    no account, nor are blank lines. Raises Mistake for a file that is none or no text, a line of
    neither form and an id that comes twice, Fault for a file that cannot be read.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (FileNotFoundError, IsADirectoryError) as error:
        raise Mistake(f"{path}: is no file") from error
    except UnicodeDecodeError as error:
        raise Mistake(f"{path}: is no UTF-8 text: {error.reason} at byte {error.start}") from error
    except OSError as error:
        raise Fault(f"{path}: cannot be read: {error.strerror}") from error
    texts: dict[str, str | None] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        for id, text in _parse_line(line, f"{path} line {number}"):
            if id in texts:
                raise Mistake(f"{path} line {number}: id {id!r} comes twice")
            texts[id] = text
    return texts


def format_score(result: Score, rejected: int = 0) -> str:
    """The score in words, the rate in percent; `rejected` utterances had no usable sound."""
    left_out = f"; {result.empty} left out, their reference is empty" if result.empty else ""
    left_out += f"; {rejected} left out, their sound was rejected" if rejected else ""
    return (
        f"WER {100 * result.wer:.2f} %: {result.substitutions} substituted, "
        f"{result.deletions} deleted, {result.insertions} inserted; "
        f"{result.words} words in {result.utterances} utterances{left_out}\n"
        f"normalizer {result.normalizer}, scorer {result.scorer}"
    )


def _parse_line(line: str, where: str) -> list[tuple[str, str | None]]:
    """Id and text of a line: of several utterances where `melllm transcribe --json` wrote it."""
    if not line.lstrip().startswith("{"):
        id, tab, text = line.partition("\t")
        if not tab:
            raise Mistake(f"{where}: is neither JSON nor id, tab, text: {line[:40]!r}")
        return [(id.strip(), text.strip())]
    try:
        fields = parse_json(line)
    except json.JSONDecodeError as error:
        raise Mistake(f"{where}: is no JSON: {error}") from error
    rows = fields.get("transcripts") or [fields]
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise Mistake(f"{where}: transcripts={repr(rows)[:40]}: must be a list of objects")
    return [_parse_fields(row, where) for row in rows]


def _parse_fields(fields: dict[str, Any], where: str) -> tuple[str, str | None]:
    rejected = "rejected" in fields and "text" not in fields
    for name in ("id",) if rejected else ("id", "text"):
        if not isinstance(fields.get(name), str):
            raise Mistake(f"{where}: {name}={fields.get(name)!r} must be a string")
    return fields["id"].strip(), None if rejected else fields["text"]


def _check_ids(path: pathlib.Path, alone: Set[str], other: pathlib.Path) -> None:
    if alone:
        some = ", ".join(sorted(alone)[:MAX_IDS]) + (", …" if len(alone) > MAX_IDS else "")
        raise Mistake(f"{path}: {len(alone)} ids are not in {other}: {some}")
