"""The weights of a frozen teacher: checked when a run starts, then read at each of its starts."""

from collections.abc import Mapping
import dataclasses
import pathlib
from typing import Any

import jax

from melllm_jax import files
from melllm_jax.checkpoints import integrity, run_folder, weight_store
from melllm_jax.checkpoints.checkpointer import load_weights
from melllm_jax.checkpoints.stored_front import check_mel, read_front_fields
from melllm_jax.config.distillation import SIZE_FIELDS, Distill
from melllm_jax.config.run import Run
from melllm_jax.encoders.teachers import TEACHERS
from melllm_jax.errors import Mistake
from melllm_jax.models.parameters import Weights, abstract_model
from melllm_jax.sharding import ABSTRACT_MESH


def check_teacher(run: Run) -> str:
    """The digest of the newest whole checkpoint in distill.path; every byte of it is verified.

    Raises Mistake where there is none, its encoder is not the one that the run's fields say, or the
    run makes no sound that it hears.
    """
    cfg = run.distill
    if not cfg.path:
        raise Mistake(f'distill.teacher="{cfg.teacher}": say where its weights are: --teacher DIR')
    _check_fields(run)
    checkpoint = integrity.newest_checkpoint(_checkpoints(cfg))
    stored = weight_store.WeightReader(checkpoint).shapes
    build = lambda rngs: TEACHERS[cfg.teacher](rngs, cfg, run.mel)
    with jax.sharding.use_abstract_mesh(ABSTRACT_MESH):
        shapes = abstract_model(build)[1]
    for name, x in shapes.items():
        if name not in stored:
            raise Mistake(f"distill.path={cfg.path}: has no {name}, which the teacher needs")
        shape = stored[name][1]
        if shape != x.shape:
            raise Mistake(f"distill.path={cfg.path}: {name} is {shape}, the run's is {x.shape}")
    return integrity.checkpoint_digest(checkpoint)


def load_teacher(cfg: Distill, shapes: Mapping[str, jax.ShapeDtypeStruct]) -> Weights:
    """The weights of these names, each device reading its own part in the dtype asked for.

    They are those that `check_teacher` has verified where the run has its digest. Raises Mistake
    where they are there no more.
    """
    if not cfg.digest:
        return load_weights(integrity.newest_checkpoint(_checkpoints(cfg)), shapes)
    folder = _checkpoints(cfg)
    for checkpoint in folder.iterdir() if folder.exists() else ():
        if checkpoint.name.isdigit() and integrity.checkpoint_digest(checkpoint) == cfg.digest:
            return load_weights(checkpoint, shapes)
    raise Mistake(f"distill.path={cfg.path}: holds the teacher {cfg.digest} no more")


def _check_fields(run: Run) -> None:
    """Raises Mistake where the folder says another kind, size or mel than the run."""
    cfg, where = run.distill, f"distill.path={run.distill.path}"
    fields, mel = read_front_fields(cfg.path, "distill.path")
    if fields["front"] != cfg.teacher:
        kind = fields["front"]
        raise Mistake(f'{where}: its front end is "{kind}", distill.teacher="{cfg.teacher}"')
    for name in SIZE_FIELDS[cfg.teacher]:
        theirs, own = fields[name], getattr(cfg, name)
        if theirs != own:
            raise Mistake(f"{where}: {_first_difference(name, theirs, own)}")
    check_mel(dataclasses.replace(mel, r=run.mel.r), run.mel, where)


def _first_difference(name: str, theirs: Any, own: Any) -> str:
    if not dataclasses.is_dataclass(own):
        return f"its {name} is {theirs}, distill.{name}={own}"
    parts = [field.name for field in dataclasses.fields(own)]
    part = next(x for x in parts if getattr(theirs, x) != getattr(own, x))
    return _first_difference(f"{name}.{part}", getattr(theirs, part), getattr(own, part))


def _checkpoints(cfg: Distill) -> pathlib.Path:
    return pathlib.Path(files.resolve_uri(cfg.path)) / run_folder.CHECKPOINTS
