"""`melllm sweep run SPEC.py`: runs the cells of a file, or those that are missing."""

import ast
from collections.abc import Sequence
import dataclasses
import time
from typing import Annotated, Any

from tyro.conf import UseAppendAction, arg

from data_pipelines.corpora.corpus import list_splits
from launch.bench.matmul_rate import measure_matmul_rate
from launch.commands.sweep.submit import BACKENDS, BackendName, BackendOptions, submit
from launch.sweep import cost, ledger, spec
from launch.sweep.backends import gke
from launch.sweep.ledger import Cell, Eval, Sweep
from launch.terminal import text_table
from launch.terminal.flags import SOURCE_FLAG, parse
from launch.terminal.subcommands import split_operand
from melllm_jax.config.data import Source
from melllm_jax.errors import Mistake


@dataclasses.dataclass(frozen=True, kw_only=True)
class SweepRunArguments:
    """Run the cells of SPEC.py, or go on with them: the same command resumes by itself."""

    workdir: str  # folder of the sweep: ledger, runs, logs, report
    backend: BackendName = "local"
    data: Annotated[
        tuple[Annotated[Source, SOURCE_FLAG], ...],
        UseAppendAction,
        arg(
            metavar="DIR[=WEIGHT[:HOURSh]]",
            help="corpora of every cell that names none itself, as `melllm train` takes them",
        ),
    ] = ()
    set: Annotated[
        tuple[str, ...],
        UseAppendAction,
        arg(
            metavar="FIELD=VALUE", help="a field of every cell that does not set it: optim.lr=1e-3"
        ),
    ] = ()
    eval: Eval = Eval()
    topology: str = ""  # the pod that hours and cost are planned for, v5p:4x4x4; "" is this machine
    price: float = 0.0  # of a chip for an hour; 0 tells no cost
    dry_run: bool = False  # print every cell with what it costs, and start nothing
    options: Annotated[BackendOptions, arg(name="")] = BackendOptions()


def main(argv: Sequence[str]) -> int:
    """`melllm sweep run SPEC.py --workdir DIR [--backend local] [--data DIR] [--dry-run]`."""
    path, rest = split_operand("sweep run", argv, "SPEC.py")
    arguments = parse(SweepRunArguments, rest, prog=f"melllm sweep run {path or 'SPEC.py'}")
    common = _common(arguments)
    specified = spec.load(path, common)
    rate = measure_matmul_rate if arguments.backend == "local" else cost.unknown_rate
    plans = cost.plan_cells(specified, arguments.topology, arguments.price, rate)
    if arguments.dry_run:
        text_table.show(cost.table(specified, plans))
        if arguments.backend == "gke":
            names = [cell.id for cell in specified.cells]
            print(f"---\n{gke.text(arguments.workdir, names, arguments.options.gke)}", end="")
        return 0
    options = getattr(arguments.options, arguments.backend)
    BACKENDS[arguments.backend].check(options, arguments.workdir)
    if arguments.backend != "gke":  # whose pods see other disks than this machine
        _check_corpora(specified, arguments.eval)
    sweep = Sweep(
        name=specified.name,
        digest=specified.digest,
        cells=tuple(cell.id for cell in specified.cells),
        common=common,
        backend=arguments.backend,
        options=dataclasses.asdict(options),
        eval=dataclasses.asdict(arguments.eval),
        topology=arguments.topology,
        price=arguments.price,
    )
    now = time.time()
    cells = [
        Cell(cell.id, index, dict(cell.overrides), cell.run.optim.steps, plan, now)
        for index, (cell, plan) in enumerate(zip(specified.cells, plans, strict=True))
    ]
    return submit(ledger.create(arguments.workdir, sweep, cells), arguments.backend, options)


def _check_corpora(specified: spec.SweepSpec, scored: Eval) -> None:
    """Raises Mistake for a corpus that is not here, or lacks the split that a cell reads of it.

    A cell would say so too, but only when its turn in a queue has come, or its training is over.
    """
    runs = [cell.run for cell in specified.cells]
    if not all(run.data.sources for run in runs):
        raise Mistake("data: give at least one corpus with --data DIR")
    wanted = {(source.path, "train") for run in runs for source in run.data.sources}
    firsts = (scored.data or run.data.sources[0].path for run in runs)
    for path, split in sorted(wanted | {(first, scored.split) for first in firsts}):
        known = list_splits(path)
        if split not in known:
            field = "split" if split == "train" else "eval.split"
            raise Mistake(f"{field}={split}: {path} has {', '.join(known)}")


def _common(arguments: SweepRunArguments) -> dict[str, Any]:
    """Overrides of all cells, from flags. Raises Mistake for one that is no FIELD=VALUE."""
    overrides: dict[str, Any] = {}
    if arguments.data:
        overrides["data.sources"] = [
            {"path": one.path, "weight": one.weight, "hours": one.hours} for one in arguments.data
        ]
    for text in arguments.set:
        name, equals, value = text.partition("=")
        if not equals:
            raise Mistake(f"set={text}: must be FIELD=VALUE, such as optim.lr=1e-3")
        try:
            overrides[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            overrides[name] = value
    return overrides
