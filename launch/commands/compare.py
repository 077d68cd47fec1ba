"""`melllm compare`: systems in one table, each measured in processes of its own."""

from collections.abc import Sequence
import dataclasses
import json
import sys
from typing import Any

from tyro.conf import Positional

from data_pipelines.corpora.corpus import split_digest
from launch.evaluation.comparison import Comparison, Subject
from launch.evaluation.comparison_table import comparison_table, markdown, notes
from launch.evaluation.measurement import Material
from launch.evaluation.system import read_systems
from launch.runs.option_scorer import ChoiceRule
from launch.runs.recognizer import DtypeChoice
from launch.terminal import text_table
from launch.terminal.flags import parse
from melllm_jax import files
from melllm_jax.errors import Fault, Mistake
from melllm_jax.evaluation.wer import Normalizer


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompareArguments:
    """Put systems into one table: WER, spoken questions, speed and memory, what was trained.

    A system is NAME=FOLDER, of a run or an import, or NAME=WHISPER,LLM: a cascade, in which the
    LLM answers what the Whisper hears. What was measured before, of the same weights, is not
    measured again: the same command goes on where it was stopped.
    """

    # NAME=FOLDER or NAME=WHISPER,LLM; the others are held against the first
    systems: Positional[tuple[str, ...]] = ()
    data: str  # folder of prepared shards or of SPLIT.jsonl manifests, to be transcribed
    split: str = "test"  # which of its splits
    questions: str = ""  # folder of spoken questions, as `melllm data speak --questions` writes it
    questions_split: str = "test"  # which of its splits
    batches: tuple[int, int] = (
        1,
        8,
    )  # utterances at once, for speed and memory; WER is the first's
    dtype: DtypeChoice = "own"  # of products; own: a run's optim.compute, an import's float32
    normalizer: Normalizer = "whisper"  # of both texts before they are compared: see melllm wer
    choice: ChoiceRule = "sum"  # an option's log-probability, or its mean by token or byte
    seed: int = 0  # of the resamples behind the intervals
    out: str = "compare"  # folder of systems.json, systems.md and the hypotheses
    json: bool = False  # print systems.json on standard output, and no table

    def __post_init__(self) -> None:
        for batch in self.batches:
            if batch < 1:
                raise Mistake(f"batches={batch}: must be positive")
        if self.seed < 0:
            raise Mistake(f"seed={self.seed}: must be 0 or more")


def main(argv: Sequence[str]) -> int:
    """`melllm compare --data DIR [--questions DIR] SYSTEM…`."""
    arguments = parse(CompareArguments, argv, prog="melllm compare")
    out = files.local_path("out", arguments.out)
    comparison = _comparison(arguments)
    rows = comparison.rows(out, lambda line: print(line, file=sys.stderr, flush=True))
    told: dict[str, Any] = {
        subject: dataclasses.asdict(material) for subject, material in comparison.materials.items()
    }
    told |= {"batches": comparison.batches, "seed": comparison.seed, "systems": rows}
    table, said = comparison_table(rows, comparison.batches), notes(rows)
    title = " and ".join(f"{x.data} ({x.split})" for x in comparison.materials.values())
    files.write_text(out / "systems.json", json.dumps(told, indent=1) + "\n")
    files.write_text(out / "systems.md", markdown(table, f"Systems on {title}", said))
    if arguments.json:
        print(json.dumps(told))
    else:
        text_table.show(text_table.table(table.heads, table.rows, right=range(1, len(table.heads))))
        print("\n".join(["", *said]))
    print(f"table: {out / 'systems.md'}", file=sys.stderr)
    failed = [f"{row['name']}: {row['errors'][0]}" for row in rows if "errors" in row]
    if failed:
        raise Fault(f"{len(failed)} of {len(rows)} systems failed: {'; '.join(failed)}")
    return 0


def _comparison(arguments: CompareArguments) -> Comparison:
    """What the arguments ask for. Raises Mistake for systems or corpora that are not there."""
    systems = read_systems(arguments.systems)
    places: dict[Subject, tuple[str, str]] = {"speech": (arguments.data, arguments.split)}
    if arguments.questions:
        places["questions"] = (arguments.questions, arguments.questions_split)
    materials = {
        subject: Material(data, split, split_digest(data, split))
        for subject, (data, split) in places.items()
    }
    flags = [f"--{name}={getattr(arguments, name)}" for name in ("dtype", "normalizer", "choice")]
    return Comparison(
        systems,
        materials,
        tuple(dict.fromkeys(arguments.batches)),
        flags,
        arguments.normalizer,
        arguments.seed,
    )
