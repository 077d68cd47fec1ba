"""`melllm sweep cancel DIR`: lets running cells save and stop; no cell begins after it."""

from collections.abc import Sequence
import dataclasses

from launch.commands.sweep.submit import BACKENDS
from launch.sweep.ledger import Ledger
from launch.terminal.flags import parse
from launch.terminal.subcommands import split_operand


@dataclasses.dataclass(frozen=True)
class SweepCancelArguments:
    """Let what runs of a sweep save and stop; `melllm sweep resume` goes on."""


def main(argv: Sequence[str]) -> int:
    """`melllm sweep cancel DIR`."""
    folder, rest = split_operand("sweep cancel", argv, "DIR")
    parse(SweepCancelArguments, rest, prog=f"melllm sweep cancel {folder or 'DIR'}")
    ledger = Ledger(folder)
    ledger.cancel()
    BACKENDS[ledger.sweep.backend].cancel(folder, ledger.cells())
    print(f"cancelled; next: melllm sweep resume {folder}")
    return 0
