"""Starting a run from the weights of another model: what is taken over, and what is made anew."""

import dataclasses
import pathlib

import jax

from melllm_jax.checkpoints import integrity, run_folder, weight_store
from melllm_jax.checkpoints.checkpointer import Checkpoints
from melllm_jax.config.run import Init, Run
from melllm_jax.errors import Mistake
from melllm_jax.models.parameters import Weights, init_weights
from melllm_jax.nn.layers import NonTrainable
from melllm_jax.training.train_step import State, Update

COMPUTE_FIELDS = ("remat", "kept", "attention", "scan")  # of a model: how, not what


def adopt_model(run: Run, folder: str) -> Run:
    """`run` with the sizes, the mel and the tokenizer of the model in `folder`.

    What a checkpoint does not have stays the run's: the front end of a model that reads text
    alone, LoRA where none was imported, and how the model is computed. Raises Mistake where
    `folder` holds no model.
    """
    spec = run_folder.read_spec(folder)
    own = {name: getattr(run.model, name) for name in (*COMPUTE_FIELDS, "speech")}
    mel = spec.mel
    if spec.model.front == "none":
        own |= {"front": run.model.front, "c": run.model.c}
        mel = run.mel
    lora = run.lora
    if spec.lora.r:
        lora = dataclasses.replace(spec.lora, dropout=run.lora.dropout)
    text = dataclasses.replace(run.text, tokenizer=spec.text.tokenizer, template=spec.text.template)
    model = dataclasses.replace(spec.model, **own)
    init = Init(path=folder)
    return dataclasses.replace(run, model=model, mel=mel, lora=lora, text=text, init=init)


def init_digest(folder: str) -> str:
    """Hash of a folder's newest whole checkpoint. Raises Mistake where there is none."""
    return integrity.checkpoint_digest(
        integrity.newest_checkpoint(pathlib.Path(folder) / run_folder.CHECKPOINTS)
    )


def fresh_weights(update: Update, folder: str) -> list[str]:
    """The weights of the run that are not in `folder`'s checkpoint: they start at random.

    Raises Mistake for weights that only one of the two has, front end and LoRA excepted, and for
    those that differ in shape.
    """
    found = weight_store.WeightReader(
        integrity.newest_checkpoint(pathlib.Path(folder) / run_folder.CHECKPOINTS)
    ).shapes
    kinds = update.skeleton.kinds
    own_front = any(_is_front(name) for name in found.keys() & kinds.keys())
    for name, (_, shape) in found.items():
        if name in kinds and kinds[name].shape != shape and not _is_front(name):
            raise Mistake(f"init={folder}: {name} is {shape}, the run's is {kinds[name].shape}")
        if name not in kinds and not _is_front(name):
            raise Mistake(
                f"init={folder}: its {name} has no place in the run: lora.r={update.run.lora.r} "
                f"must be the checkpoint's, or import with --lora merge or drop"
            )
    # A stem of other sizes is made anew, but the statistics of its input stay what they are.
    alike = own_front and all(
        name in found and found[name][1] == kind.shape
        for name, kind in kinds.items()
        if _is_front(name)
    )
    kept = lambda name: (
        name in found
        and (
            not _is_front(name)
            or alike
            or (isinstance(kinds[name], NonTrainable) and found[name][1] == kinds[name].shape)
        )
    )
    fresh = [name for name in kinds if not kept(name)]
    for name in fresh:
        if not _is_front(name) and "_lora." not in name:
            raise Mistake(f"init={folder}: has no {name}, which the run needs")
    return fresh


def load_state(update: Update, folder: str, mesh: jax.sharding.Mesh) -> State:
    """The state before the first update, from the newest checkpoint in `folder`.

    Every device reads its own part, in the dtype that the run keeps: bfloat16 where a weight is
    frozen, float32 where it is trained. Raises Mistake as `fresh_weights` does.
    """
    fresh = fresh_weights(update, folder)
    shapes = update.shapes(mesh)
    wanted = {name: x for name, x in (shapes.trained | shapes.frozen).items() if name not in fresh}
    with Checkpoints(f"{folder}/{run_folder.CHECKPOINTS}", update.run.checkpoints) as checkpoints:
        weights: Weights = checkpoints.restore_weights(wanted)[1]
    return update.state_from(weights | init_weights(update.build, update.run.seed, fresh))


def _is_front(name: str) -> bool:
    return name.startswith("front.")
