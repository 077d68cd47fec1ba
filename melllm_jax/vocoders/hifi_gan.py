"""HiFi-GAN's generator: log-mel to sound by transposed convolutions and residual blocks.

Kong, Kim and Bae 2020 (arXiv 2010.05646), in the form of transformers' `SpeechT5HifiGan`: without
weight normalisation, which is folded into the matrices, and with mean and scale of the mel.
"""

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from melllm_jax.config.vocoder import HifiGan
from melllm_jax.nn.layers import NonTrainable, constant
from melllm_jax.vocoders.convolution import Convolution, Edges, Silence, Upsampling

TAPS = 7  # of the first and the last convolution
LAST_SLOPE = 0.01  # of the leaky ReLU before the last convolution: PyTorch's default


class HifiGanVocoder(nnx.Module):
    """A generator for mel of m bands."""

    def __init__(self, rngs: nnx.Rngs, cfg: HifiGan, m: int):
        self.cfg = cfg
        self.mean = constant({"m": m}, "m", 0.0, NonTrainable)
        self.scale = constant({"m": m}, "m", 1.0, NonTrainable)
        self.first = Convolution(rngs, m, cfg.channels, TAPS, causal=cfg.causal)
        stages = range(len(cfg.rates))
        self.stages = nnx.List([Stage(rngs, cfg, i) for i in stages])
        last = cfg.channels // 2 ** len(cfg.rates)
        self.last = Convolution(rngs, last, 1, TAPS, causal=cfg.causal)

    def __call__(
        self, mels_bfm: Float[Array, "b f m"], lengths_b: Int[Array, "b"] | None = None
    ) -> Float[Array, "b w"]:
        """Samples in [-1, 1], `cfg.hop` a frame, of log-mel in the extractor's units.

        Only the first `lengths_b` frames of a row are real: their samples are those of the row
        alone, and the others are 0.
        """
        wave_bw = self.make_sound(mels_bfm, Silence(mels_bfm.shape[1], lengths_b))
        if lengths_b is None:
            return wave_bw
        ends_b = lengths_b * self.cfg.hop
        return jnp.where(jnp.arange(wave_bw.shape[1])[None] < ends_b[:, None], wave_bw, 0)

    def make_sound(self, mels_bfm: Float[Array, "b f m"], edges: Edges) -> Float[Array, "b w"]:
        """Samples of frames around which lies what `edges` says."""
        x = mels_bfm.astype(self.first.kernel.dtype)
        if self.cfg.normalize:
            mean, scale = (x[...].astype(x.dtype)[None, None] for x in (self.mean, self.scale))
            x = (x - mean) / scale
        x_bsc = self.first(x, edges)
        for stage in self.stages:
            x_bsc = stage(x_bsc, edges)
        x_bsc = self.last(jax.nn.leaky_relu(x_bsc, LAST_SLOPE), edges)
        return jnp.tanh(x_bsc[..., 0])


class Stage(nnx.Module):
    """More steps, half the channels, and the mean of the residual blocks."""

    def __init__(self, rngs: nnx.Rngs, cfg: HifiGan, index: int):
        self.slope = cfg.slope
        c = cfg.channels // 2**index
        rate, taps = cfg.rates[index], cfg.kernels[index]
        self.up = Upsampling(rngs, c, c // 2, taps, rate, cfg.causal)
        pairs = zip(cfg.resblock_kernels, cfg.dilations, strict=True)
        self.blocks = nnx.List([ResidualBlock(rngs, cfg, c // 2, *pair) for pair in pairs])

    def __call__(self, x_bsc: Float[Array, "b s c"], edges: Edges) -> Float[Array, "b q u"]:
        x_bqu = self.up(jax.nn.leaky_relu(x_bsc, self.slope), edges)
        total = self.blocks[0](x_bqu, edges)
        for block in self.blocks[1:]:
            total = total + block(x_bqu, edges)
        return total / len(self.blocks)


class ResidualBlock(nnx.Module):
    """Pairs of convolutions, the first of each dilated; what a pair finds is added."""

    def __init__(self, rngs: nnx.Rngs, cfg: HifiGan, c: int, taps: int, dilations: tuple[int, ...]):
        make = lambda dilation: Convolution(rngs, c, c, taps, dilation, cfg.causal)
        self.slope = cfg.slope
        self.first = nnx.List([make(dilation) for dilation in dilations])
        self.second = nnx.List([make(1) for _ in dilations])

    def __call__(self, x_bsc: Float[Array, "b s c"], edges: Edges) -> Float[Array, "b s c"]:
        for first, second in zip(self.first, self.second, strict=True):
            y_bsc = first(jax.nn.leaky_relu(x_bsc, self.slope), edges)
            x_bsc = x_bsc + second(jax.nn.leaky_relu(y_bsc, self.slope), edges)
        return x_bsc
