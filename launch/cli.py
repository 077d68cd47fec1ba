"""`melllm`: finds the command, runs it, and turns its end into an exit status.

What must hold: `melllm --help` starts no command, so it imports neither JAX nor NumPy. That is why
a command's module is loaded by name, here and nowhere else, and only once it is called.
"""

from collections.abc import Sequence
import difflib
import importlib
import os
import sys

from launch import platforms
from melllm_jax import __version__
from melllm_jax.errors import Fault, Mistake

COMMANDS: dict[str, tuple[str, str]] = {
    "quickstart": (
        "launch.quickstart",
        "make a spoken corpus, train on it, score it, transcribe it",
    ),
    "prepare": ("launch.prepare", "turn a corpus into shards that training reads at random"),
    "data": ("launch.data", "look at a corpus, measure how fast it reads, train a tokenizer on it"),
    "train": ("launch.train", "train a preset on prepared data, or go on where it stopped"),
    "evaluate": ("launch.evaluate", "word error rate and speed of a run on a split"),
    "transcribe": ("launch.transcribe", "text of wav, flac, mp3 and ogg files"),
    "convert": ("launch.convert", "checkpoints from and to Hugging Face's layout"),
    "logits": ("launch.logits", "scores of a checkpoint for given tokens, to debug a port"),
    "plan": ("launch.plan", "memory, time and cost of a preset on a pod that is not here"),
    "sweep": ("launch.sweep", "many runs from one Python file, none of them lost; their report"),
    "scaling": ("launch.scaling", "fit a scaling law to runs, and find the best run of a budget"),
    "bench": ("launch.bench", "figures for this machine: training, decoding, data, checkpoints"),
    "wer": ("launch.wer", "word error rate between two files of transcripts"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run `melllm` with `argv` (the process's own arguments if None): its exit status.

    0 success; 1 a fault from outside; 2 a user's mistake; 130 interrupted; 141 a closed pipe. The
    first two kinds of trouble end in one line on standard error. Any other exception is a bug and
    passes through, so that Python prints its traceback and exits with 1.
    """
    platforms.settle()
    args = list(sys.argv[1:] if argv is None else argv)
    prog = f"melllm {args[0]}" if args and args[0] in COMMANDS else "melllm"
    try:
        status = _run(args)
        sys.stdout.flush()  # a closed pipe must show here, not while Python shuts down
        return status
    except Mistake as mistake:
        return _complain(prog, mistake, 2)
    except Fault as fault:
        return _complain(prog, fault, 1)
    except KeyboardInterrupt:
        return 130  # 128 + SIGINT
    except BrokenPipeError:
        # Python flushes standard output once more as it exits: give that flush somewhere to go.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141  # 128 + SIGPIPE


def _run(args: list[str]) -> int:
    if not args:
        raise Mistake("no command given: `melllm --help` lists them")
    name, rest = args[0], args[1:]
    if name in ("-h", "--help"):
        print(_help())
        return 0
    if name == "--version":
        print(f"melllm {__version__}")
        return 0
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1, cutoff=0.0)
        raise Mistake(f"unknown command {name!r}: did you mean {near[0]}?")
    status: int = importlib.import_module(COMMANDS[name][0]).main(rest)
    return status


def _help() -> str:
    width = max(map(len, COMMANDS))
    table = "\n".join(f"  {name:{width}}  {line}" for name, (_, line) in COMMANDS.items())
    return f"""usage: melllm COMMAND [arguments]

Encoder-free speech language models: mel patches straight into an LLM.

commands:
{table}

`melllm COMMAND --help` says what a command takes; `melllm --version` says which this is.
Exit status: 0 success, 1 a fault from outside, 2 a mistake in what was asked for."""


def _complain(prog: str, trouble: Exception, status: int) -> int:
    print(f"{prog}: error: {' '.join(str(trouble).split())}", file=sys.stderr)
    return status
