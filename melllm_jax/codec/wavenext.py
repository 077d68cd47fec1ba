"""WaveNeXt, causal: features to samples by ConvNeXt blocks and a matrix in place of an iSTFT.

Okamoto et al. 2023 (ASRU), as FocalCodec-Stream has it. Before the sound all is zeros.
"""

from flax import nnx
import jax.numpy as jnp
from jaxtyping import Array, Float

from melllm_jax.codec.layers import DepthConvolution, Linear, TimeConvolution
from melllm_jax.config.codec import WaveNext
from melllm_jax.encoders.transformer_encoder import GeluMlp
from melllm_jax.encoders.wavlm_convolutions import ExtendFn
from melllm_jax.features.stft import reshape_rows
from melllm_jax.nn.attention import gather_time
from melllm_jax.nn.layers import LayerNorm, constant

EPS = 1e-6  # of the norms


class CausalConvNextBlock(nnx.Module):
    """A depth-wise convolution, a norm, an MLP of GELU; scaled by channel and added."""

    def __init__(self, rngs: nnx.Rngs, cfg: WaveNext):
        size = {"d": cfg.d, "f": cfg.f}
        self.depth = DepthConvolution(rngs, cfg.taps, cfg.d)
        self.norm = LayerNorm(size, EPS)
        self.mlp = GeluMlp(rngs, size)
        self.gain = constant(size, "d", 1 / cfg.l)

    def __call__(self, x_btd: Float[Array, "b t d"], extend: ExtendFn) -> Float[Array, "b t d"]:
        y_btd = self.mlp(self.norm(self.depth(x_btd, extend)))
        return x_btd + self.gain[...][None, None] * y_btd


class WaveNextDecoder(nnx.Module):
    """A decoder for features of c channels."""

    def __init__(self, rngs: nnx.Rngs, cfg: WaveNext, c: int):
        size = {"d": cfg.d, "c": cfg.hop}
        self.embed = TimeConvolution(rngs, cfg.taps, c, cfg.d)
        self.norm = LayerNorm(size, EPS)
        self.blocks = nnx.List([CausalConvNextBlock(rngs, cfg) for _ in range(cfg.l)])
        self.last_norm = LayerNorm(size, EPS)
        self.samples = Linear(rngs, size, "d c")

    def __call__(self, x_btc: Float[Array, "b t c"], extend: ExtendFn) -> Float[Array, "b w"]:
        """`hop` samples of each position, from -1 to 1, in float32."""
        x_btd = self.norm(self.embed(x_btc, extend))
        for block in self.blocks:
            x_btd = block(x_btd, extend)
        x_btc = gather_time(self.samples(self.last_norm(x_btd)).astype(jnp.float32))
        return jnp.clip(reshape_rows(x_btc, (x_btc.shape[1] * x_btc.shape[2],)), -1, 1)
