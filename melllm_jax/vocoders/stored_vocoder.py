"""A vocoder in a folder: what it is, its network, and the function from mel to sound."""

from collections.abc import Callable
import pathlib

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Float32
import numpy as np

from melllm_jax import sharding
from melllm_jax.checkpoints import integrity, run_folder, weight_store
from melllm_jax.config.features import Mel
from melllm_jax.config.run import Mesh
from melllm_jax.config.vocoder import VocoderSpec
from melllm_jax.config.vocoder_run import GENERATOR
from melllm_jax.errors import Mistake
from melllm_jax.features.mel_filters import above_floor
from melllm_jax.models.parameters import Skeleton, Weights, abstract_model
from melllm_jax.vocoders.hifi_gan import HifiGanVocoder
from melllm_jax.vocoders.vocos import VocosVocoder

Vocoder = HifiGanVocoder | VocosVocoder
SynthesizeFn = Callable[[Float32[np.ndarray, "f m"]], Float32[np.ndarray, "w"]]
BUCKET = 128  # frames: rows are filled up to a multiple, so that few lengths are compiled
# Log units of each kind, for messages.
LOGS = {"phi4": "ln of power of 16-bit samples", "whisper": "(log10 of power + 4) / 4"}
LOGS |= {"plain": "ln of power", "speecht5": "log10 of magnitude", "vocos": "ln of magnitude"}


def make_vocoder(rngs: nnx.Rngs, spec: VocoderSpec) -> Vocoder:
    """The network of a spec, with random weights."""
    if spec.kind == "hifi_gan":
        return HifiGanVocoder(rngs, spec.hifi_gan, spec.mel.m)
    return VocosVocoder(rngs, spec.vocos, spec.mel.m)


def abstract_vocoder(spec: VocoderSpec) -> tuple[Skeleton[Vocoder], Weights]:
    """The skeleton of a vocoder and the shapes of its weights, on no device at all."""
    with jax.sharding.use_abstract_mesh(sharding.ABSTRACT_MESH):
        return abstract_model(lambda rngs: make_vocoder(rngs, spec))


def load_vocoder(path: str) -> tuple[VocoderSpec, SynthesizeFn]:
    """The vocoder in the folder `path`, and the function from its mel to samples in [-1, 1].

    It computes in float32 on the first device; mel is [f m] in the log units of `spec.mel`, and
    sound has `spec.rate` Hz, `spec.samples(f)` samples. Raises Mistake where the folder holds none.
    """
    mesh = sharding.make_mesh(Mesh(fsdp=1), jax.devices()[:1])
    with jax.set_mesh(mesh):
        spec, skeleton, weights = load_weights(path)
    return spec, synthesize_fn(spec, skeleton, weights, mesh)


def load_network(path: str) -> tuple[VocoderSpec, Vocoder]:
    """The vocoder in the folder `path` as a network, on the mesh in force, of one device."""
    spec, skeleton, weights = load_weights(path)
    return spec, skeleton.model(weights)


def load_weights(path: str) -> tuple[VocoderSpec, Skeleton[Vocoder], Weights]:
    """What is in the folder `path`, in float32. Raises Mistake where that is no vocoder."""
    spec = run_folder.read_vocoder(path)
    if spec is None:
        raise Mistake(f"vocoder={path}: holds no {run_folder.VOCODER}")
    stored = open_weights(pathlib.Path(path))
    skeleton, shapes = abstract_vocoder(spec)
    for name, x in shapes.items():
        found = stored.shapes.get(name, (None, None))[1]
        if found != x.shape:
            raise Mistake(f"vocoder={path}: {name} is {found}, its config says {x.shape}")
    weights = {name: jnp.asarray(stored.read(name), jnp.float32) for name in shapes}
    return spec, skeleton, weights


def open_weights(folder: pathlib.Path) -> weight_store.WeightReader:
    """The weights of the vocoder in a folder, those of a training without its discriminators.

    Raises Mistake where it has no whole checkpoint.
    """
    checkpoint = integrity.newest_checkpoint(folder / run_folder.CHECKPOINTS)
    imported = (folder / run_folder.VOCODER).exists()
    return weight_store.WeightReader(checkpoint, "" if imported else GENERATOR)


def synthesize_fn(
    spec: VocoderSpec, skeleton: Skeleton[Vocoder], weights: Weights, mesh: jax.sharding.Mesh
) -> SynthesizeFn:
    """The function from mel [f m] to samples [w] that computes with these weights on `mesh`."""
    run = jax.jit(lambda weights, mels, lengths: skeleton.model(weights)(mels, lengths))

    def synthesize(mels: Float32[np.ndarray, "f m"]) -> Float32[np.ndarray, "w"]:
        frames, m = mels.shape
        if m != spec.mel.m:
            raise Mistake(f"mel of {m} bands: the vocoder reads {spec.mel.m}")
        if not frames:
            return np.zeros(0, np.float32)
        row = np.zeros((1, -(-frames // BUCKET) * BUCKET, m), np.float32)
        row[0, :frames] = above_floor(mels, spec.mel)
        with jax.set_mesh(mesh):
            wave = run(weights, jnp.asarray(row), jnp.asarray([frames], jnp.int32))
        return np.asarray(wave)[0, : spec.samples(frames)]

    return synthesize


def check_same_mel(spec: VocoderSpec, mel: Mel, where: str = "vocoder") -> None:
    """Raises Mistake where a vocoder reads another mel than `mel`, normalisation and floor apart.

    The message names bands, hop, rate and log of both. `where` names the vocoder.
    """
    if (spec.mel.kind, spec.mel.m) != (mel.kind, mel.m):
        raise Mistake(f"{where}: reads mel of {_described(spec.mel)}: given {_described(mel)}")


def _described(mel: Mel) -> str:
    size = f"{mel.m} bands, a hop of {mel.hop} samples, {mel.rate} Hz, {LOGS[mel.kind]}"
    return f"{mel.kind} ({size})"
