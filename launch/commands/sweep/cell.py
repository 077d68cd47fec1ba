"""`melllm sweep cell DIR ID`: does one cell of a sweep; the command that backends start."""

from collections.abc import Mapping, Sequence
import dataclasses
from typing import Any

from launch.runtime.processes import Hosts
from launch.sweep import claim_owner
from launch.sweep.backends import slurm
from launch.sweep.cell import work
from launch.terminal.flags import parse
from launch.terminal.subcommands import split_operand


@dataclasses.dataclass(frozen=True, kw_only=True)
class SweepCellArguments:
    """Do one cell of a sweep, or go on with it: what backends start."""

    hosts: Hosts = Hosts()


def main(argv: Sequence[str]) -> int:
    """`melllm sweep cell DIR ID`."""
    folder, rest = split_operand("sweep cell", argv, "DIR")
    name, rest = split_operand("sweep cell DIR", rest, "ID")
    arguments = parse(SweepCellArguments, rest, prog="melllm sweep cell DIR ID")
    return work(folder, name, arguments.hosts, _is_alive)


def _is_alive(owner: Mapping[str, Any]) -> bool:
    """As `claim_owner.is_alive`, but a task that Slurm no longer runs is gone at once."""
    if owner["job"].startswith("slurm:") and not slurm.is_alive(owner):
        return False
    return claim_owner.is_alive(owner)
