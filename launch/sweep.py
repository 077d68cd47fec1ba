"""`melllm sweep WHAT`: many runs from one Python file, none of them lost.

A command's module is loaded by name once it is called: a look at the ledger needs no JAX.
"""

from collections.abc import Mapping, Sequence
import importlib
import types

from launch.choice import chosen

COMMANDS: Mapping[str, tuple[str, str]] = types.MappingProxyType(
    {
        "run": ("launch.sweep_run", "run the cells of SPEC.py, or go on with them"),
        "resume": ("launch.sweep_resume", "start what is missing, each cell from its checkpoint"),
        "status": ("launch.sweep_status", "a table of the cells, and when all will be done"),
        "cancel": ("launch.sweep_cancel", "let what runs save and stop"),
        "report": ("launch.sweep_report", "write one page of all that came of it"),
        "cell": ("launch.cell", "do one cell: what backends start"),
    }
)


def main(argv: Sequence[str]) -> int:
    """`melllm sweep run|resume|status|cancel|report|cell …`."""
    if argv and argv[0] in ("-h", "--help"):
        print(_help())
        return 0
    what = chosen("sweep", argv, COMMANDS, missing="say what to do")
    status: int = importlib.import_module(COMMANDS[what][0]).main(argv[1:])
    return status


def _help() -> str:
    width = max(map(len, COMMANDS))
    table = "\n".join(f"  {name:{width}}  {line}" for name, (_, line) in COMMANDS.items())
    return f"""usage: melllm sweep WHAT …

Many runs from one Python file; whatever is killed goes on from its last checkpoint.

what:
{table}

`melllm sweep WHAT --help` says more."""
