"""The codec as sound or codes come: piece by piece equal to the whole.

WavLM hears chunks of `spec.wavlm.chunk` positions (80 ms as released), and the decompressor refines
chunks of `spec.refined`; samples and codes of no whole chunk wait in the state, so that pieces of
any length may come. All are pure functions of a state that is a pytree; each number of chunks that
become whole at once is compiled once. The mesh splits rows and heads, and not time.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from melllm_jax import sharding
from melllm_jax.codec.codec import Codec, real_codes
from melllm_jax.codec.compressor import Compressor
from melllm_jax.codec.quantizer import code_ids, codes_of_ids
from melllm_jax.config.codec import Focal
from melllm_jax.encoders import wavlm_stream
from melllm_jax.encoders.wavlm_stream import ConvolutionHistory

Before = tuple[Array, ...]  # what each convolution saw last: [b taps-1 c], in their order


class EncodeState(NamedTuple):
    """What is kept of the sound so far."""

    sound: wavlm_stream.StreamState
    before: Before  # of the compressor


class DecodePast(NamedTuple):
    """What is kept of the codes whose sound was made."""

    features: Before  # of the decompressor
    samples: Before  # of the decoder: zeros before its first
    first: Bool[Array, ""]  # whether there are none yet


class DecodeState(NamedTuple):
    """What is kept of the codes so far."""

    ids: Int[Array, "b t"]  # those of no whole chunk yet
    past: DecodePast


def init_encode(codec: Codec, b: int) -> EncodeState:
    """The state of `b` sounds before their first sample."""
    before = _silent(codec, b, _focal_shapes(codec.spec.compressor))
    return EncodeState(wavlm_stream.init_state(codec.encoder, b), before)


def encode_step(
    codec: Codec, state: EncodeState, samples_bw: Float[Array, "b w"]
) -> tuple[Int[Array, "b t"], EncodeState]:
    """The codes of the chunks that these samples complete, none or several, and the state."""
    first = state.sound.past.heard == 0
    hidden, sound = wavlm_stream.step(codec.encoder, state.sound, samples_bw)
    ids_bt, before = _compress(codec.compressor, state.before, first, hidden[-1])
    return ids_bt, EncodeState(sound, before)


def encode_rest(codec: Codec, state: EncodeState) -> Int[Array, "b t"]:
    """The codes of the samples that still wait, as the last of the sound."""
    first = state.sound.past.heard == 0
    hidden = wavlm_stream.finish(codec.encoder, state.sound)
    return _compress(codec.compressor, state.before, first, hidden[-1])[0]


def init_decode(codec: Codec, b: int) -> DecodeState:
    """The state of `b` sounds before their first code."""
    spec = codec.spec
    taps, widths = spec.wavenext.taps - 1, (spec.wavlm.d, *[spec.wavenext.d] * spec.wavenext.l)
    features = _silent(codec, b, _focal_shapes(spec.decompressor))
    samples = _silent(codec, b, [(taps, c) for c in widths])
    ids_bt = jnp.zeros((b, 0), jnp.int32, out_sharding=sharding.a("b t"))
    return DecodeState(ids_bt, DecodePast(features, samples, jnp.ones((), bool)))


def decode_step(
    codec: Codec, state: DecodeState, ids_bt: Int[Array, "b t"]
) -> tuple[Float[Array, "b w"], DecodeState]:
    """The samples of the chunks that these codes complete, none or several, and the state."""
    ids_bt = jnp.concatenate([state.ids, jax.reshard(ids_bt, sharding.a("b t"))], axis=1)
    whole = ids_bt.shape[1] // codec.spec.refined * codec.spec.refined
    waves_bw, past = _sound(codec, state.past, ids_bt[:, :whole])
    return waves_bw, DecodeState(ids_bt[:, whole:], past)


def decode_rest(codec: Codec, state: DecodeState) -> Float[Array, "b w"]:
    """The samples of the codes that still wait, as the last of the sound."""
    return _sound(codec, state.past, state.ids)[0]


@jax.jit
def _compress(
    compressor: Compressor, before: Before, first: Array, features_btd: Array
) -> tuple[Int[Array, "b t"], Before]:
    if not features_btd.shape[1]:
        empty = jnp.zeros(features_btd.shape[:2], jnp.int32, out_sharding=sharding.a("b t"))
        return empty, before
    memory = ConvolutionHistory(before, first)
    ids_bt = code_ids(compressor(features_btd, memory.extend))
    return ids_bt, tuple(memory.after)


@jax.jit
def _sound(codec: Codec, past: DecodePast, ids_bt: Array) -> tuple[Float[Array, "b w"], DecodePast]:
    if not ids_bt.shape[1]:
        return jnp.zeros(ids_bt.shape, out_sharding=sharding.a("b w")), past
    never = jnp.zeros((), bool)
    features, samples = (
        ConvolutionHistory(past.features, past.first),
        ConvolutionHistory(past.samples, never),
    )
    codes_btc = codes_of_ids(ids_bt, codec.spec.bits)
    features_btd = codec.decompressor(codes_btc, real_codes(ids_bt.shape), features.extend)
    waves_bw = codec.decoder(features_btd, samples.extend)
    return waves_bw, DecodePast(tuple(features.after), tuple(samples.after), never)


def _focal_shapes(cfg: Focal) -> list[tuple[int, int]]:
    """Steps and channels that each convolution of a stack keeps, in their order."""
    blocks = enumerate(cfg.widths)
    return [(taps - 1, width) for i, width in blocks for taps in cfg.reach(i)]


def _silent(codec: Codec, b: int, shapes: list[tuple[int, int]]) -> Before:
    dtype, layout = codec.encoder.table.dtype, sharding.a("b s c")
    return tuple(jnp.zeros((b, *shape), dtype, out_sharding=layout) for shape in shapes)
