"""`melllm sweep report DIR`: one page of all that came of a sweep so far."""

from collections.abc import Sequence
import dataclasses

from launch.sweep.ledger import Ledger
from launch.sweep_report import page
from launch.terminal.flags import parse
from launch.terminal.subcommands import split_operand


@dataclasses.dataclass(frozen=True)
class SweepReportArguments:
    """Write DIR/report.html: curves, the law, WER, cost, every cell, and what to run next."""


def main(argv: Sequence[str]) -> int:
    """`melllm sweep report DIR`."""
    folder, rest = split_operand("sweep report", argv, "DIR")
    parse(SweepReportArguments, rest, prog=f"melllm sweep report {folder or 'DIR'}")
    Ledger(folder)
    print(page.write_report(folder))
    return 0
