"""`melllm bench WHAT`: figures for this machine, against its own limit."""

from collections.abc import Callable, Mapping, Sequence
import json
import types
from typing import Any

from launch import bench_checkpoint, bench_data, bench_decode, bench_train
from launch.choice import chosen

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
    what = chosen("bench", argv, BENCHES, missing="say what to measure")
    rest = list(argv[1:])
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
