"""The weights of a model in the order in which the loop over tokens reads them fastest.

Layers are unstacked once: slicing them out of the stack inside the loop would copy every weight for
every token. On a CPU alone each matrix lies in blocks, see `nn.blocked_weight`.
"""

import functools
import math
from typing import Any, NamedTuple, TypeVar

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from melllm_jax.models.decoder_stack import Block
from melllm_jax.models.speech_lm import SpeechLM
from melllm_jax.nn.blocked_weight import BlockedWeight, has_blocks, to_blocks
from melllm_jax.nn.layers import einsum

Layer = TypeVar("Layer", bound=nnx.Module)


class DecodingWeights(NamedTuple):
    """What each token reads."""

    layers: list[Block]
    head: BlockedWeight | None  # None where the model's own is as good

    def logits(self, model: SpeechLM, x_btd: Float[Array, "b t d"]) -> Float[Array, "b t v"]:
        """What `model.logits` gives."""
        if self.head is None:
            return model.logits(x_btd)
        return einsum("btd,dv->btv", x_btd, self.head, jnp.float32)


def make_ready(model: SpeechLM) -> DecodingWeights:
    """The weights of a model on the mesh in force."""
    return _make_ready(model, blocks_are_faster())


def blocks_are_faster() -> bool:
    """Whether weights are better in blocks on the mesh in force."""
    mesh = jax.sharding.get_mesh()
    return bool(mesh.size == 1 and mesh.devices.flat[0].platform == "cpu")


def layer_in_blocks(layer: Layer) -> Layer:
    """A layer, each matrix in blocks where that is better."""
    blocked: Layer = jax.tree.map(_to_blocks, layer, is_leaf=lambda x: isinstance(x, nnx.Variable))
    return blocked


@functools.partial(jax.jit, static_argnums=1)
def _make_ready(model: SpeechLM, in_blocks: bool) -> DecodingWeights:
    unstacked = [model.stack.layer(i) for i in range(model.cfg.l)]
    if not in_blocks:
        return DecodingWeights(unstacked, None)
    layers = list(map(layer_in_blocks, unstacked))
    table, dims = model.table
    head = None
    if has_blocks(model.cfg.v, table.dtype):
        head = to_blocks(table.T if dims == "v d" else table, 1)
    return DecodingWeights(layers, head)


def _to_blocks(weight: Any) -> Any:
    """A weight of a layer in blocks, where that is better."""
    w, fan_in, dims = weight[...], weight.fan_in.split(), weight.dims.split()
    if not fan_in or dims[: len(fan_in)] != fan_in:
        return weight
    columns = math.prod(w.shape[len(fan_in) :])
    return weight.replace(to_blocks(w, len(fan_in))) if has_blocks(columns, w.dtype) else weight
