"""`melllm sweep resume DIR`: start what is missing, each cell from its last checkpoint."""

from collections.abc import Sequence
import dataclasses
from typing import Annotated

from tyro.conf import arg

from launch.arguments import parse
from launch.choice import first
from launch.ledger import Ledger
from launch.submitted import BACKENDS, Kind, Options, submitted


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arguments:
    """Start what is missing of a sweep: cells pending, preempted, failed, lost with a machine."""

    backend: Kind = "local"
    options: Annotated[Options, arg(name="")] = Options()


def main(argv: Sequence[str]) -> int:
    """`melllm sweep resume DIR [--backend …]`: as the sweep was begun, where nothing is said."""
    folder, rest = first("sweep resume", argv, "DIR")
    before = Arguments()
    if folder:
        made = Ledger(folder)
        kind = type(getattr(before.options, made.sweep.backend))
        options = dataclasses.replace(
            before.options, **{made.sweep.backend: kind(**made.sweep.options)}
        )
        before = Arguments(backend=made.sweep.backend, options=options)  # type: ignore[arg-type]
    words = parse(Arguments, rest, prog=f"melllm sweep resume {folder or 'DIR'}", default=before)
    chosen = getattr(words.options, words.backend)
    BACKENDS[words.backend].check(chosen, folder)
    return submitted(made, words.backend, chosen)
