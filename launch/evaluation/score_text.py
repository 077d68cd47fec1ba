"""Scores a model on text: perplexity, and bits a byte, which depend on no tokenizer."""

from collections.abc import Iterator, Sequence
import json
import math
import pathlib
from typing import Any

import jax

from data_pipelines.examples.text_windows import Windows, window_batches
from data_pipelines.reject import Unusable
from data_pipelines.text.load_tokenizer import load_tokenizer
from data_pipelines.text.tokenizer import Tokenizer
from launch.runs.model_loader import load_model, mesh_for
from launch.runs.text_generator import text_opening
from launch.terminal.text_input import read_text
from melllm_jax.checkpoints import run_folder
from melllm_jax.config.model import ModelSpec
from melllm_jax.errors import Mistake
from melllm_jax.evaluation.drift import measure_drift
from melllm_jax.evaluation.held_out_loss import HeldOutLoss, measure_next_token_loss
from melllm_jax.json_text import parse_json
from melllm_jax.models.parameters import text_model
from melllm_jax.models.speech_lm import SpeechLM

WINDOW = 2048  # tokens, where the model has so many positions


def score_text(
    checkpoint: str, file: str, *, window: int = 0, stride: int = 0, against: str = ""
) -> dict[str, Any]:
    """The perplexity of the model in `checkpoint` on the texts of a file, and what it rests on.

    `window` = 0 takes 2,048 tokens, or all positions of a model with fewer; `stride` = 0 takes half
    a window: see `Windows`. Weights and products are float32. The bytes of bits a byte are those of
    the tokens scored, in UTF-8: without a token that opens every text, the first is not scored.
    `against` is the folder of another model, and the figures then tell, under that name, how far
    the first is from it on the same targets: see `measure_drift`. Raises Mistake for a file without
    text, or with what the tokenizer lacks, and for another model of other tokens.
    """
    spec = run_folder.read_spec(checkpoint)
    tokenizer = load_tokenizer(spec.text.tokenizer)
    longest = spec.model.rope.longest
    if against:
        longest = min(longest, _read_base(against, checkpoint, tokenizer).model.rope.longest)
    if window > longest:
        raise Mistake(f"window={window}: the model has {longest} positions (rope.longest)")
    length = window or min(WINDOW, longest)
    windows = Windows(length, stride or length // 2)
    opening = text_opening(checkpoint, spec, tokenizer)
    texts = [(where, text) for where, text in read_texts(file) if text]
    rows = [[*opening, *_encode(tokenizer, text, where)] for where, text in texts]
    if max((len(row) for row in rows), default=0) < 2:
        raise Mistake(f"text={file}: must hold two tokens or more")
    if max(map(max, rows)) >= spec.model.v:
        raise Mistake(
            f"text={file}: has token {max(map(max, rows))}: the model has v={spec.model.v}"
        )
    mesh = mesh_for(spec)
    with jax.set_mesh(mesh):
        step, model = _load_for_text(checkpoint)
        batches = window_batches(rows, windows, 0, mesh.size)
        if against:
            base_step, base = _load_for_text(against)
            found = measure_drift(model, base, batches)
        else:
            found = measure_next_token_loss(model, batches)
    unscored = 0 if opening else sum(len(tokenizer.decode(row[:1]).encode()) for row in rows)
    count = sum(len(text.encode()) for _, text in texts)
    return {
        "perplexity": math.exp(found.loss),
        "nats_per_token": found.loss,
        "bits_per_byte": found.loss * found.targets / math.log(2) / max(count - unscored, 1),
        "accuracy": found.metrics["accuracy"],
        "tokens": round(found.targets),
        "bytes": count,
        "texts": len(texts),
        "window": windows.length,
        "stride": windows.stride,
        "opening": list(opening),
        "dtype": "float32",
        "chip": jax.devices()[0].device_kind,
        "devices": mesh.size,
        "checkpoint": checkpoint,
        "step": step,
        "text": file,
        **({"against": _drift_figures(found, against, base_step)} if against else {}),
    }


def _load_for_text(checkpoint: str) -> tuple[int, SpeechLM]:
    """The updates after which a model was saved, and what text needs of it, in float32."""
    found = load_model(pathlib.Path(checkpoint), "float32")
    return found.step, text_model(found.model)


def _read_base(against: str, checkpoint: str, tokenizer: Tokenizer) -> ModelSpec:
    """What the model in `against` is. Raises Mistake where its tokens are not `tokenizer`'s."""
    base = run_folder.read_spec(against)
    if load_tokenizer(base.text.tokenizer).digest() != tokenizer.digest():
        raise Mistake(
            f"against={against}: has another tokenizer than {checkpoint}: "
            "probabilities of other tokens cannot be compared"
        )
    if base.model.v < tokenizer.size:
        raise Mistake(
            f"against={against}: the model has v={base.model.v}: its tokenizer has "
            f"{tokenizer.size} ids"
        )
    mesh_for(base)
    return base


def _drift_figures(found: HeldOutLoss, against: str, step: int) -> dict[str, Any]:
    """The figures of `measure_drift`; perplexities are over the tokens that both models have."""
    return {
        "checkpoint": against,
        "step": step,
        "kl": found.metrics["kl"],
        "base_perplexity": math.exp(found.metrics["base_loss"]),
        "perplexity": math.exp(found.metrics["model_loss"]),
    }


def read_texts(file: str) -> list[tuple[str, str]]:
    """Where each text of a file is, and the text: of each line of a .jsonl, else the file's whole.

    A line is an object with `text`; its other fields are left alone, as in a manifest. Raises
    Mistake for a file, or a line, that is neither.
    """
    whole = read_text(file)
    if pathlib.Path(file).suffix != ".jsonl":
        return [(file, whole)]
    return list(_manifest_texts(file, whole))


def _manifest_texts(file: str, whole: str) -> Iterator[tuple[str, str]]:
    for number, line in enumerate(whole.split("\n"), start=1):
        if line.strip():
            where = f"{file} line {number}"
            try:
                fields = parse_json(line)
            except json.JSONDecodeError as error:
                raise Mistake(f"{where}: is no JSON: {error}") from error
            text = fields.get("text") if isinstance(fields, dict) else None
            if not isinstance(text, str):
                raise Mistake(f"{where}: text={repr(text)[:40]}: must be a string")
            yield where, text


def _encode(tokenizer: Tokenizer, text: str, where: str) -> Sequence[int]:
    try:
        return tokenizer.encode_marked(text)
    except Unusable as error:
        raise Mistake(f"{where}: {error}") from error
