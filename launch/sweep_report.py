"""`melllm sweep report DIR`: one page of all that came of a sweep so far."""

from collections.abc import Sequence
import dataclasses

from launch import report
from launch.arguments import parse
from launch.choice import first
from launch.ledger import Ledger


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Write DIR/report.html: curves, the law, WER, cost, every cell, and what to run next."""


def main(argv: Sequence[str]) -> int:
    """`melllm sweep report DIR`."""
    folder, rest = first("sweep report", argv, "DIR")
    parse(Arguments, rest, prog=f"melllm sweep report {folder or 'DIR'}")
    Ledger(folder)
    print(report.write(folder))
    return 0
