"""A checkpoint, imported or of a run, as a model on one device that is asked directly."""

from collections.abc import Callable, Sequence
import dataclasses
import pathlib

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32
import numpy as np

from data_pipelines.examples.placeholder_batch import fill_placeholders
from launch.runs import sound_token
from launch.runs.sounds import SoundSource, load_mel, sound_name
from melllm_jax.batch import Batch
from melllm_jax.checkpoints import run_folder
from melllm_jax.checkpoints.checkpointer import Checkpoints
from melllm_jax.config.model import ModelSpec
from melllm_jax.config.run import CheckpointIntervals, Mesh
from melllm_jax.config.whisper import WhisperSpec
from melllm_jax.errors import Mistake
from melllm_jax.models.parameters import Net, abstract_model, split_model
from melllm_jax.models.speaking_lm import make_model
from melllm_jax.models.speech_lm import SpeechLM
from melllm_jax.models.whisper import WhisperModel
from melllm_jax.nn.layers import NonTrainable
from melllm_jax.sharding import make_mesh, shard_batch


@dataclasses.dataclass(frozen=True)
class CheckpointModel:
    """A model and what is needed to ask it."""

    folder: pathlib.Path
    spec: ModelSpec
    model: SpeechLM
    step: int  # updates after which it was saved; 0 for an import
    dtype: str  # of weights and products

    def in_dtype(self, dtype: str) -> SpeechLM:
        """The model with float32 weights rounded to `dtype`; weights rounded already stay."""
        if self.dtype != "float32":
            return self.model
        skeleton, weights = split_model(self.model)
        return skeleton.model(weights, jnp.dtype(dtype))

    def logits(
        self,
        tokens: np.ndarray,
        sounds: Sequence[SoundSource] = (),
        audio_token: int | None = None,
        rate: int | None = None,
    ) -> Float[np.ndarray, "b t v"]:
        """Scores of every next token, float32: see `batch`. The mesh in force is the model's."""
        batch = self.batch(tokens, sounds, audio_token, rate)
        return np.asarray(_scores(self.model, batch), np.float32)[: len(tokens)]

    def batch(
        self,
        tokens: np.ndarray,
        sounds: Sequence[SoundSource] = (),
        audio_token: int | None = None,
        rate: int | None = None,
    ) -> Batch:
        """Ids [b t] and the sound of files, or samples, at the placeholders, on the devices.

        Empty rows follow where the devices could not share them evenly; `rate` is that of samples,
        in Hz. Raises Mistake for ids beyond the vocabulary, sound that cannot be read, and clips
        that do not fit their placeholders.
        """
        v, mel = self.spec.model.v, self.spec.mel
        if tokens.ndim != 2 or tokens.dtype.kind not in "iu" or not tokens.size:
            raise Mistake(f"tokens: are {tokens.dtype} {list(tokens.shape)}: must be ids [b t]")
        if tokens.min() < 0 or tokens.max() >= v:
            raise Mistake(
                f"tokens: run from {tokens.min()} to {tokens.max()}: must lie in 0…{v - 1}"
            )
        mels = self.mels(sounds, rate)
        if sounds and audio_token is None:
            audio_token = self.placeholder()
        ids = tokens.astype(np.int32)
        filled = fill_placeholders(ids, mels, r=mel.r, m=mel.m, audio=audio_token)
        more = -len(ids) % jax.sharding.get_mesh().size
        return shard_batch(Batch(*(_add_empty_rows(x, more) for x in filled)))

    def mels(
        self, sounds: Sequence[SoundSource], rate: int | None = None
    ) -> list[Float32[np.ndarray, "frames m"]]:
        """What the front end reads of each sound. Raises Mistake where it cannot be read."""
        if sounds and self.spec.model.front == "none":
            named = sound_name(sounds[0])
            raise Mistake(f"audio={named}: the model reads text alone (model.front=none)")
        return [load_mel(sound, rate, self.spec.mel) for sound in sounds]

    def placeholder(self) -> int:
        """Id at the positions of speech: the run's, the imported config's, or the tokenizer's."""
        return sound_token.stored_id(str(self.folder), self.spec)


def load_model(folder: pathlib.Path, dtype: str) -> CheckpointModel:
    """The newest checkpoint in `folder`, its weights in `dtype`; the mesh in force is its device.

    Raises Mistake for a folder without a model or a whole checkpoint.
    """
    spec = run_folder.read_spec(str(folder))
    build = lambda rngs: make_model(spec.model, spec.mel, spec.lora, rngs=rngs)
    step, model = restore_model(folder, build, dtype)
    return CheckpointModel(folder, spec, model, step, dtype)


def restore_whisper(
    folder: pathlib.Path, spec: WhisperSpec, dtype: str
) -> tuple[int, WhisperModel]:
    """The step of the newest checkpoint of the Whisper in `folder`, and it, as `load_model`."""
    return restore_model(folder, lambda rngs: WhisperModel(rngs, spec), dtype)


def restore_model(
    folder: pathlib.Path, build: Callable[[nnx.Rngs], Net], dtype: str
) -> tuple[int, Net]:
    """The step of the newest checkpoint in `folder`, and its model, as `load_model`."""
    mesh = jax.sharding.get_mesh()
    skeleton, shapes = abstract_model(build)
    wanted = {}
    for name, x in shapes.items():
        # Statistics of the sound are subtracted in float32, as in training.
        kind = jnp.float32 if isinstance(skeleton.kinds[name], NonTrainable) else jnp.dtype(dtype)
        sharding = jax.NamedSharding(mesh, x.sharding.spec)
        wanted[name] = jax.ShapeDtypeStruct(x.shape, kind, sharding=sharding)
    with Checkpoints(f"{folder}/{run_folder.CHECKPOINTS}", CheckpointIntervals()) as checkpoints:
        step, weights = checkpoints.restore_weights(wanted)
    return step, skeleton.model(weights)


def _add_empty_rows(column: np.ndarray, count: int) -> np.ndarray:
    return np.concatenate([column, np.zeros((count, *column.shape[1:]), column.dtype)])


@jax.jit
def _scores(model: SpeechLM, batch: Batch) -> Array:
    return model.logits(model(batch))


def single_device_mesh() -> jax.sharding.Mesh:
    """The mesh of a single device."""
    return make_mesh(Mesh(fsdp=1), jax.devices()[:1])


def all_devices_mesh() -> jax.sharding.Mesh:
    """The mesh of all devices here, which splits rows among them."""
    return make_mesh(Mesh())


def mesh_for(
    spec: ModelSpec | WhisperSpec, devices: Sequence[jax.Device] | None = None
) -> jax.sharding.Mesh:
    """The mesh of `devices`, by default all that are here. Raises Mistake where d does not fit."""
    if isinstance(spec, WhisperSpec):
        d, name = spec.encoder.d, "encoder.d"
    else:
        d, name = spec.model.d, "model.d"
    mesh = make_mesh(Mesh(), devices)
    if d % mesh.size:
        raise Mistake(f"devices={mesh.size}: must divide {name}={d}: give fewer")
    return mesh
