"""The head that writes mel patches: pre-net, next-token VAE and post-net.

A hidden state becomes a Gaussian latent of a patch's width, of which a draw, through a residual
MLP, is the patch; convolutions over the frames of a clip refine it. Meng et al. 2024 (MELLE, arXiv
2407.08551), as Mel-LLM has it (arXiv 2606.10231). What is not published is said in
`config.speech_output`; every product adds up in float32.
"""

from collections.abc import Sequence
from typing import NamedTuple

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from melllm_jax.config.features import Mel
from melllm_jax.config.model import Model
from melllm_jax.nn.layers import Sizes, constant, einsum, weight
from melllm_jax.nn.noise import Draw, drop, normal

PRENET_DRAWS, LATENT_DRAW = (0, 1), 2  # the numbers of the draws of a position


class Patches(NamedTuple):
    """What a hidden state says of the patch after it, float32."""

    mean: Float[Array, "b t p"]  # of the latent
    log_var: Float[Array, "b t p"]
    patch: Float[Array, "b t p"]  # before the post-net
    stop: Float[Array, "b t"]  # logit that it is the clip's last


class PreNet(nnx.Module):
    """A written patch as the model's input: p → u → c → d, the first two with ReLU and dropout."""

    def __init__(self, rngs: nnx.Rngs, size: Sizes, dropout: float):
        self.first = weight(rngs, size, "p u", fan_in="p", scale=2**0.5)
        self.first_bias = constant(size, "u", 0.0)
        self.second = weight(rngs, size, "u c", fan_in="u", scale=2**0.5)
        self.second_bias = constant(size, "c", 0.0)
        self.out = weight(rngs, size, "c d", fan_in="c")
        self.out_bias = constant(size, "d", 0.0)
        self.dropout = dropout

    def __call__(
        self, patches_btp: Float[Array, "b t p"], draw: Draw | None
    ) -> Float[Array, "b t d"]:
        first, second = PRENET_DRAWS
        x = patches_btp.astype(self.first[...].dtype)
        x = einsum("btp,pu->btu", x, self.first[...]) + self.first_bias[None, None]
        x = drop(jax.nn.relu(x), self.dropout, first, draw)
        x = einsum("btu,uc->btc", x, self.second[...]) + self.second_bias[None, None]
        x = drop(jax.nn.relu(x), self.dropout, second, draw)
        return einsum("btc,cd->btd", x, self.out[...]) + self.out_bias[None, None]


class LatentHead(nnx.Module):
    """Hidden state → latent → patch, and whether it is the last.

    The MLP adds nothing at first, so that the latent's mean starts as the patch itself.
    """

    def __init__(self, rngs: nnx.Rngs, size: Sizes, sample: bool):
        self.mean = weight(rngs, size, "d p", fan_in="d")
        self.mean_bias = constant(size, "p", 0.0)
        self.log_var = weight(rngs, size, "d p", fan_in="d", scale=0.0)
        self.log_var_bias = constant(size, "p", 0.0)
        self.first = weight(rngs, size, "p u", fan_in="p", scale=2**0.5)
        self.first_bias = constant(size, "u", 0.0)
        self.second = weight(rngs, size, "u c", fan_in="u", scale=2**0.5)
        self.second_bias = constant(size, "c", 0.0)
        self.out = weight(rngs, size, "c p", fan_in="c", scale=0.0)
        self.out_bias = constant(size, "p", 0.0)
        self.stop = weight(rngs, size, "d x", fan_in="d")
        self.stop_bias = constant(size, "x", 0.0)
        self.sample = sample

    def __call__(
        self, x_btd: Float[Array, "b t d"], draw: Draw | None, temperature: float = 1.0
    ) -> Patches:
        def linear(name: str, equation: str, x: Array) -> Array:
            kernel, bias = getattr(self, name)[...], getattr(self, f"{name}_bias")[None, None]
            return einsum(equation, x.astype(kernel.dtype), kernel, jnp.float32) + bias

        mean, log_var = (linear(name, "btd,dp->btp", x_btd) for name in ("mean", "log_var"))
        latent = mean
        if self.sample and draw is not None and temperature:
            noise = normal(draw(LATENT_DRAW, mean))
            latent = mean + temperature * jnp.exp(log_var / 2) * noise
        x = jax.nn.relu(linear("first", "btp,pu->btu", latent))
        x = jax.nn.relu(linear("second", "btu,uc->btc", x))
        patch = latent + linear("out", "btc,cp->btp", x)
        return Patches(mean, log_var, patch, linear("stop", "btd,dx->btx", x_btd)[..., 0])


class PostNet(nnx.Module):
    """Convolutions over the frames of a clip, tanh between them, added to what they read.

    The last adds nothing at first. Time is gathered from the devices that split it: frames of m
    bands are little beside the model's width.
    """

    def __init__(self, rngs: nnx.Rngs, size: Sizes, count: int, causal: bool):
        self.kernels = nnx.List(
            [
                weight(
                    rngs,
                    size,
                    f"x {'m' if i == 0 else 'c'} {'m' if i == count - 1 else 'j'}",
                    fan_in=f"x {'m' if i == 0 else 'c'}",
                    scale=0.0 if i == count - 1 else 1.0,
                )
                for i in range(count)
            ]
        )
        self.biases = nnx.List(
            [constant(size, "m" if i == count - 1 else "j", 0.0) for i in range(count)]
        )
        taps = size["x"]
        first = 1 - taps if causal else -(taps // 2)
        self.offsets = tuple(range(first, first + taps))

    def __call__(
        self, frames_bsm: Float[Array, "b s m"], ids_bs: Int[Array, "b s"]
    ) -> Float[Array, "b s m"]:
        """The frames [b s m] refined; `ids_bs` numbers the clip of each, 0 where there is none."""
        neighbours = [(_later(ids_bs, o) == ids_bs) & (ids_bs > 0) for o in self.offsets]
        x = frames_bsm
        for number, (kernel, bias) in enumerate(zip(self.kernels, self.biases, strict=True)):
            x = jnp.tanh(x) if number else x
            x = _convolve(x.astype(kernel[...].dtype), kernel[...], self.offsets, neighbours)
            x = x + bias[None, None]
        return frames_bsm + x


class MelPatchHead(nnx.Module):
    """All that a model needs to read its own patches and to write the next."""

    def __init__(self, rngs: nnx.Rngs, cfg: Model, mel: Mel):
        own = cfg.mel_head
        common = {"d": cfg.d, "p": mel.p, "m": mel.m}
        self.r, self.m = mel.r, mel.m
        pre = common | {"u": own.prenet, "c": own.prenet}
        self.prenet = PreNet(rngs, pre, own.dropout)
        latent = common | {"u": own.hidden, "c": own.hidden, "x": 1}
        self.latent = LatentHead(rngs, latent, own.sample)
        self.refines, self.causal = own.convolutions > 0, own.causal
        self.reach = own.convolutions * (own.taps - 1)  # frames before one that a causal one reads
        if self.refines:
            post = common | {"x": own.taps, "c": own.channels, "j": own.channels}
            self.postnet = PostNet(rngs, post, own.convolutions, own.causal)

    def refine(
        self, patches_btp: Float[Array, "b t p"], clips_bt: Int[Array, "b t"], counts_bt: Array
    ) -> Float[Array, "b t p"]:
        """Patches after the post-net, float32.

        `clips_bt` numbers the clip of each patch, 0 where there is none; `counts_bt` int32 [b t]
        says how many of its frames are real. What is of no clip, or not real, stays as it is.
        """
        if not self.refines:
            return patches_btp
        (b, t, _), spec = patches_btp.shape, jax.typeof(patches_btp).sharding.spec
        rows = lambda x, *shape: jax.lax.reshape(
            jax.reshard(x, jax.P(spec[0], *[None] * (x.ndim - 1))),
            (b, *shape),
            out_sharding=jax.P(spec[0], *[None] * len(shape)),
        )
        frame = jnp.arange(t * self.r)[None] % self.r
        repeated = lambda x: jnp.repeat(rows(x, t), self.r, axis=1, out_sharding=jax.P(spec[0]))
        ids = jnp.where(frame < repeated(counts_bt), repeated(clips_bt), 0)
        frames = rows(patches_btp, t * self.r, self.m)
        refined = jnp.where(ids[..., None] > 0, self.postnet(frames, ids), frames)
        return jax.reshard(rows(refined, t, self.r * self.m), spec)


def _convolve(
    x_bsc: Float[Array, "b s c"],
    kernel: Float[Array, "x c j"],
    offsets: Sequence[int],
    neighbours: Sequence[Array],
) -> Float[Array, "b s j"]:
    """One convolution as one product, of frames that are of one clip alone; float32."""
    read = [
        jnp.where(same[..., None], _later(x_bsc, offset), 0)
        for offset, same in zip(offsets, neighbours, strict=True)
    ]
    matrix = kernel.reshape(-1, kernel.shape[-1])
    return einsum("bsy,yj->bsj", jnp.concatenate(read, axis=-1), matrix, jnp.float32)


def _later(x: Array, offset: int) -> Array:
    """[b s …] of which place i holds what was at i + offset, zeros where nothing was."""
    pads = [(0, 0)] * x.ndim
    pads[1] = (max(-offset, 0), max(offset, 0))
    start = max(offset, 0)
    return jax.lax.slice_in_dim(jnp.pad(x, pads), start, start + x.shape[1], axis=1)
