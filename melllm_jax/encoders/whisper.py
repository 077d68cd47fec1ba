"""Whisper's encoder, alone and as a front end of packed rows, or its convolutions as one.

Radford et al. 2022 (arXiv 2212.04356); transformers' `WhisperEncoder`. The encoder alone hears
sequences: 3,000 mel frames of 30 s padded with silence are one, and its hidden states are then
those of the reference. As a front end each clip is a sequence of its own, of its own length:
attention stays within it and positions start at 0, with no silence after it. Such a clip does not
equal the same clip padded to 30 s, by design: its rows hold no silence, and a clip that is the
padded window itself equals the reference here too. A clip of more than `Whisper.positions`
positions of 20 ms is heard in windows of so many, each a sequence of its own; the mel of all of
them has the floor of the clip's own peak, where the reference takes each window's.
"""

from collections.abc import Callable
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from melllm_jax import sharding
from melllm_jax.batch import Batch
from melllm_jax.config.encoders import Whisper
from melllm_jax.config.model import FrontSpec, Model
from melllm_jax.encoders.transformer_encoder import TransformerEncoder, WrapFn
from melllm_jax.nn import attention, attention_kernels, remat
from melllm_jax.nn.layers import NonTrainable, Sizes, constant, einsum, weight

TAPS = 3  # mel frames that either convolution sees
STRIDE = 2  # mel frames a position of the encoder
LONGEST_PERIOD = 10_000.0  # of a sinusoid, over 2 π, in positions
RULES: attention.MaskRules = {"window": 0, "both_ways": True}


class WhisperStem(nnx.Module):
    """Two convolutions, the second of stride 2, and positions: what enters the first block.

    Frames are [b f m] with f even; `sequences` int32 [b f] numbers the sequence of each frame from
    1, and is 0 at what is none. A sequence is an unbroken run that begins on an even frame. What
    it gives at positions [b t], t = f / 2, of no sequence means nothing.
    """

    def __init__(self, rngs: nnx.Rngs, cfg: Whisper, m: int):
        size = {"m": m, "d": cfg.d, "e": cfg.d, "x": TAPS, "t": cfg.positions}
        self.cfg = cfg
        self.first = weight(rngs, size, "x m d", fan_in="x m")
        self.first_bias = constant(size, "d", 0.0)
        self.second = weight(rngs, size, "x e d", fan_in="x e")
        self.second_bias = constant(size, "d", 0.0)
        self.positions = constant(size, "t d", 0.0, NonTrainable)
        self.positions.set_value(_sinusoids(cfg.positions, cfg.d))

    def embed(
        self, mels_bfm: Float[Array, "b f m"], sequences_bf: Int[Array, "b f"]
    ) -> Float[Array, "b t d"]:
        """The input of the first block."""
        sequences_bf = attention.gather_time(sequences_bf)
        x = attention.gather_time(mels_bfm).astype(self.first.dtype)
        x = jnp.where(sequences_bf[..., None] > 0, x, 0)
        x = einsum("btxm,xmd->btd", _taps(x, sequences_bf, 1), self.first[...])
        x = jax.nn.gelu(x + self.first_bias[...][None, None], approximate=False)
        x = jnp.where(sequences_bf[..., None] > 0, attention.gather_time(x), 0)
        x = einsum("btxe,xed->btd", _taps(x, sequences_bf, STRIDE), self.second[...])
        x = jax.nn.gelu(x + self.second_bias[...][None, None], approximate=False)
        places_bt = jnp.minimum(_places(sequences_bf[:, ::STRIDE]), self.cfg.positions - 1)
        table = self.positions[...].astype(x.dtype)
        embedded: Array = x + table.at[places_bt].get(out_sharding=jax.typeof(x).sharding.spec)
        return embedded


class WhisperEncoder(WhisperStem):
    """The stem, pre-norm blocks and a last norm."""

    def __init__(self, rngs: nnx.Rngs, cfg: Whisper, m: int, kernel: str = "auto"):
        """`kernel` is that of `config.Model.attention`."""
        super().__init__(rngs, cfg, m)
        self.kernel = kernel
        size = {name: getattr(cfg, name) for name in "dnhf"}
        self.stack = TransformerEncoder(rngs, size, cfg.l)

    def __call__(
        self,
        mels_bfm: Float[Array, "b f m"],
        sequences_bf: Int[Array, "b f"],
        wrap: WrapFn = lambda layer: layer,
        unroll: int = 1,
    ) -> Float[Array, "b t d"]:
        """The encoder's output; see `TransformerEncoder` for `wrap` and `unroll`."""
        return self.stack(*self._stack_inputs(mels_bfm, sequences_bf), wrap, unroll)

    def whole(self, mels_bfm: Float[Array, "b f m"]) -> Float[Array, "b t d"]:
        """The output for windows, one a row: each hears all its frames."""
        one = jnp.ones(mels_bfm.shape[:2], jnp.int32, out_sharding=sharding.a("b t"))
        x_btd, attend = self._stack_inputs(mels_bfm, one)
        return self.stack(x_btd, attention.attend_all if attention_kernels.on_one_cpu() else attend)

    def hidden(
        self, mels_bfm: Float[Array, "b f m"], sequences_bf: Int[Array, "b f"]
    ) -> Float[Array, "layers b t d"]:
        """What enters the first block, then the output of each, before the last norm: l + 1."""
        x_btd, attend = self._stack_inputs(mels_bfm, sequences_bf)
        return jnp.concatenate([x_btd[None], self.stack.layer_outputs(x_btd, attend)])

    def _stack_inputs(
        self, mels_bfm: Array, sequences_bf: Array
    ) -> tuple[Float[Array, "b t d"], attention_kernels.AttendFn]:
        """The input of the first block, and attention within each sequence."""
        x_btd = self.embed(mels_bfm, sequences_bf)
        sequences_bt = attention.gather_time(sequences_bf)[:, ::STRIDE]
        sequences_bt = jax.reshard(sequences_bt, sharding.a("b t"))
        return x_btd, self._attend_fn(sequences_bt, x_btd.dtype)

    def _attend_fn(self, sequences_bt: Array, dtype: Any) -> attention_kernels.AttendFn:
        index = jnp.zeros_like(sequences_bt) + jnp.arange(sequences_bt.shape[1])[None]
        index = jax.reshard(index.astype(jnp.int32), sharding.a("b t"))
        ids = attention.PositionIds(sequences_bt, index, sequences_bt)
        kernel = attention_kernels.choose_kernel(self.kernel, sequences_bt.shape[1], dtype)
        if kernel != "whole":
            ranges = attention_kernels.visible_ranges(ids, **RULES)
            return attention_kernels.make_attend_fn(kernel, ranges, **RULES)
        seen = attention.visibility_mask(ids, ids, **RULES)
        return lambda q, k, v: remat.name_activation(attention.attend(q, k, v, seen), "attended")


class EncoderAlone(nnx.Module):
    """An encoder without a model, at `.front.encoder`: its weights have the names of a model's."""

    def __init__(self, rngs: nnx.Rngs, spec: FrontSpec):
        self.front = nnx.Dict(encoder=WhisperEncoder(rngs, spec.whisper, spec.mel.m))


class WhisperFrontend(nnx.Module):
    """A Whisper encoder and a projector of ours: r / 2 positions stacked → GELU(d) → d.

    Clips are sequences of their own (see the module). A packed clip equals the clip alone: neither
    convolution nor attention leaves it. The projector is no part of Whisper.
    """

    def __init__(self, rngs: nnx.Rngs, size: Sizes, cfg: Model):
        self.cfg, self.m, r = cfg, size["m"], size["p"] // size["m"]
        self.encoder = WhisperEncoder(rngs, cfg.whisper, self.m, cfg.attention)
        size = dict(size) | {"u": r // STRIDE * cfg.whisper.d}
        self.up = weight(rngs, size, "u d", fan_in="u")
        self.up_bias = constant(size, "d", 0.0)
        self.down = weight(rngs, size, "e d", fan_in="e")
        self.down_bias = constant(size, "d", 0.0)

    def __call__(self, batch: Batch) -> Float[Array, "b t d"]:
        wrap = lambda layer: remat.wrap_layer(layer, self.cfg)
        unroll = 1 if self.cfg.scan else self.cfg.whisper.l
        x_btu = _side_by_side(
            lambda mels, sequences: self.encoder(mels, sequences, wrap, unroll),
            batch,
            self.m,
            self.cfg.whisper,
        )
        x = einsum("btu,ud->btd", x_btu, self.up[...]) + self.up_bias[...][None, None]
        x = jax.nn.gelu(x, approximate=False)
        return einsum("bte,ed->btd", x, self.down[...]) + self.down_bias[...][None, None]


class WhisperConvFrontend(nnx.Module):
    """Whisper's two convolutions and its positions, and one matrix: r / 2 of them stacked → d.

    Nothing but the convolutions sees beyond a position, and they keep to the clip.
    """

    def __init__(self, rngs: nnx.Rngs, size: Sizes, cfg: Model):
        self.m, r = size["m"], size["p"] // size["m"]
        self.encoder = WhisperStem(rngs, cfg.whisper, self.m)
        size = dict(size) | {"u": r // STRIDE * cfg.whisper.d}
        self.kernel = weight(rngs, size, "u d", fan_in="u")
        self.bias = constant(size, "d", 0.0)

    def __call__(self, batch: Batch) -> Float[Array, "b t d"]:
        x_btu = _side_by_side(self.encoder.embed, batch, self.m, self.encoder.cfg)
        return einsum("btu,ud->btd", x_btu, self.kernel[...]) + self.bias[...][None, None]


def _side_by_side(
    encode: Callable[[Array, Array], Array], batch: Batch, m: int, cfg: Whisper
) -> Float[Array, "b t u"]:
    """What `encode` makes of the clips of packed rows, the positions of a patch in one vector.

    Zeros beyond a clip's last frame.
    """
    (b, t), r = batch.frames.shape, batch.patches.shape[-1] // m
    mels_bfm = reshape_time(attention.gather_time(batch.patches), (b, t * r, m))
    sequences_bf = clip_sequences(batch, r, STRIDE * cfg.positions)
    x_btd = encode(mels_bfm, sequences_bf)
    real_bt = jax.reshard(sequences_bf[:, ::STRIDE] > 0, sharding.a("b t"))
    x_btd = jnp.where(real_bt[..., None], x_btd, 0)
    return jax.lax.reshape(x_btd, (b, t, r // STRIDE * cfg.d), out_sharding=sharding.a("b t u"))


def clip_sequences(batch: Batch, r: int, window: int) -> Int[Array, "b f"]:
    """The sequence of each mel frame of packed rows, f = t · r, with time gathered.

    A clip is one, or several where it has more than `window` frames. Its number is the place of
    its first frame in the row, from 1.
    """
    segments, clips, frames = (
        attention.gather_time(x) for x in (batch.segments, batch.clips, batch.frames)
    )
    index = jnp.zeros_like(clips) + jnp.arange(clips.shape[1], dtype=jnp.int32)[None]
    opens = _changes(segments) | _changes(clips)
    start = jax.lax.cummax(jnp.where(opens, index, 0), axis=1)[..., None] * r
    inside = jnp.arange(r, dtype=jnp.int32)[None, None]
    offset = index[..., None] * r + inside - start
    first = start + offset // window * window
    real = (inside < frames[..., None]) & (clips > 0)[..., None]
    b, t = clips.shape
    return reshape_time(jnp.where(real, first + 1, 0), (b, t * r))


def reshape_time(x: Array, shape: tuple[int, ...]) -> Array:
    """`x` [b …] in another shape [b …], its rows on the devices that they are on."""
    rows = jax.typeof(x).sharding.spec[0]
    return jax.lax.reshape(x, shape, out_sharding=jax.P(rows, *[None] * (len(shape) - 1)))


def _changes(x_bt: Array) -> Array:
    """Bool [b t]: whether a number differs from the one before; the first does."""
    first = jnp.ones_like(x_bt[:, :1], bool)
    return jnp.concatenate([first, x_bt[:, 1:] != x_bt[:, :-1]], axis=1)


def _places(sequences_bt: Array) -> Int[Array, "b t"]:
    """The place of each position in its run of equal numbers, from 0."""
    index = jnp.zeros_like(sequences_bt) + jnp.arange(sequences_bt.shape[1], dtype=jnp.int32)[None]
    start = jax.lax.cummax(jnp.where(_changes(sequences_bt), index, 0), axis=1)
    return index - start


def _taps(x: Array, sequences_bf: Array, stride: int) -> Float[Array, "b t taps c"]:
    """What a convolution of three taps sees of `x` [b f c], zeros beyond each sequence.

    Laid out by positions, so that each device multiplies its own.
    """
    own = sequences_bf[:, ::stride]

    def tap(offset: int) -> Array:
        pads = ((0, 0), (max(-offset, 0), max(offset, 0)))
        cut = slice(offset, None) if offset > 0 else slice(0, x.shape[1])
        values = jnp.pad(x, (*pads, (0, 0)))[:, cut][:, ::stride]
        number = jnp.pad(sequences_bf, pads)[:, cut][:, ::stride]
        return jnp.where((number == own)[..., None], values, 0)

    seen = jnp.stack([tap(offset) for offset in (-1, 0, 1)], axis=2)
    return jax.reshard(seen, sharding.a("b t x c"))


def _sinusoids(length: int, width: int) -> Float[Array, "t d"]:
    """Whisper's positions: sines, then cosines, of `width` / 2 geometric periods, float32."""
    half = width // 2
    rate = jnp.exp(-jnp.log(LONGEST_PERIOD) / (half - 1) * jnp.arange(half, dtype=jnp.float32))
    angle = jnp.arange(length, dtype=jnp.float32)[:, None] * rate[None]
    return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=1)
