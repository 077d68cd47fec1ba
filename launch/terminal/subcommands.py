"""All commands of `melllm` in one nested table, their help, and the choice of one by its words.

What must hold: printing help starts no command, so this file imports neither JAX nor NumPy. A
command's module is therefore imported by name, here and nowhere else, once it is called.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import difflib
import importlib
import sys

from melllm_jax.errors import Mistake


@dataclasses.dataclass(frozen=True)
class Command:
    """One command: a function that takes the rest of the line and returns an exit status."""

    summary: str  # one line of help
    module: str
    function: str = "main"


@dataclasses.dataclass(frozen=True)
class CommandGroup:
    """Commands that share their first word."""

    summary: str  # one line of help
    about: str  # the text above the table in the help of the group
    commands: Mapping[str, Command]
    operands: str = "…"  # of its commands, as the usage line has them
    question: str = "say what to do"  # where the second word is missing


DATA = CommandGroup(
    "look at a corpus, measure how fast it reads, train a tokenizer on it",
    "What is done to corpora before training; `melllm prepare` makes shards of them.",
    {
        "import": Command("a foreign corpus as manifests", "launch.commands.data.import_corpus"),
        "export-tfds": Command("shards as a TFDS dataset", "launch.commands.data.export_tfds"),
        "speak": Command(
            "the synthetic corpus in any size, with noise or without", "launch.commands.data.speak"
        ),
        "inspect": Command(
            "what is in a corpus: figures, and a page to see and hear",
            "launch.commands.data.inspect",
        ),
        "bench": Command(
            "how fast corpora become batches, and what that feeds", "launch.bench.data_loading"
        ),
        "tokenizer": Command(
            "train a SentencePiece table on transcripts", "launch.commands.data.tokenizer"
        ),
    },
)
CONVERT = CommandGroup(
    "checkpoints from and to Hugging Face's layout",
    "Checkpoints from and to Hugging Face's layout, and whether both agree.",
    {
        "import": Command(
            "turn a Phi checkpoint of safetensors into a checkpoint of ours, block by block",
            "launch.commands.convert",
            "import_command",
        ),
        "export": Command(
            "write a checkpoint, of training or imported, as safetensors that transformers loads",
            "launch.commands.convert",
            "export_command",
        ),
        "check": Command(
            "run the original in torch and the import in JAX, and say how far they are apart",
            "launch.commands.convert",
            "check_command",
        ),
    },
)
SWEEP = CommandGroup(
    "many runs from one Python file, none of them lost; their report",
    "Many runs from one Python file; whatever is killed goes on from its last checkpoint.",
    {
        "run": Command("run the cells of SPEC.py, or go on with them", "launch.commands.sweep.run"),
        "resume": Command(
            "start what is missing, each cell from its checkpoint", "launch.commands.sweep.resume"
        ),
        "status": Command(
            "a table of the cells, and when all will be done", "launch.commands.sweep.status"
        ),
        "cancel": Command("let what runs save and stop", "launch.commands.sweep.cancel"),
        "report": Command("write one page of all that came of it", "launch.commands.sweep.report"),
        "cell": Command("do one cell: what backends start", "launch.commands.sweep.cell"),
    },
)
SCALING = CommandGroup(
    "fit a scaling law to runs, and find the best run of a budget",
    "Laws of loss over parameters and tokens.",
    {
        "fit": Command(
            "fit a law to the runs of a sweep or a CSV", "launch.commands.scaling", "fit"
        ),
        "predict": Command(
            "the best run of a budget, by a law", "launch.commands.scaling", "predict"
        ),
    },
)
BENCH = CommandGroup(
    "figures for this machine: training, decoding, data, checkpoints",
    "Figures for this machine: medians, on random weights and numbers. PRESET is quickstart if\n"
    "none is given; its fields are flags as of `melllm train`. --json prints one JSON object.",
    {
        "train": Command(
            "the update of a preset, beside a plain product of matrices",
            "launch.commands.bench",
            "bench_train",
        ),
        "checkpoint": Command(
            "how long saving stops a run; restoring", "launch.commands.bench", "bench_checkpoint"
        ),
        "data": Command("corpora into batches: --data DIR", "launch.commands.bench", "bench_data"),
        "decode": Command(
            "reading speech, at several batch sizes", "launch.commands.bench", "bench_decode"
        ),
    },
    operands="[PRESET] [flags]",
    question="say what to measure",
)
COMMANDS: dict[str, Command | CommandGroup] = {
    "quickstart": Command(
        "make a spoken corpus, train on it, score it, transcribe it", "launch.commands.quickstart"
    ),
    "prepare": Command(
        "turn a corpus into shards that training reads at random", "launch.commands.prepare"
    ),
    "data": DATA,
    "train": Command(
        "train a preset on prepared data, or go on where it stopped", "launch.commands.train"
    ),
    "evaluate": Command(
        "word error rate of a run on a split, or perplexity on text", "launch.commands.evaluate"
    ),
    "compare": Command(
        "systems in one table: WER, spoken questions, speed, memory", "launch.commands.compare"
    ),
    "transcribe": Command("text of wav, flac, mp3 and ogg files", "launch.commands.transcribe"),
    "generate": Command("text after prompts, as a model writes it", "launch.commands.generate"),
    "speak": Command("sound of texts, by a run that speaks", "launch.commands.speak"),
    "convert": CONVERT,
    "logits": Command(
        "scores of a checkpoint for given tokens, to debug a port", "launch.commands.logits"
    ),
    "plan": Command(
        "memory, time and cost of a preset on a pod that is not here", "launch.commands.plan"
    ),
    "sweep": SWEEP,
    "scaling": SCALING,
    "bench": BENCH,
    "wer": Command("word error rate between two files of transcripts", "launch.commands.wer"),
}


def run_command(args: Sequence[str], before_jax: Callable[[], None]) -> int:
    """Run the command that the first word or two of `args` name: its exit status.

    `before_jax` is called before a command that loads JAX. Raises Mistake, with the nearest name,
    where the words name none.
    """
    name, rest = args[0], args[1:]
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1, cutoff=0.0)
        raise Mistake(f"unknown command {name!r}: did you mean {near[0]}?")
    entry = COMMANDS[name]
    if isinstance(entry, CommandGroup):
        if rest and rest[0] in ("-h", "--help"):
            print(group_help(name, entry))
            return 0
        word = _choose_subcommand(name, rest, entry)
        entry, rest = entry.commands[word], rest[1:]
    function = getattr(importlib.import_module(entry.module), entry.function)
    if "jax" in sys.modules and not {"-h", "--help"} & {*rest}:
        before_jax()
    status: int = function(rest)
    return status


def split_operand(command: str, argv: Sequence[str], name: str) -> tuple[str, Sequence[str]]:
    """The operand of `melllm COMMAND`, and the flags after it; "" where help is asked for.

    Raises Mistake where it is missing; `name` is what help calls it.
    """
    if argv and argv[0] in ("-h", "--help"):
        return "", argv
    if not argv or not argv[0] or argv[0].startswith("-"):
        raise Mistake(f"no {name} given: melllm {command} {name}")
    return argv[0], argv[1:]


def main_help() -> str:
    """The text of `melllm --help`."""
    return f"""usage: melllm COMMAND [arguments]

Encoder-free speech language models: mel patches straight into an LLM.

commands:
{_table(COMMANDS)}

`melllm COMMAND --help` says what a command takes; `melllm --version` says which this is.
Exit status: 0 success, 1 a fault from outside, 2 a mistake in what was asked for."""


def group_help(name: str, group: CommandGroup) -> str:
    """The text of `melllm NAME --help` of a group."""
    return f"""usage: melllm {name} WHAT {group.operands}

{group.about}

what:
{_table(group.commands)}

`melllm {name} WHAT --help` says more."""


def _table(commands: Mapping[str, Command | CommandGroup]) -> str:
    width = max(map(len, commands))
    return "\n".join(f"  {name:{width}}  {entry.summary}" for name, entry in commands.items())


def _choose_subcommand(name: str, rest: Sequence[str], group: CommandGroup) -> str:
    """The first word of `rest`. Raises Mistake where it is missing or names no command."""
    names = ", ".join(group.commands)
    if not rest:
        raise Mistake(f"{group.question}: {names}")
    if rest[0] not in group.commands:
        near = difflib.get_close_matches(rest[0], group.commands, n=1, cutoff=0.0)
        raise Mistake(f"{name}={rest[0]}: is none of {names}; did you mean {near[0]}?")
    return rest[0]
