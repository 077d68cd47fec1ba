"""`melllm sweep status DIR`: a table of the cells; on a terminal it moves until nothing runs."""

from collections.abc import Sequence
import contextlib
import dataclasses
import json
import sys
import time

from rich.console import Console
from rich.live import Live

from launch.sweep import status
from launch.sweep.ledger import Ledger
from launch.terminal import text_table
from launch.terminal.flags import parse
from launch.terminal.subcommands import split_operand

LOOK = 2.0  # seconds between two tables
SPARE = 4  # lines of a screen that a moving table leaves free: heads, what is left out, counts


@dataclasses.dataclass(frozen=True, kw_only=True)
class SweepStatusArguments:
    """How far a sweep is; on a terminal the table moves until nothing runs or Ctrl-C."""

    once: bool = False  # print it once, and end
    json: bool = False  # one JSON object on standard output


def main(argv: Sequence[str]) -> int:
    """`melllm sweep status DIR [--once] [--json]`."""
    folder, rest = split_operand("sweep status", argv, "DIR")
    arguments = parse(SweepStatusArguments, rest, prog=f"melllm sweep status {folder or 'DIR'}")
    ledger = Ledger(folder)
    if arguments.json:
        print(json.dumps(status.figures(ledger.cells())))
        return 0
    if sys.stdout.isatty() and not arguments.once:
        with contextlib.suppress(KeyboardInterrupt):
            _watch(ledger)
    text_table.show(status.table(ledger.cells()))
    return 0


def _watch(ledger: Ledger) -> None:
    """Show a table that moves until nothing runs."""
    console = Console(highlight=False)
    with Live(console=console, auto_refresh=False, transient=True) as live:
        cells = ledger.cells()
        while any(status.state(cell) == "running" for cell in cells):
            live.update(status.table(cells, max(console.height - SPARE, 1)), refresh=True)
            time.sleep(LOOK)
            cells = ledger.cells()
