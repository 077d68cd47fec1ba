"""The config of a run that starts from other checkpoints: what it takes over from them, and keeps.

Without JAX: sweeps read their cells and draw their pages with it.
"""

import dataclasses
from typing import Any

from melllm_jax.checkpoints import run_folder
from melllm_jax.config.features import Mel
from melllm_jax.config.run import RANDOM, Run
from melllm_jax.errors import Mistake

FRONT_FIELDS = ("front", "c", "conformer", "whisper")  # of a model: its front end and its sizes
COMPUTE_FIELDS = ("remat", "kept", "attention", "scan")  # of a model: how it is computed


def run_from(run: Run, init: str, front: str) -> Run:
    """`run` with the sizes of the model in `init`, and the front end in `front`, where given."""
    run = adopt_model(run, init) if init else run
    return adopt_front(run, front) if front not in ("", RANDOM) else run


def adopt_model(run: Run, folder: str) -> Run:
    """`run` with the sizes, the mel and the tokenizer of the model in `folder`.

    What a checkpoint does not have stays the run's: the front end of a model that reads text
    alone, LoRA where none was imported, and how the model is computed. A run with the conv front
    end takes a Conformer's stem, and a run with a Conformer says itself that it has one. Raises
    Mistake where `folder` holds no model.
    """
    spec = run_folder.read_spec(folder)
    own = {name: getattr(run.model, name) for name in (*COMPUTE_FIELDS, "speech")}
    mel = spec.mel
    if spec.model.front == "none":
        own |= {name: getattr(run.model, name) for name in FRONT_FIELDS}
        mel = run.mel
    if {spec.model.front, run.model.front} == {"conv", "conformer"}:
        own |= {"front": run.model.front}
        if spec.model.front == "conv":
            own |= {"conformer": run.model.conformer}
    lora = run.lora
    if spec.lora.r:
        lora = dataclasses.replace(spec.lora, dropout=run.lora.dropout)
    theirs = {x: getattr(spec.text, x) for x in ("tokenizer", "template", "placeholder")}
    text = dataclasses.replace(run.text, **theirs)
    model = dataclasses.replace(spec.model, **own)
    init = dataclasses.replace(run.init, path=folder)
    return dataclasses.replace(run, model=model, mel=mel, lora=lora, text=text, init=init)


def adopt_front(run: Run, folder: str) -> Run:
    """`run` with the front end in `folder`: its kind, its sizes and its mel.

    The token rate stays the run's where an encoder alone was imported, which has none. Raises
    Mistake where `folder` holds no front end.
    """
    fields, mel = read_front_fields(folder)
    if run_folder.read_front(folder) is not None:
        mel = dataclasses.replace(mel, r=run.mel.r)
    model = dataclasses.replace(run.model, **fields)
    init = dataclasses.replace(run.init, front=folder)
    return dataclasses.replace(run, model=model, mel=mel, init=init)


def read_front_fields(folder: str) -> tuple[dict[str, Any], Mel]:
    """The fields of a model that say which front end is in `folder`, and the mel that it hears."""
    alone = run_folder.read_front(folder)
    if alone is not None:
        return {"front": alone.front, "whisper": alone.whisper}, alone.mel
    spec = run_folder.read_spec(folder)
    if spec.model.front == "none":
        raise Mistake(f"init.front={folder}: holds no front end: its model reads text alone")
    return {name: getattr(spec.model, name) for name in FRONT_FIELDS}, spec.mel
