"""`melllm data WHAT`: corpora brought in, looked at, measured, and tokenizers for them."""

from collections.abc import Callable, Mapping, Sequence
import types

from launch import bench_data, data_import, data_tfds, data_tokenizer, inspect
from launch.choice import chosen

COMMANDS: Mapping[str, tuple[Callable[[Sequence[str]], int], str]] = types.MappingProxyType(
    {
        "import": (data_import.main, "a foreign corpus as manifests"),
        "export-tfds": (data_tfds.main, "shards as a TFDS dataset"),
        "inspect": (inspect.main, "what is in a corpus: figures, and a page to see and hear"),
        "bench": (bench_data.main, "how fast corpora become batches, and what that feeds"),
        "tokenizer": (data_tokenizer.main, "train a SentencePiece table on transcripts"),
    }
)


def main(argv: Sequence[str]) -> int:
    """`melllm data WHAT …`."""
    if argv and argv[0] in ("-h", "--help"):
        print(_help())
        return 0
    what = chosen("data", argv, COMMANDS, missing="say what to do")
    return COMMANDS[what][0](argv[1:])


def _help() -> str:
    width = max(map(len, COMMANDS))
    table = "\n".join(f"  {name:{width}}  {line}" for name, (_, line) in COMMANDS.items())
    return f"""usage: melllm data WHAT …

What is done to corpora before training; `melllm prepare` makes shards of them.

what:
{table}

`melllm data WHAT --help` says more."""
