"""`melllm generate`: text after prompts, as the model writes it."""

from collections.abc import Sequence
import dataclasses
import json
import pathlib
import sys
from typing import Literal

import jax
from tyro.conf import Positional

from data_pipelines.text.load_tokenizer import load_tokenizer
from data_pipelines.text.text_prompt import ChatUse
from launch.runs.model_loader import load_model, mesh_for
from launch.runs.text_generator import Completion, TextGenerator
from launch.runtime import compile_cache
from launch.terminal.flags import parse
from launch.terminal.text_input import STDIN, read_text
from melllm_jax.checkpoints import run_folder
from melllm_jax.errors import Mistake
from melllm_jax.inference.sampling import DecodingOptions


@dataclasses.dataclass(frozen=True, kw_only=True)
class GenerateArguments:
    """Continue text, or answer it by the model's chat template; it is printed as it is written.

    A prompt "-" is all of standard input. Several prompts are answered one after another, an empty
    line between them.
    """

    prompts: Positional[tuple[str, ...]] = ()  # each to be continued by itself
    checkpoint: str  # folder of an import or of a run
    file: str = ""  # a prompt a line; - reads the lines of standard input
    tokens: int = 256  # most that are written after each prompt
    chat: ChatUse = "auto"  # ask by the chat template beside the tokenizer; auto: if there is one
    system: str = ""  # the system message of the chat template
    temperature: float = 0.0  # 0 takes the likeliest token
    top_p: float = 1.0  # sampling keeps the likeliest tokens that make up this share
    seed: int = 0  # of sampling
    guard: bool = False  # stop a text that repeats itself
    batch: int = 1  # prompts answered at once; then none is printed before all of them are done
    dtype: Literal["float32", "bfloat16"] = "float32"  # of weights and products
    json: bool = False  # one JSON object a prompt, each in a line, instead of text


def main(argv: Sequence[str]) -> int:
    """`melllm generate --checkpoint DIR "PROMPT"…`."""
    arguments = parse(GenerateArguments, argv, prog="melllm generate")
    options = DecodingOptions(
        temperature=arguments.temperature, top_p=arguments.top_p, guard=arguments.guard
    )
    prompts = _prompts(arguments)
    spec = run_folder.read_spec(arguments.checkpoint)
    tokenizer = load_tokenizer(spec.text.tokenizer)
    with jax.set_mesh(mesh_for(spec)), compile_cache.use_folder(compile_cache.FOLDER):
        model = load_model(pathlib.Path(arguments.checkpoint), arguments.dtype)
        completions = TextGenerator(model, tokenizer, options)(
            prompts,
            arguments.tokens,
            batch=arguments.batch,
            seed=arguments.seed,
            chat=arguments.chat,
            system=arguments.system,
            write=(lambda piece: None) if arguments.json else _print_piece,
        )
        for number, found in enumerate(completions):
            _print_completion(arguments, number, found, len(prompts))
    return 0


def _prompts(arguments: GenerateArguments) -> list[str]:
    """The prompts of all places, in the order of words, then lines. Raises Mistake for none."""
    prompts = [
        read_text(STDIN).rstrip("\r\n") if word == STDIN else word for word in arguments.prompts
    ]
    if arguments.file:
        lines = read_text(arguments.file).splitlines()
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                raise Mistake(f"{arguments.file} line {number}: is empty: must hold a prompt")
        prompts += lines
    if not prompts:
        raise Mistake("prompts: give one at least, or --file FILE")
    return prompts


def _print_completion(
    arguments: GenerateArguments, number: int, found: Completion, count: int
) -> None:
    """Prints what of a completion was not printed as it came."""
    if arguments.json:
        print(json.dumps(dataclasses.asdict(found)), flush=True)
        return
    streamed = arguments.batch == 1
    alone = number == count - 1 and number % arguments.batch == 0  # in the last batch
    if not (streamed or alone):
        print(found.text, end="")
    print("\n" if number < count - 1 else "", flush=True)
    if found.looped:
        print("stopped, because it repeated itself", file=sys.stderr)


def _print_piece(piece: str) -> None:
    print(piece, end="", flush=True)
