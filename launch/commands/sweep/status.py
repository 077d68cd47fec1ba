"""`melllm sweep status DIR`: how far it is; on a terminal the table moves until nothing runs."""

from collections.abc import Sequence
import contextlib
import dataclasses
import json
import sys
import time

from launch.sweep import status
from launch.sweep.ledger import Ledger
from launch.terminal.flags import parse
from launch.terminal.subcommands import split_operand

LOOK = 2.0  # seconds between two tables
SHOWN = 40  # cells of a moving table: it must fit a screen
CLEAR = "\x1b[H\x1b[2J"


@dataclasses.dataclass(frozen=True, kw_only=True)
class SweepStatusArguments:
    """How far a sweep is; on a terminal the table moves until nothing runs or Ctrl-C."""

    once: bool = False  # print it once, and end
    json: bool = False  # one JSON object on standard output


def main(argv: Sequence[str]) -> int:
    """`melllm sweep status DIR [--once] [--json]`."""
    folder, rest = split_operand("sweep status", argv, "DIR")
    words = parse(SweepStatusArguments, rest, prog=f"melllm sweep status {folder or 'DIR'}")
    made = Ledger(folder)
    cells = made.cells()
    if words.json:
        print(json.dumps(status.figures(cells)))
        return 0
    live = sys.stdout.isatty() and not words.once
    with contextlib.suppress(KeyboardInterrupt):
        while live and any(status.state(cell) == "running" for cell in cells):
            print(CLEAR + "\n".join(status.lines(cells, SHOWN)), flush=True)
            time.sleep(LOOK)
            cells = made.cells()
    print((CLEAR if live else "") + "\n".join(status.lines(cells)))
    return 0
