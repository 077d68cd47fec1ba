"""`melllm bench WHAT`: figures for this machine, against its own limit."""

from collections.abc import Callable, Mapping, Sequence
import difflib
import json
import types
from typing import Any

from launch import bench_checkpoint, bench_data, bench_decode, bench_train
from melllm_jax.errors import Mistake

Bench = Callable[[Sequence[str]], tuple[dict[str, Any], str, bool]]
BENCHES: Mapping[str, tuple[Bench, str]] = types.MappingProxyType(
    {
        "train": (bench_train.bench, "the update of a preset, beside a plain product of matrices"),
        "checkpoint": (bench_checkpoint.bench, "how long saving stops a run; restoring"),
        "data": (bench_data.bench, "corpora into batches: --data DIR"),
        "decode": (bench_decode.bench, "reading speech, at several batch sizes"),
    }
)
PRESET = "quickstart"  # where none is named


def main(argv: Sequence[str]) -> int:
    """`melllm bench train|checkpoint|data|decode [PRESET] [flags]`."""
    if argv and argv[0] in ("-h", "--help"):
        print(_help())
        return 0
    if not argv or argv[0] not in BENCHES:
        near = difflib.get_close_matches(argv[0] if argv else "", BENCHES, n=1, cutoff=0.0)
        asked = f"bench={argv[0]}: is none of" if argv else "say what to measure:"
        hint = f"; did you mean {near[0]}?" if argv else ""
        raise Mistake(f"{asked} {', '.join(BENCHES)}{hint}")
    what, rest = argv[0], list(argv[1:])
    if not rest or (rest[0].startswith("-") and rest[0] not in ("-h", "--help")):
        rest = [PRESET, *rest]
    figures, text, as_json = BENCHES[what][0](rest)
    print(json.dumps(figures) if as_json else text)
    return 0


def _help() -> str:
    table = "\n".join(f"  {name:10}  {line}" for name, (_, line) in BENCHES.items())
    return f"""usage: melllm bench WHAT [PRESET] [flags]

Figures for this machine: medians, on random weights and numbers. PRESET is {PRESET} if none is
given; its fields are flags as of `melllm train`. --json prints one JSON object.

what:
{table}

`melllm bench WHAT --help` says more."""
