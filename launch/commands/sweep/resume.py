"""`melllm sweep resume DIR`: starts the cells that are missing, from their last checkpoints."""

from collections.abc import Sequence
import dataclasses
from typing import Annotated, Any

from tyro.conf import arg

from launch.commands.sweep.submit import BACKENDS, BackendName, BackendOptions, submit
from launch.sweep.ledger import Ledger
from launch.terminal.flags import parse
from launch.terminal.subcommands import split_operand


@dataclasses.dataclass(frozen=True, kw_only=True)
class SweepResumeArguments:
    """Start what is missing of a sweep: cells pending, preempted, failed, lost with a machine."""

    backend: BackendName = "local"
    options: Annotated[BackendOptions, arg(name="")] = BackendOptions()


def main(argv: Sequence[str]) -> int:
    """`melllm sweep resume DIR [--backend …]`; by default as it was started last."""
    folder, rest = split_operand("sweep resume", argv, "DIR")
    before = SweepResumeArguments()
    if folder:
        ledger = Ledger(folder)
        kind = type(getattr(before.options, ledger.sweep.backend))
        options = dataclasses.replace(
            before.options, **{ledger.sweep.backend: kind(**ledger.sweep.options)}
        )
        name: Any = ledger.sweep.backend  # one of BackendName: `sweep run` wrote it
        before = SweepResumeArguments(backend=name, options=options)
    arguments = parse(
        SweepResumeArguments, rest, prog=f"melllm sweep resume {folder or 'DIR'}", default=before
    )
    chosen = getattr(arguments.options, arguments.backend)
    BACKENDS[arguments.backend].check(chosen, folder)
    return submit(ledger, arguments.backend, chosen)
