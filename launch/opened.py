"""A checkpoint, imported or of a run, as a model on one device that is asked directly."""

from collections.abc import Sequence
import dataclasses
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from data_pipelines import audio, text
from data_pipelines.mel import log_mel
from data_pipelines.placed import placed
from data_pipelines.prompt import placeholder
from melllm_jax import config, layout, rundir
from melllm_jax.batch import Batch
from melllm_jax.checkpoint import Checkpoints
from melllm_jax.errors import Mistake
from melllm_jax.layers import Fixed
from melllm_jax.model import SpeechLM
from melllm_jax.weights import abstract


@dataclasses.dataclass(frozen=True)
class Opened:
    """A model and what is needed to ask it."""

    folder: pathlib.Path
    spec: config.Spec
    model: SpeechLM

    def batch(
        self,
        tokens: np.ndarray,
        files: Sequence[str] = (),
        audio_token: int | None = None,
    ) -> Batch:
        """Ids [b t] and the files' sound at the placeholders, on the device.

        Raises Mistake for ids beyond the vocabulary, files that cannot be read, and clips that do
        not fit their placeholders.
        """
        v, mel = self.spec.model.v, self.spec.mel
        if tokens.ndim != 2 or tokens.dtype.kind not in "iu" or not tokens.size:
            raise Mistake(f"tokens: are {tokens.dtype} {list(tokens.shape)}: must be ids [b t]")
        if tokens.min() < 0 or tokens.max() >= v:
            raise Mistake(
                f"tokens: run from {tokens.min()} to {tokens.max()}: must lie in 0…{v - 1}"
            )
        if files and self.spec.model.front == "none":
            raise Mistake(f"audio={files[0]}: the model reads text alone (model.front=none)")
        mels = [log_mel(audio.decode(file), mel) for file in files]
        if files and audio_token is None:
            audio_token = self.placeholder()
        ids = tokens.astype(np.int32)
        return layout.place(placed(ids, mels, r=mel.r, m=mel.m, audio=audio_token))

    def placeholder(self) -> int:
        """Id at the positions of speech: the imported config's, or else the tokenizer's."""
        path = self.folder / rundir.TOKENIZER / "config.json"
        if path.exists():
            named = (json.loads(path.read_text()).get("audio_config") or {}).get("audio_token_id")
            if named is not None:
                return int(named)
        return placeholder(text.load(self.spec.text.tokenizer))


def opened(folder: pathlib.Path, dtype: str) -> Opened:
    """The newest checkpoint in `folder`, its weights in `dtype`; the mesh in force is its device.

    Raises Mistake for a folder without a model or a whole checkpoint.
    """
    spec = rundir.spec(str(folder))
    mesh = jax.sharding.get_mesh()
    skeleton, shapes = abstract(lambda rngs: SpeechLM(spec.model, spec.mel, spec.lora, rngs=rngs))
    wanted = {}
    for name, x in shapes.items():
        # Statistics of the sound are subtracted in float32, as in training.
        kind = jnp.float32 if isinstance(skeleton.kinds[name], Fixed) else jnp.dtype(dtype)
        sharding = jax.NamedSharding(mesh, x.sharding.spec)
        wanted[name] = jax.ShapeDtypeStruct(x.shape, kind, sharding=sharding)
    with Checkpoints(f"{folder}/{rundir.CHECKPOINTS}", config.Keep()) as checkpoints:
        weights = checkpoints.restore_weights(wanted)[1]
    return Opened(folder, spec, skeleton.model(weights))


def one_device() -> jax.sharding.Mesh:
    """The mesh of a single device."""
    return layout.make_mesh(config.Mesh(fsdp=1), jax.devices()[:1])
