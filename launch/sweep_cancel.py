"""`melllm sweep cancel DIR`: what runs saves and stops, and nothing new begins."""

from collections.abc import Sequence
import dataclasses

from launch.arguments import parse
from launch.choice import first
from launch.ledger import Ledger
from launch.submitted import BACKENDS


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Let what runs of a sweep save and stop; `melllm sweep resume` goes on."""


def main(argv: Sequence[str]) -> int:
    """`melllm sweep cancel DIR`."""
    folder, rest = first("sweep cancel", argv, "DIR")
    parse(Arguments, rest, prog=f"melllm sweep cancel {folder or 'DIR'}")
    made = Ledger(folder)
    made.cancel()
    BACKENDS[made.sweep.backend].cancel(folder, made.cells())
    print(f"cancelled; next: melllm sweep resume {folder}")
    return 0
