"""Starting a run from the weights of another model: what is taken over, and what is made anew."""

from collections.abc import Mapping
import dataclasses
import pathlib
from typing import Any

import jax
import jax.numpy as jnp

from melllm_jax import files
from melllm_jax.checkpoints import integrity, run_folder, weight_store
from melllm_jax.checkpoints.checkpointer import load_weights
from melllm_jax.config.run import RANDOM
from melllm_jax.errors import Mistake
from melllm_jax.models.parameters import Kinds, Weights, is_alignment_head, is_front, is_mel_head
from melllm_jax.nn.layers import NonTrainable

VOCABULARY = {"embed": 0, "head": 1}  # weights with an axis of tokens, and which it is


@dataclasses.dataclass(frozen=True)
class WarmStart:
    """A whole checkpoint that a run starts from; every byte of it was verified once."""

    folder: str  # of an import or of a run, as the user named it
    checkpoint: pathlib.Path  # the newest whole one in it
    digest: str  # hash of its content
    shapes: Mapping[str, tuple[int, ...]]  # of its weights, by name
    v: int = 0  # tokens that the run's vocabulary has grown to, if it has
    random_front: bool = False  # the front end is made anew, though the checkpoint has one

    @property
    def tokens(self) -> int:
        """Rows of the checkpoint's embedding."""
        return self.shapes.get("embed", (0,))[0]

    def fresh_names(self, kinds: Kinds, lora_rank: int) -> list[str]:
        """The weights among `kinds` that are not in the checkpoint: they start at random.

        So does a front end that is to be random. Raises Mistake for weights that only one of
        the two has, front end, LoRA, mel head and a teacher's heads excepted, for those that differ
        in shape, and for a checkpoint of a Conformer's stem alone.
        """
        self._check_conformer(kinds)
        own_front = not self.random_front and any(
            is_front(name) for name in self.shapes.keys() & kinds.keys()
        )
        for name, shape in self.shapes.items():
            spare = is_alignment_head(name) or is_mel_head(name)
            if is_front(name) or spare and name not in kinds:
                continue
            if name not in kinds:
                raise Mistake(
                    f"init={self.folder}: its {name} has no place in the run: lora.r={lora_rank} "
                    f"must be the checkpoint's, or import with --lora merge or drop"
                )
            if kinds[name].shape != shape and not self._grows(name, kinds[name].shape):
                theirs = kinds[name].shape
                raise Mistake(f"init={self.folder}: {name} is {shape}, the run's is {theirs}")
        same_shape = lambda name: self.shapes.get(name) == kinds[name].shape
        # A stem of other sizes is made anew, but the statistics of its input stay what they are.
        same_front = own_front and all(same_shape(name) for name in kinds if is_front(name))
        fresh = [
            name
            for name, kind in kinds.items()
            if name not in self.shapes
            or is_front(name)
            and not same_front
            and not (isinstance(kind, NonTrainable) and same_shape(name))
        ]
        for name in fresh:
            ours = is_front(name) or is_alignment_head(name) or is_mel_head(name)
            if not ours and "_lora." not in name:
                raise Mistake(f"init={self.folder}: has no {name}, which the run needs")
        return fresh

    def load(self, shapes: Mapping[str, jax.ShapeDtypeStruct]) -> Weights:
        """The weights of these names, each device reading its own part in the dtype asked for.

        Tokens that the run's vocabulary has more than the checkpoint's get the mean of all others:
        never likelier than the likeliest.
        """
        longer = {k: x for k, x in shapes.items() if self._grows(k, x.shape)}
        stored = {k: _without_split(x, self.shapes[k], VOCABULARY[k]) for k, x in longer.items()}
        weights = load_weights(self.checkpoint, {**shapes, **stored})
        return weights | {k: _lengthen(weights[k], x, VOCABULARY[k]) for k, x in longer.items()}

    def _check_conformer(self, kinds: Kinds) -> None:
        """Raises Mistake where a Conformer would start at random beside its pretrained stem."""
        within = lambda names, prefix: any(name.startswith(prefix) for name in names)
        alone = within(self.shapes, "front.first") and not within(self.shapes, "front.blocks.")
        if not self.random_front and alone and within(kinds, "front.blocks."):
            raise Mistake(
                f"init={self.folder}: has no Conformer: import with --front conformer, or "
                f"start from a random one with init.front={RANDOM}"
            )

    def _grows(self, name: str, shape: tuple[int, ...]) -> bool:
        """Whether a weight of the run has the stored one's shape but for its new tokens."""
        axis, stored = VOCABULARY.get(name), self.shapes[name]
        if axis is None or len(shape) != len(stored) or not stored[axis] < shape[axis] == self.v:
            return False
        return all(x == y for i, (x, y) in enumerate(zip(shape, stored, strict=True)) if i != axis)


def resolve(folder: str, v: int = 0, random_front: bool = False) -> WarmStart:
    """The newest whole checkpoint in `folder`, whose vocabulary a run may grow to `v` tokens.

    With `random_front` its front end is left where it is, and made anew. Raises Mistake where there
    is none.
    """
    checkpoint = integrity.newest_checkpoint(
        pathlib.Path(files.resolve_uri(folder)) / run_folder.CHECKPOINTS
    )
    stored = weight_store.WeightReader(checkpoint).shapes
    return WarmStart(
        folder,
        checkpoint,
        integrity.checkpoint_digest(checkpoint),
        {name: shape for name, (_, shape) in stored.items()},
        v,
        random_front,
    )


def _without_split(
    x: jax.ShapeDtypeStruct, shape: tuple[int, ...], axis: int
) -> jax.ShapeDtypeStruct:
    """The layout of a stored weight, whose tokens the mesh need not divide."""
    parts = [None if i == axis else part for i, part in enumerate(_axes(x))]
    sharding = jax.NamedSharding(x.sharding.mesh, jax.P(*parts))
    return jax.ShapeDtypeStruct(shape, x.dtype, sharding=sharding)


def _axes(x: jax.ShapeDtypeStruct) -> list[Any]:
    """What splits each axis of a weight."""
    return [*x.sharding.spec, *[None] * len(x.shape)][: len(x.shape)]


def _lengthen(stored: jax.Array, x: jax.ShapeDtypeStruct, axis: int) -> jax.Array:
    """A stored weight with as many tokens more as `x` has, laid out as `x`."""

    def with_means(w: jax.Array) -> jax.Array:
        mean = jnp.mean(w.astype(jnp.float32), axis, keepdims=True).astype(w.dtype)
        more = jnp.repeat(mean, x.shape[axis] - w.shape[axis], axis)
        return jax.reshard(jnp.concatenate([w, more], axis), x.sharding.spec)

    return jax.jit(with_means)(stored)
