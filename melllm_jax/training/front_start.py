"""Starting a run's front end from another checkpoint: an encoder alone, or that of a model."""

from collections.abc import Mapping
import dataclasses
import pathlib

import jax

from melllm_jax import files
from melllm_jax.checkpoints import integrity, run_folder, weight_store
from melllm_jax.checkpoints.checkpointer import load_weights
from melllm_jax.checkpoints.stored_front import check_mel, read_front_fields
from melllm_jax.config.run import Run
from melllm_jax.errors import Mistake
from melllm_jax.models.parameters import PROJECTOR, Kinds, Weights, is_encoder, is_front
from melllm_jax.training.warm_start import WarmStart

FREE_RATE = ("whisper", "whisper_conv")  # fronts of which the projector alone depends on mel.r


@dataclasses.dataclass(frozen=True)
class FrontStart:
    """A whole checkpoint that a front end starts from, and the one that the rest starts from.

    The encoder or stem is taken over as it is; so is the projector where all of it is of the run's
    sizes, else it starts at random.
    """

    folder: str  # of an import or of a run, as the user named it
    checkpoint: pathlib.Path  # the newest whole one in it
    digest: str  # hash of its content
    shapes: Mapping[str, tuple[int, ...]]  # of its weights, by name
    llm: WarmStart | None  # of all but the front end; None: random weights

    def fresh_names(self, kinds: Kinds, lora_rank: int) -> list[str]:
        """The weights among `kinds` that are in neither checkpoint: they start at random.

        Raises Mistake for an encoder's weight that is not there or of another shape, and as
        `WarmStart.fresh_names` does.
        """
        rest = {name: kind for name, kind in kinds.items() if not is_front(name)}
        fresh = list(rest) if self.llm is None else self.llm.fresh_names(rest, lora_rank)
        for name in filter(is_encoder, kinds):
            shape, ours = self.shapes.get(name), kinds[name].shape
            if shape is None:
                raise Mistake(f"init.front={self.folder}: has no {name}, which the run needs")
            if shape != ours:
                raise Mistake(f"init.front={self.folder}: {name} is {shape}, the run's is {ours}")
        projector = [name for name in kinds if name in PROJECTOR]
        if all(self.shapes.get(name) == kinds[name].shape for name in projector):
            return fresh
        if not any(map(is_encoder, kinds)):
            raise Mistake(f"init.front={self.folder}: its {projector[0]} is not of the run's sizes")
        return fresh + projector

    def load(self, shapes: Mapping[str, jax.ShapeDtypeStruct]) -> Weights:
        """The weights of these names, each device reading its own part in the dtype asked for."""
        front = {name: x for name, x in shapes.items() if is_front(name)}
        rest = {name: x for name, x in shapes.items() if name not in front}
        found = {} if self.llm is None else self.llm.load(rest)
        return found | load_weights(self.checkpoint, front)


def resolve(run: Run, llm: WarmStart | None) -> FrontStart:
    """The newest whole checkpoint in `run.init.front`, which holds a front end of the run's kind.

    Raises Mistake where there is none, or one of another kind or mel.
    """
    folder = run.init.front
    theirs, mel = read_front_fields(folder)
    kind = run.model.front
    if theirs["front"] != kind and (theirs["front"], kind) != ("whisper", "whisper_conv"):
        raise Mistake(
            f'init.front={folder}: its front end is "{theirs["front"]}", model.front="{kind}"'
        )
    if kind in FREE_RATE:
        mel = dataclasses.replace(mel, r=run.mel.r)
    check_mel(mel, run.mel, f"init.front={folder}")
    checkpoint = integrity.newest_checkpoint(
        pathlib.Path(files.resolve_uri(folder)) / run_folder.CHECKPOINTS
    )
    stored = weight_store.WeightReader(checkpoint).shapes
    return FrontStart(
        folder,
        checkpoint,
        integrity.checkpoint_digest(checkpoint),
        {name: shape for name, (_, shape) in stored.items() if is_front(name)},
        llm,
    )
