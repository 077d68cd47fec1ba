"""The front end in a folder: its kind, its sizes and the mel that it hears.

A folder holds one in a model of a run or of an import, or an imported encoder alone.
"""

import dataclasses
from typing import Any

from melllm_jax.checkpoints import run_folder
from melllm_jax.config.features import Mel
from melllm_jax.errors import Mistake

FRONT_FIELDS = ("front", "c", "conformer", "whisper")  # of a model: its front end and its sizes


def read_front_fields(folder: str, field: str = "init.front") -> tuple[dict[str, Any], Mel]:
    """The fields of a model that say which front end is in `folder`, and the mel that it hears.

    Raises Mistake, naming the run's `field`, where `folder` holds none.
    """
    alone = run_folder.read_front(folder)
    if alone is not None:
        return {"front": alone.front, "whisper": alone.whisper}, alone.mel
    spec = run_folder.read_spec(folder)
    if spec.model.front == "none":
        raise Mistake(f"{field}={folder}: holds no front end: its model reads text alone")
    return {name: getattr(spec.model, name) for name in FRONT_FIELDS}, spec.mel


def check_mel(theirs: Mel, own: Mel, where: str) -> None:
    """Raises Mistake, naming the field, where a run makes another mel than the one that is heard.

    `where` names the folder of the front end that hears `theirs`.
    """
    for field in dataclasses.fields(theirs):
        heard, made = getattr(theirs, field.name), getattr(own, field.name)
        if heard != made:
            name = field.name
            raise Mistake(f"{where}: hears mel.{name}={_shown(heard)}, the run {_shown(made)}")


def _shown(value: Any) -> str:
    """A value for a message; of many numbers, how many there are."""
    return f"{len(value)} values" if isinstance(value, tuple) else str(value)
