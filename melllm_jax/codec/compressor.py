"""WavLM's features to latents of a few channels, and codes back to features.

The `FocalEncoder` and `FocalDecoder` of FocalCodec-Stream (arXiv 2509.16195), at one rate: a
position of features is one of codes. Both are causal. But for its refiner, which sees chunks: it
makes good what a feature cannot know of the later ones that WavLM saw.
"""

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from melllm_jax import sharding
from melllm_jax.codec.focal import FocalBlock
from melllm_jax.codec.layers import Linear, Snake
from melllm_jax.config.codec import CodecSpec
from melllm_jax.encoders.wavlm_convolutions import ExtendFn
from melllm_jax.features.stft import reshape_rows
from melllm_jax.nn.attention import gather_time
from melllm_jax.nn.layers import constant, einsum, weight


class Compressor(nnx.Module):
    """For each width a matrix, a snake and a focal block; then the matrix of the latents."""

    def __init__(self, rngs: nnx.Rngs, spec: CodecSpec):
        cfg = spec.compressor
        inputs = (spec.wavlm.d, *cfg.widths[:-1])
        sizes = [{"c": c, "d": d} for c, d in zip(inputs, cfg.widths, strict=True)]
        self.scales = nnx.List([Linear(rngs, size, "c d") for size in sizes])
        self.snakes = nnx.List([Snake(d) for d in cfg.widths])
        self.blocks = nnx.List([FocalBlock(rngs, cfg, i) for i in range(len(cfg.widths))])
        self.latents = Linear(rngs, {"d": cfg.widths[-1], "c": spec.bits}, "d c")

    def __call__(self, x_btd: Float[Array, "b t d"], extend: ExtendFn) -> Float[Array, "b t c"]:
        for scale, snake, block in zip(self.scales, self.snakes, self.blocks, strict=True):
            x_btd = block(snake(scale(x_btd)), extend)
        return self.latents(x_btd)


class Decompressor(nnx.Module):
    """A matrix of the codes; for each width a focal block, a snake and a matrix; the refiner."""

    def __init__(self, rngs: nnx.Rngs, spec: CodecSpec):
        cfg = spec.decompressor
        outputs = (*cfg.widths[1:], spec.wavlm.d)
        sizes = [{"c": c, "d": d} for c, d in zip(cfg.widths, outputs, strict=True)]
        self.embed = Linear(rngs, {"c": spec.bits, "d": cfg.widths[0]}, "c d")
        self.blocks = nnx.List([FocalBlock(rngs, cfg, i) for i in range(len(cfg.widths))])
        self.snakes = nnx.List([Snake(d) for d in cfg.widths])
        self.scales = nnx.List([Linear(rngs, size, "c d") for size in sizes])
        self.refiner = Refiner(rngs, spec) if spec.refined > 1 else None

    def __call__(
        self,
        codes_btc: Float[Array, "b t c"],
        real_bt: Bool[Array, "b t"],
        extend: ExtendFn,
    ) -> Float[Array, "b t d"]:
        """Features; the last chunk of a row ends with its real positions."""
        x_btd = self.embed(codes_btc)
        for block, snake, scale in zip(self.blocks, self.snakes, self.scales, strict=True):
            x_btd = scale(snake(block(x_btd, extend)))
        return x_btd if self.refiner is None else self.refiner(x_btd, real_bt)


class Refiner(nnx.Module):
    """x + an MLP of all that a chunk holds: `refined` positions side by side."""

    def __init__(self, rngs: nnx.Rngs, spec: CodecSpec):
        size = {"x": spec.refined, "d": spec.wavlm.d, "f": spec.refined * spec.wavlm.d}
        self.up = weight(rngs, size, "x d f", fan_in="x d")
        self.up_bias = constant(size, "f", 0.0)
        self.down = weight(rngs, size, "f x d", fan_in="f")
        self.down_bias = constant(size, "x d", 0.0)

    def __call__(
        self, x_btd: Float[Array, "b t d"], real_bt: Bool[Array, "b t"]
    ) -> Float[Array, "b t d"]:
        """Positions that are not real, or that the last chunk lacks, are zeros."""
        chunk, d, _ = self.up.shape
        x_bsd = gather_time(jnp.where(real_bt[..., None], x_btd, 0))
        s = x_bsd.shape[1]
        whole = -(-s // chunk)
        chunks = jnp.pad(x_bsd, ((0, 0), (0, whole * chunk - s), (0, 0)))
        chunks = reshape_rows(chunks, (whole, chunk, d))
        y = einsum("bqxd,xdf->bqf", chunks, self.up[...]) + self.up_bias[...][None, None]
        y = jax.nn.gelu(y, approximate=False)
        y = einsum("bqf,fxd->bqxd", y, self.down[...]) + self.down_bias[...][None, None]
        y_bsd = reshape_rows(y, (whole * chunk, d))[:, :s]
        return x_btd + jax.reshard(y_bsd, sharding.a("b t d"))
