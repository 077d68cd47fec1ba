"""`melllm bench WHAT [PRESET] [flags]`: figures for this machine beside its own limit."""

from collections.abc import Callable, Sequence
import json
from typing import Any

from launch.bench import checkpointing, data_loading, decoding, train_step

Bench = Callable[[Sequence[str]], tuple[dict[str, Any], str, bool]]
PRESET = "quickstart"  # where none is named


def bench_train(argv: Sequence[str]) -> int:
    """`melllm bench train`: the update of a preset, beside a plain product of matrices."""
    return _print_figures(train_step.bench, argv)


def bench_checkpoint(argv: Sequence[str]) -> int:
    """`melllm bench checkpoint`: how long saving stops a run, and restoring."""
    return _print_figures(checkpointing.bench, argv)


def bench_data(argv: Sequence[str]) -> int:
    """`melllm bench data`: how fast corpora become batches."""
    return _print_figures(data_loading.bench, argv)


def bench_decode(argv: Sequence[str]) -> int:
    """`melllm bench decode`: how fast speech is read, at several batch sizes."""
    return _print_figures(decoding.bench, argv)


def _print_figures(bench: Bench, argv: Sequence[str]) -> int:
    rest = list(argv)
    if not rest or (rest[0].startswith("-") and rest[0] not in ("-h", "--help")):
        rest = [PRESET, *rest]
    figures, text, as_json = bench(rest)
    print(json.dumps(figures) if as_json else text)
    return 0
