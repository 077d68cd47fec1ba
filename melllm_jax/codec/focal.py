"""Focal modulation, causal: what a position sees is summed by convolutions and multiplies it.

Yang et al. 2022 (arXiv 2203.11926) in the form of FocalCodec-Stream (arXiv 2509.16195): a tanh in
place of each norm, and a long convolution in place of the mean over all positions. At the beginning
each convolution sees its own first position repeated.
"""

from flax import nnx
import jax
from jaxtyping import Array, Float

from melllm_jax.codec.layers import DepthConvolution, DynamicTanh, Linear
from melllm_jax.config.codec import Focal
from melllm_jax.encoders.transformer_encoder import GeluMlp
from melllm_jax.encoders.wavlm_convolutions import ExtendFn
from melllm_jax.nn.layers import constant

MLP = 4  # widths of a block's MLP


class FocalModulation(nnx.Module):
    """query(x) times a sum of contexts, each with a gate of the position."""

    def __init__(self, rngs: nnx.Rngs, cfg: Focal, i: int):
        d, reach = cfg.widths[i], cfg.reach(i)
        size = {"d": d, "e": d, "c": len(reach)}
        self.cfg = cfg
        self.query, self.context = (Linear(rngs, size, "d e") for _ in range(2))
        self.gates = Linear(rngs, size, "d c")
        self.levels = nnx.List([DepthConvolution(rngs, taps, d) for taps in reach])
        self.modulator = Linear(rngs, size, "d e")
        if cfg.post_norm:
            self.norm = DynamicTanh(cfg.slope)
        self.output = Linear(rngs, size, "d e")

    def __call__(self, x_btd: Float[Array, "b t d"], extend: ExtendFn) -> Float[Array, "b t d"]:
        gates_btc = self.gates(x_btd)
        context_btd = self.context(x_btd)
        total_btd = 0 * context_btd
        for i, level in enumerate(self.levels):
            context_btd = jax.nn.gelu(level(context_btd, extend), approximate=False)
            total_btd = total_btd + context_btd * gates_btc[..., i : i + 1]
        if self.cfg.mean:
            total_btd = total_btd / len(self.levels)
        y_btd = self.query(x_btd) * self.modulator(total_btd)
        return self.output(self.norm(y_btd) if self.cfg.post_norm else y_btd)


class FocalBlock(nnx.Module):
    """One layer: x + modulation, then x + MLP, each squashed by a tanh before or after."""

    def __init__(self, rngs: nnx.Rngs, cfg: Focal, i: int):
        size = {"d": cfg.widths[i], "f": MLP * cfg.widths[i]}
        self.cfg = cfg
        self.modulation_norm, self.mlp_norm = (DynamicTanh(cfg.slope) for _ in range(2))
        self.modulation = FocalModulation(rngs, cfg, i)
        self.mlp = GeluMlp(rngs, size)
        if cfg.gain is not None:
            self.modulation_gain, self.mlp_gain = (constant(size, "d", cfg.gain) for _ in range(2))

    def __call__(self, x_btd: Float[Array, "b t d"], extend: ExtendFn) -> Float[Array, "b t d"]:
        if self.cfg.post_norm:
            modulated_btd = self.modulation_norm(self.modulation(x_btd, extend))
        else:
            modulated_btd = self.modulation(self.modulation_norm(x_btd), extend)
        if self.cfg.gain is not None:
            modulated_btd = modulated_btd * self.modulation_gain[...][None, None]
        x_btd = x_btd + modulated_btd
        if self.cfg.post_norm:
            y_btd = self.mlp_norm(self.mlp(x_btd))
        else:
            y_btd = self.mlp(self.mlp_norm(x_btd))
        if self.cfg.gain is not None:
            y_btd = y_btd * self.mlp_gain[...][None, None]
        return x_btd + y_btd
