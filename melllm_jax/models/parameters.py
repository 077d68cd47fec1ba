"""A network as weights by name, and back.

Training, checkpoints and conversion all speak of "stack.blocks.attn.q": a flat dict of arrays is
what is differentiated, saved, frozen and mapped.
"""

from collections.abc import Callable, Collection, Mapping
import dataclasses
from typing import Any, Generic, TypeVar

from flax import nnx
import jax
import jax.numpy as jnp

from melllm_jax import sharding
from melllm_jax.config.features import Mel
from melllm_jax.config.model import FrontSpec, Lora, ModelSpec
from melllm_jax.config.whisper import WhisperSpec
from melllm_jax.encoders.whisper import EncoderAlone
from melllm_jax.models.speaking_lm import make_model
from melllm_jax.models.speech_lm import SpeechLM
from melllm_jax.models.whisper import WhisperModel
from melllm_jax.nn.layers import NonTrainable, shapes_alone

# What brings a front end's output to the LLM's width: all of a linear one, the end of the others.
PROJECTOR = frozenset(
    f"front.{name}" for name in ("kernel", "bias", "up", "up_bias", "down", "down_bias")
)

Weights = dict[str, Any]  # arrays, or their shapes where nothing is computed
Kinds = Mapping[str, nnx.Param]  # what each weight is, by name: its type, `dims`, `fan_in`
Net = TypeVar("Net", bound=nnx.Module)


@dataclasses.dataclass(frozen=True)
class Skeleton(Generic[Net]):
    """All of a network but its numbers."""

    graph: nnx.GraphDef
    kinds: Kinds

    def model(self, weights: Mapping[str, jax.Array], dtype: jnp.dtype | None = None) -> Net:
        """The network with these weights, those that are learnt cast to `dtype`.

        Raises KeyError where one is missing.
        """
        flat = []
        for name, kind in self.kinds.items():
            stays = dtype is None or isinstance(kind, NonTrainable)
            value = weights[name] if stays else weights[name].astype(dtype)
            flat.append((tuple(map(_key, name.split("."))), kind.replace(value)))
        model: Net = nnx.merge(self.graph, nnx.from_flat_state(flat))
        return model


def split_model(model: Net) -> tuple[Skeleton[Net], Weights]:
    """The network's skeleton and its weights by name, in a fixed order."""
    graph, state = nnx.split(model)
    flat = {".".join(map(str, path)): kind for path, kind in nnx.to_flat_state(state)}
    return Skeleton(graph, flat), {name: kind.get_value() for name, kind in flat.items()}


def init_model(build: Callable[[nnx.Rngs], Net], seed: int) -> tuple[Skeleton[Net], Weights]:
    """Random weights, each made where the mesh in force keeps it, in one compiled call."""
    rngs = nnx.Rngs(jax.random.key(seed))
    skeleton, _ = abstract_model(build)
    # Run once: on a CPU XLA takes ten seconds to optimise what then takes milliseconds.
    quick = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else {}
    return skeleton, jax.jit(lambda r: split_model(build(r))[1], compiler_options=quick)(rngs)


def init_weights(
    build: Callable[[nnx.Rngs], nnx.Module], seed: int, names: Collection[str]
) -> Weights:
    """The random weights of these names as `init_model` makes them, without the others."""
    if not names:
        return {}
    rngs = nnx.Rngs(jax.random.key(seed))
    return jax.jit(lambda r: {k: x for k, x in split_model(build(r))[1].items() if k in names})(
        rngs
    )


def abstract_model(build: Callable[[nnx.Rngs], Net]) -> tuple[Skeleton[Net], Weights]:
    """The skeleton and the weights' shapes, dtypes and layouts: nothing is computed."""
    # The key is made while tracing: there may be no device to make one on.
    with shapes_alone():
        return split_model(jax.eval_shape(lambda: build(nnx.Rngs(jax.random.key(0)))))


def abstract_from_spec(spec: ModelSpec) -> tuple[Skeleton[SpeechLM], Weights]:
    """The skeleton of a model and the shapes of its weights, on no device at all."""
    build = lambda rngs: make_model(spec.model, spec.mel, spec.lora, rngs=rngs)
    with jax.sharding.use_abstract_mesh(sharding.ABSTRACT_MESH):
        return abstract_model(build)


def abstract_encoder(spec: FrontSpec) -> tuple[Skeleton[EncoderAlone], Weights]:
    """As `abstract_from_spec`, of an encoder alone."""
    with jax.sharding.use_abstract_mesh(sharding.ABSTRACT_MESH):
        return abstract_model(lambda rngs: EncoderAlone(rngs, spec))


def abstract_whisper(spec: WhisperSpec) -> tuple[Skeleton[WhisperModel], Weights]:
    """As `abstract_from_spec`, of a Whisper."""
    with jax.sharding.use_abstract_mesh(sharding.ABSTRACT_MESH):
        return abstract_model(lambda rngs: WhisperModel(rngs, spec))


def text_model(model: SpeechLM) -> SpeechLM:
    """The model that rows of text alone need: no sound, and no LoRA that adds at speech.

    It has the model's own arrays, on the mesh in force. What it says of text is what `model` says,
    computed just as by a model that never had these parts.
    """
    cfg = dataclasses.replace(model.cfg, front="none", writes="text")
    lora = Lora() if model.lora.at == "speech" else model.lora
    skeleton = abstract_model(lambda rngs: SpeechLM(cfg, Mel(), lora, rngs=rngs))[0]
    return skeleton.model(split_model(model)[1])


def is_front(name: str) -> bool:
    """Whether a weight is of a front end."""
    return name.startswith("front.")


def is_encoder(name: str) -> bool:
    """Whether a weight is of a front end's encoder or stem: not of its projector to the LLM."""
    return is_front(name) and name not in PROJECTOR


def is_alignment_head(name: str) -> bool:
    """Whether a weight is of the heads that a teacher leads layers through: training's alone."""
    return name.startswith("align.")


def is_mel_head(name: str) -> bool:
    """Whether a weight is of the head that writes mel patches."""
    return name.startswith("mel_head.")


def _key(part: str) -> str | int:
    return int(part) if part.isdigit() else part
