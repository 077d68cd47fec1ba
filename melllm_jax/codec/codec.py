"""The codec: sound of 16 kHz to one stream of codes, and codes to sound.

FocalCodec-Stream (Della Libera et al. 2025, arXiv 2509.16195; the package focalcodec 0.0.2): the
first layers of a causal WavLM, a compressor and signs; back, a decompressor whose features are
again WavLM's, and a WaveNeXt. `streaming` does both as sound or codes come.

Sound is [b w], as it is: not scaled. Of padded rows the first `lengths_b` samples, or codes, are
real, and a row is then what it is alone; what comes beyond its codes means nothing.
"""

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from melllm_jax import sharding
from melllm_jax.codec.compressor import Compressor, Decompressor
from melllm_jax.codec.layers import silence_first
from melllm_jax.codec.quantizer import code_ids, codes_of_ids
from melllm_jax.codec.wavenext import WaveNextDecoder
from melllm_jax.config.codec import CodecSpec
from melllm_jax.encoders.wavlm import WavLMEncoder
from melllm_jax.encoders.wavlm_convolutions import repeat_first


class Codec(nnx.Module):
    """All networks of the codec."""

    def __init__(self, rngs: nnx.Rngs, spec: CodecSpec):
        self.spec = spec
        self.encoder = WavLMEncoder(rngs, spec.wavlm)
        self.compressor = Compressor(rngs, spec)
        self.decompressor = Decompressor(rngs, spec)
        self.decoder = WaveNextDecoder(rngs, spec.wavenext, spec.wavlm.d)

    def latents(
        self, waves_bw: Float[Array, "b w"], lengths_b: Int[Array, "b"] | None = None
    ) -> Float[Array, "b t c"]:
        """What the signs are taken of, a channel a bit; `wavlm.positions_heard` positions."""
        return self.compressor(self.encoder(waves_bw, lengths_b), repeat_first)

    def encode(
        self, waves_bw: Float[Array, "b w"], lengths_b: Int[Array, "b"] | None = None
    ) -> Int[Array, "b t"]:
        """The code of each position."""
        return code_ids(self.latents(waves_bw, lengths_b))

    def features(
        self, codes_btc: Float[Array, "b t c"], lengths_b: Int[Array, "b"] | None = None
    ) -> Float[Array, "b t d"]:
        """WavLM's features as codes tell them."""
        real_bt = real_codes(codes_btc.shape, lengths_b)
        return self.decompressor(codes_btc, real_bt, repeat_first)

    def decode(
        self, ids_bt: Int[Array, "b t"], lengths_b: Int[Array, "b"] | None = None
    ) -> Float[Array, "b w"]:
        """The sound of codes, `spec.wavenext.hop` samples each, of `spec.rate` a second."""
        ids_bt = jax.reshard(ids_bt, sharding.a("b t"))
        features_btd = self.features(codes_of_ids(ids_bt, self.spec.bits), lengths_b)
        return self.decoder(features_btd, silence_first)


def real_codes(
    shape: tuple[int, ...], lengths_b: Int[Array, "b"] | None = None
) -> Bool[Array, "b t"]:
    """Which positions of an array [b t …] are of the first `lengths_b`; None: all."""
    if lengths_b is None:
        return jnp.ones(shape[:2], bool, out_sharding=sharding.a("b t"))
    index = jnp.arange(shape[1], dtype=jnp.int32)[None]
    real_bt = index < jax.reshard(lengths_b, sharding.a("b"))[:, None]
    return jax.reshard(real_bt, sharding.a("b t"))
