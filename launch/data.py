"""`melllm data WHAT`: corpora brought in, looked at, measured, and tokenizers for them.

A command's module is loaded by name once it is called: bringing in a corpus needs no JAX.
"""

from collections.abc import Mapping, Sequence
import importlib
import types

from launch.choice import chosen

COMMANDS: Mapping[str, tuple[str, str]] = types.MappingProxyType(
    {
        "import": ("launch.data_import", "a foreign corpus as manifests"),
        "export-tfds": ("launch.data_tfds", "shards as a TFDS dataset"),
        "speak": ("launch.data_speak", "the synthetic corpus in any size, with noise or without"),
        "inspect": ("launch.inspect", "what is in a corpus: figures, and a page to see and hear"),
        "bench": ("launch.bench_data", "how fast corpora become batches, and what that feeds"),
        "tokenizer": ("launch.data_tokenizer", "train a SentencePiece table on transcripts"),
    }
)


def main(argv: Sequence[str]) -> int:
    """`melllm data WHAT …`."""
    if argv and argv[0] in ("-h", "--help"):
        print(_help())
        return 0
    what = chosen("data", argv, COMMANDS, missing="say what to do")
    status: int = importlib.import_module(COMMANDS[what][0]).main(argv[1:])
    return status


def _help() -> str:
    width = max(map(len, COMMANDS))
    table = "\n".join(f"  {name:{width}}  {line}" for name, (_, line) in COMMANDS.items())
    return f"""usage: melllm data WHAT …

What is done to corpora before training; `melllm prepare` makes shards of them.

what:
{table}

`melllm data WHAT --help` says more."""
