"""Vocos: log-mel to sound by ConvNeXt blocks at the frames' rate and an inverse STFT.

Siuzdak 2023 (arXiv 2306.00814); the package vocos 0.1.0: `VocosBackbone` and `ISTFTHead`.
"""

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from melllm_jax.config.vocoder import Vocos
from melllm_jax.features.stft import istft
from melllm_jax.nn.layers import LayerNorm, Sizes, constant, einsum, weight
from melllm_jax.vocoders.convolution import Convolution, Edges, Silence

TAPS = 7  # frames that a convolution sees
EPS = 1e-6  # of the norms
LOUDEST = 100.0  # most magnitude of a bin


class VocosVocoder(nnx.Module):
    """A vocoder for mel of m bands."""

    def __init__(self, rngs: nnx.Rngs, cfg: Vocos, m: int):
        self.cfg = cfg
        size = {"d": cfg.d, "e": cfg.d, "f": cfg.f, "x": TAPS, "z": cfg.n_fft // 2 + 1}
        self.embed = Convolution(rngs, m, cfg.d, TAPS, causal=cfg.causal)
        self.norm = LayerNorm(size, EPS)
        # A list: on a CPU, a layer cut out of a stack would be copied, a tenth of all the time.
        self.blocks = nnx.List([ConvNextBlock(rngs, size, cfg) for _ in range(cfg.l)])
        self.last_norm = LayerNorm(size, EPS)
        self.magnitude, self.phase = (weight(rngs, size, "d z", fan_in="d") for _ in range(2))
        self.magnitude_bias, self.phase_bias = (constant(size, "z", 0.0) for _ in range(2))

    def __call__(
        self, mels_bfm: Float[Array, "b f m"], lengths_b: Int[Array, "b"] | None = None
    ) -> Float[Array, "b w"]:
        """Samples of log-mel in the extractor's units: `VocoderSpec.samples` of the frames.

        Only the first `lengths_b` frames of a row are real: their samples are those of the row
        alone, and the others are 0.
        """
        real, imaginary = self.spectra(mels_bfm, Silence(mels_bfm.shape[1], lengths_b))
        return istft(jax.lax.complex(real, imaginary), self.cfg.hop, self.cfg.padding, lengths_b)

    def spectra(
        self, mels_bfm: Float[Array, "b f m"], edges: Edges
    ) -> tuple[Float[Array, "b f z"], Float[Array, "b f z"]]:
        """Real and imaginary parts of the sound's spectra, in float32."""
        x_bsd = self.norm(self.embed(mels_bfm.astype(self.embed.kernel.dtype), edges))
        for block in self.blocks:
            x_bsd = block(x_bsd, edges)
        x_bsd = self.last_norm(x_bsd)
        magnitude, phase = (
            (einsum("bsd,dz->bsz", x_bsd, kernel[...]) + bias[...][None, None]).astype(jnp.float32)
            for kernel, bias in (
                (self.magnitude, self.magnitude_bias),
                (self.phase, self.phase_bias),
            )
        )
        magnitude = jnp.minimum(jnp.exp(magnitude), LOUDEST)
        return magnitude * jnp.cos(phase), magnitude * jnp.sin(phase)


class ConvNextBlock(nnx.Module):
    """A depth-wise convolution, a norm, an MLP of GELU; scaled by channel and added."""

    def __init__(self, rngs: nnx.Rngs, size: Sizes, cfg: Vocos):
        self.causal = cfg.causal
        self.depth = weight(rngs, size, "x e", fan_in="x")
        self.depth_bias = constant(size, "e", 0.0)
        self.norm = LayerNorm(size, EPS)
        self.up = weight(rngs, size, "d f", fan_in="d")
        self.up_bias = constant(size, "f", 0.0)
        self.down = weight(rngs, size, "f d", fan_in="f")
        self.down_bias = constant(size, "d", 0.0)
        self.gain = constant(size, "d", 1 / cfg.l)

    def __call__(self, x_bsd: Float[Array, "b s d"], edges: Edges) -> Float[Array, "b s d"]:
        s, right = x_bsd.shape[1], 0 if self.causal else TAPS // 2
        seen = edges.extend(x_bsd, TAPS - 1 - right, right)
        taps = self.depth[...][:, None, None]
        y_bsd = self.depth_bias[...][None, None] + sum(
            seen[:, i : i + s] * taps[i] for i in range(TAPS)
        )
        y_bsf = einsum("bsd,df->bsf", self.norm(y_bsd), self.up[...])
        y_bsf = jax.nn.gelu(y_bsf + self.up_bias[...][None, None], approximate=False)
        y_bsd = einsum("bsf,fd->bsd", y_bsf, self.down[...]) + self.down_bias[...][None, None]
        return x_bsd + self.gain[...][None, None] * y_bsd
