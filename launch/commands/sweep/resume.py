"""`melllm sweep resume DIR`: start what is missing, each cell from its last checkpoint."""

from collections.abc import Sequence
import dataclasses
from typing import Annotated

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
    """`melllm sweep resume DIR [--backend …]`: as the sweep was begun, where nothing is said."""
    folder, rest = split_operand("sweep resume", argv, "DIR")
    before = SweepResumeArguments()
    if folder:
        made = Ledger(folder)
        kind = type(getattr(before.options, made.sweep.backend))
        options = dataclasses.replace(
            before.options, **{made.sweep.backend: kind(**made.sweep.options)}
        )
        before = SweepResumeArguments(backend=made.sweep.backend, options=options)  # type: ignore[arg-type]
    words = parse(
        SweepResumeArguments, rest, prog=f"melllm sweep resume {folder or 'DIR'}", default=before
    )
    chosen = getattr(words.options, words.backend)
    BACKENDS[words.backend].check(chosen, folder)
    return submit(made, words.backend, chosen)
