"""`melllm logits`: scores of a checkpoint for given tokens and sound, to debug a port."""

from collections.abc import Sequence
import dataclasses
import json
import pathlib
from typing import Literal

import jax
import numpy as np

from launch.runs.model_loader import load_model, single_device_mesh
from launch.terminal.flags import parse
from melllm_jax.errors import Fault, Mistake


@dataclasses.dataclass(frozen=True, kw_only=True)
class LogitsArguments:
    """Scores of every next token, float32 [b t v], written as .npy; on one device.

    Each row of tokens is a prompt of its own. Sound stands where the tokens have the placeholder:
    once a position, ceil(frames / r) positions a clip.
    """

    checkpoint: pathlib.Path  # folder of an import or of a run
    tokens: pathlib.Path  # .npy of ids, [t] or [b t]
    out: pathlib.Path  # .npy to be written
    audio: tuple[str, ...] = ()  # sound files of the clips, in the order of their placeholders
    audio_token: int | None = None  # id of the placeholder; by default the checkpoint's own
    dtype: Literal["float32", "bfloat16"] = "float32"  # of weights and products
    json: bool = False  # print one JSON object on standard output and nothing else


def main(argv: Sequence[str]) -> int:
    """`melllm logits --checkpoint DIR --tokens IDS.npy [--audio FILE…] --out LOGITS.npy`."""
    arguments = parse(LogitsArguments, argv, prog="melllm logits")
    tokens = _read_tokens(arguments.tokens)
    with jax.set_mesh(single_device_mesh()):
        model = load_model(arguments.checkpoint, arguments.dtype)
        rows = tokens[None] if tokens.ndim == 1 else tokens
        scores = model.logits(rows, arguments.audio, arguments.audio_token)
    logits = scores.reshape(*tokens.shape, -1)
    try:
        with arguments.out.open("wb") as file:  # np.save adds .npy to a name that lacks it
            np.save(file, logits)
    except OSError as error:
        raise Fault(f"{arguments.out}: cannot be written: {error.strerror}") from error
    figures = {"out": str(arguments.out), "shape": list(logits.shape), "dtype": arguments.dtype}
    text = f"{arguments.out}: float32 {list(logits.shape)}"
    print(json.dumps(figures) if arguments.json else text)
    return 0


def _read_tokens(path: pathlib.Path) -> np.ndarray:
    try:
        tokens = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise Mistake(f"tokens={path}: is no .npy of ids: {error}") from error
    if not isinstance(tokens, np.ndarray) or tokens.ndim not in (1, 2):
        raise Mistake(f"tokens={path}: must be [t] or [b t]")
    return tokens
