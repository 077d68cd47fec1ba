"""Tiny runs and packed batches written out piece by piece, for tests of the model."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from melllm_jax.batch import Batch
from melllm_jax.config.data import Data
from melllm_jax.config.features import Mel
from melllm_jax.config.model import Lora, Model
from melllm_jax.config.run import Mesh, Optim, Run
from melllm_jax.models import parameters
from melllm_jax.models.speaking_lm import make_model
from melllm_jax.objectives import next_token
from melllm_jax.sharding import make_mesh, shard_batch

MEL = Mel(kind="plain", m=8)
MODEL = Model(d=32, n=4, k=2, h=8, f=48, l=2, v=64, c=8)
LORA = Lora(r=4, alpha=8.0)
SPLITS = {  # eight devices, four ways and more
    "fsdp8": Mesh(fsdp=8),
    "fsdp4-tp2": Mesh(fsdp=4, tp=2),
    "fsdp2-seq2-tp2": Mesh(fsdp=2, seq=2, tp=2),
    "replica2-seq4": Mesh(replica=2, fsdp=1, seq=4),
}


def run(model=MODEL, lora=LORA, b=8, t=32, mel=MEL, **optim):
    """A run of small sizes, float32 throughout; other keywords are fields of Optim."""
    small = {"steps": 10, "warmup": 2, "lr": 1e-2, "compute": "float32"} | optim
    return Run(
        name="test",
        model=model,
        data=Data(t=t, b=b),
        optim=Optim(**small),
        mel=mel,
        lora=lora,
    )


def jitted(function):
    """`function` compiled without LLVM's optimisations: half the time, and tests run once."""
    return jax.jit(function, compiler_options={"xla_backend_optimization_level": 0})


def one_device():
    """The mesh of a single device, in force within `with`."""
    return jax.set_mesh(make_mesh(Mesh(fsdp=1), jax.devices()[:1]))


def split_as(name):
    """One of `SPLITS` of the eight devices, in force within `with`."""
    return jax.set_mesh(make_mesh(SPLITS[name]))


def made(cfg, seed=0):
    """The skeleton and random weights of a run's model; see `drawn`."""
    return drawn(lambda rngs: make_model(cfg.model, cfg.mel, cfg.lora, rngs=rngs), seed)


def drawn(build, seed=0, spread=0.2):
    """The skeleton and random weights of a network, the same on every mesh.

    LoRA's B, norms and biases start at 0 or 1, where a wrong use of them may not show: they are so
    far from it, or, of spread 0, as they start. Alignment heads, drawn last, change nothing else.
    Nothing is compiled: `init_model`'s program takes longer than an update of a tiny run.
    """
    skeleton, shapes = parameters.abstract_model(build)
    rng = np.random.default_rng(seed)
    values = {}
    for name, x in sorted(shapes.items(), key=lambda one: parameters.is_alignment_head(one[0])):
        kind = skeleton.kinds[name]
        lengths = dict(zip(kind.dims.split(), x.shape[-len(kind.dims.split()) :], strict=True))
        fan = math.prod(lengths[letter] for letter in kind.fan_in.split())
        noise = rng.standard_normal(x.shape, dtype=np.float32)
        rest = 1.0 if name.endswith(("scale", "invstd")) else 0.0
        still = fan == 1 or not spread and "_lora.b." in name
        value = rest + np.float32(spread) * noise if still else noise / np.float32(math.sqrt(fan))
        sharding = jax.NamedSharding(jax.sharding.get_mesh(), x.sharding.spec)
        values[name] = jax.device_put(value, sharding)
    return skeleton, values


def mean_loss(skeleton, values, batch):
    """Nats a target of a batch that is on the mesh in force."""
    sums = next_token.next_token_loss(skeleton.model(values), batch)
    return sums.loss / sums.weight


def graded(cfg, batch):
    """Mean loss and gradients by name on the mesh in force; `batch` is this process's rows."""
    skeleton, values = made(cfg)
    differentiate = jitted(jax.value_and_grad(functools.partial(mean_loss, skeleton)))
    loss, grads = differentiate(values, shard_batch(batch))
    for name, grad in grads.items():
        assert grad.sharding.spec == values[name].sharding.spec, name
    return loss, grads


def graded_front(cfg, batch):
    """Gradients by name, of its weights alone, of a sum over all numbers that speech becomes."""
    skeleton, values = made(cfg)
    front = {name: x for name, x in values.items() if name.startswith("front.")}

    def loss(front, batch):
        y = jnp.sin(3 * skeleton.model(values | front).front(batch))
        return jnp.sum(jnp.where(batch.is_speech[..., None], y, 0))

    return jax.device_get(jitted(jax.grad(loss))(front, shard_batch(batch)))


@dataclasses.dataclass(frozen=True)
class Clip:
    """A clip of speech of so many mel frames, heard or written."""

    frames: int
    written: bool = False


def segment(*pieces, seed, mel=MEL, v=64):
    """Columns of one example: an int is so many tokens of text, a Clip is a clip of noise."""
    rng = np.random.default_rng(seed)
    frames, clips = [], []
    for piece in pieces:
        if isinstance(piece, Clip):
            whole, part = divmod(piece.frames, mel.r)
            frames += [mel.r] * whole + [part] * (part > 0)
            number = max(map(abs, clips), default=0) + 1
            clips += [-number if piece.written else number] * (whole + (part > 0))
        else:
            frames += [0] * piece
            clips += [0] * piece
    t = len(clips)
    columns = {
        "tokens": rng.integers(1, v, t),
        "patches": rng.standard_normal((t, mel.p), dtype=np.float32),
        "frames": np.array(frames),
        "clips": np.array(clips),
        "positions": np.arange(t),
        "loss_weight": np.where(np.array(clips) > 0, 0.0, rng.uniform(0.5, 1.0, t)),
    }
    real = np.arange(mel.p)[None] < columns["frames"][:, None] * mel.m
    columns["patches"] = np.where(real, columns["patches"], 0.0)
    return columns


def pack(rows, t, mel=MEL):
    """Rows of segments as a batch of `t` positions a row.

    What no segment owns is noise, in tokens, patches and the cells beyond a clip's last frame:
    all of it must be ignored.
    """
    rng = np.random.default_rng(99)
    b = len(rows)
    batch = Batch(
        tokens=rng.integers(1, 64, (b, t)).astype(np.int32),
        patches=rng.standard_normal((b, t, mel.p), dtype=np.float32),
        frames=np.zeros((b, t), np.int32),
        clips=np.zeros((b, t), np.int32),
        segments=np.zeros((b, t), np.int32),
        positions=np.zeros((b, t), np.int32),
        loss_weight=np.zeros((b, t), np.float32),
        sources=np.zeros((b, t), np.int32),
    )
    for i, row in enumerate(rows):
        start = 0
        for number, part in enumerate(row, start=1):
            here = slice(start, start := start + len(part["tokens"]))
            for name, column in part.items():
                getattr(batch, name)[i, here] = column
            batch.segments[i, here] = number
    return batch


def speech_rows(b, t, seed=0):
    """`b` packed rows, each of other lengths: text and clips, the last frames partial."""
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(b):
        first = segment(3, Clip(int(rng.integers(9, 40))), 4, seed=10 * i + seed)
        second = segment(2, Clip(13), Clip(8), 3, seed=10 * i + seed + 1)
        rows.append([first, second])
    return pack(rows, t)
