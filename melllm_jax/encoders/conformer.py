"""Phi-4-multimodal's speech encoder: the conv stem, Conformer blocks, the projector.

A block is x + MLP/2, + attention, + a convolution, + MLP/2, then a norm (Gulati et al. 2020, arXiv
2005.08100), as transformers' `Phi4MultimodalAudioModel` has it. A clip's positions see that clip
alone, `WINDOW` positions at a time, wherever in a row it lies.

Inside a block the letters are the encoder's own: d its width (`model.c`), n and h its heads, f the
width within, e its width held whole, x taps, z distances. Time is s, whole: where the mesh splits
it, every part computes all of it.
"""

from collections.abc import Callable
import functools

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from melllm_jax import sharding
from melllm_jax.batch import Batch
from melllm_jax.config.encoders import Conformer
from melllm_jax.config.model import Model
from melllm_jax.encoders import clip_windows
from melllm_jax.encoders.clip_windows import WINDOW, ClipWindows
from melllm_jax.encoders.frontends import ConvFrontend, ConvStem, continues_clip
from melllm_jax.encoders.transformer_encoder import WrapFn
from melllm_jax.encoders.window_attention import attend_in_windows
from melllm_jax.nn import attention, remat
from melllm_jax.nn.layers import LayerNorm, Sizes, constant, einsum, stem_bands, weight
from melllm_jax.nn.remat import name_activation

AttendFn = Callable[[Array, Array, Array], Array]
ToRowsFn = Callable[[Array], Array]  # of rows with room, [b q d], what is of the batch's: [b s d]


class ConformerBlocks(nnx.Module):
    """The blocks over a stem's output, and the bias of distances that they share."""

    def __init__(self, rngs: nnx.Rngs, width: int, cfg: Conformer):
        self.sizes = cfg
        own = encoder_sizes(width, cfg)
        self.distances = weight(rngs, own, "z n", fan_in="z")
        self.blocks = jax.vmap(lambda layer: ConformerBlock(layer, own))(rngs.split(cfg.l))

    def encode(
        self,
        x_btu: Float[Array, "b t u"],
        batch: Batch,
        wrap: WrapFn = lambda layer: layer,
        unroll: int = 1,
    ) -> Float[Array, "b t u"]:
        """What the blocks make of the stem's output; see `TransformerEncoder` for the rest."""

        def run(x_bsd: Array, windows: ClipWindows, back: ToRowsFn) -> Array:
            attend = self._attend_fn(windows)
            layer = wrap(lambda x, block: (block(x, attend, windows), None))
            return back(jax.lax.scan(layer, x_bsd, self.blocks, unroll=unroll)[0])

        return jax.reshard(self._in_windows(run, x_btu, batch), sharding.a("b t u"))

    def layer_outputs(
        self, x_btu: Float[Array, "b t u"], batch: Batch
    ) -> Float[Array, "layers b t u"]:
        """The output of each block."""

        def run(x_bsd: Array, windows: ClipWindows, back: ToRowsFn) -> Array:
            attend = self._attend_fn(windows)

            def layer(x_bsd: Array, block: ConformerBlock) -> tuple[Array, Array]:
                y_bsd = block(x_bsd, attend, windows)
                return y_bsd, back(y_bsd)

            return jax.lax.scan(layer, x_bsd, self.blocks)[1]

        outputs = self._in_windows(run, x_btu, batch)
        return jax.reshard(outputs, jax.P(None, *sharding.a("b t u")))

    def _in_windows(
        self, run: Callable[[Array, ClipWindows, ToRowsFn], Array], x_btu: Array, batch: Batch
    ) -> Array:
        """`run` of the rows of a batch and their windows; it hands back what is of these rows.

        A row of a batch in which some clip is longer than a window has room to fill it up: twice
        the work at most, which other batches do not do.
        """
        x_bsd = attention.gather_time(x_btu)
        place = clip_windows.places_in_clips(
            attention.gather_time(continues_clip(batch)), attention.gather_time(batch.is_speech)
        )

        def as_it_is(x_bsd: Array) -> Array:
            return run(x_bsd, clip_windows.windows(place), lambda y_bsd: y_bsd)

        def with_room(x_bsd: Array) -> Array:
            room = clip_windows.room(place)
            back = lambda y_bsd: clip_windows.take(y_bsd, room.targets)
            return run(clip_windows.take(x_bsd, room.sources), room.windows, back)

        if x_bsd.shape[1] <= WINDOW:
            return as_it_is(x_bsd)
        return jax.lax.cond(jnp.any(place >= WINDOW), with_room, as_it_is, x_bsd)

    def _attend_fn(self, windows: ClipWindows) -> AttendFn:
        return functools.partial(
            attend_in_windows,
            distances=self.distances[...],
            windows=windows,
            cfg=self.sizes,
        )


class ConformerFrontend(ConvFrontend, ConformerBlocks):
    """The conv front end with Conformer blocks between its stem and its projector."""

    def __init__(self, rngs: nnx.Rngs, size: Sizes, cfg: Model):
        ConvFrontend.__init__(self, rngs, size)
        ConformerBlocks.__init__(self, rngs, cfg.c, cfg.conformer)
        self.cfg = cfg

    def __call__(self, batch: Batch) -> Float[Array, "b t d"]:
        wrap = lambda layer: remat.wrap_layer(layer, self.cfg)
        unroll = 1 if self.cfg.scan else self.sizes.l
        return self.project(self.encode(self.stem(batch), batch, wrap, unroll))


class ConformerEncoder(ConvStem, ConformerBlocks):
    """Stem and blocks without a projector, whose weights have the names of a front end's."""

    def __init__(self, rngs: nnx.Rngs, m: int, width: int, cfg: Conformer):
        """`m` is the mel's bands."""
        size = {"m": m, "c": width, "u": width, "j": stem_bands(m)}
        ConvStem.__init__(self, rngs, size)
        ConformerBlocks.__init__(self, rngs, width, cfg)

    def hidden(self, batch: Batch) -> Float[Array, "layers b t u"]:
        """The output of each block."""
        return self.layer_outputs(self.stem(batch), batch)


def encoder_sizes(width: int, cfg: Conformer) -> Sizes:
    """The lengths of a block's dimensions, by the encoder's own letters."""
    heads = {"n": cfg.n, "h": width // cfg.n}
    return heads | {
        "d": width,
        "e": width,
        "f": cfg.f,
        "x": cfg.taps,
        "z": 2 * cfg.distance,
        "i": 1,
    }


class ConformerBlock(nnx.Module):
    """One Conformer block."""

    def __init__(self, rngs: nnx.Rngs, size: Sizes):
        self.mlp_in = ConformerMlp(rngs, size)
        self.attn_norm = LayerNorm(size)
        self.attn = ConformerAttention(rngs, size)
        self.conv = ConformerConvolution(rngs, size)
        self.mlp_out = ConformerMlp(rngs, size)
        self.norm = LayerNorm(size)

    def __call__(
        self, x_bsd: Float[Array, "b s d"], attend: AttendFn, windows: ClipWindows
    ) -> Float[Array, "b s d"]:
        x_bsd = x_bsd + 0.5 * self.mlp_in(x_bsd)
        x_bsd = x_bsd + self.attn(self.attn_norm(x_bsd), attend)
        x_bsd = x_bsd + self.conv(x_bsd, windows)
        x_bsd = x_bsd + 0.5 * self.mlp_out(x_bsd)
        return self.norm(x_bsd)


class ConformerMlp(nnx.Module):
    """down(up x · silu(gate x)) of the normed x, with biases."""

    def __init__(self, rngs: nnx.Rngs, size: Sizes):
        self.norm = LayerNorm(size)
        self.up = weight(rngs, size, "d f", fan_in="d")
        self.up_bias = constant(size, "f", 0.0)
        self.gate = weight(rngs, size, "d f", fan_in="d")
        self.gate_bias = constant(size, "f", 0.0)
        self.down = weight(rngs, size, "f d", fan_in="f")
        self.down_bias = constant(size, "d", 0.0)

    def __call__(self, x_bsd: Float[Array, "b s d"]) -> Float[Array, "b s d"]:
        x_bsd = self.norm(x_bsd)
        up = einsum("bsd,df->bsf", x_bsd, self.up[...]) + self.up_bias[None, None]
        gate = einsum("bsd,df->bsf", x_bsd, self.gate[...]) + self.gate_bias[None, None]
        y_bsf = name_activation(up, "gate_up") * jax.nn.silu(name_activation(gate, "gate_up"))
        return einsum("bsf,fd->bsd", y_bsf, self.down[...]) + self.down_bias[None, None]


class ConformerAttention(nnx.Module):
    """Self-attention of n heads, with biases, its time whole: `s` where others have a split `t`."""

    def __init__(self, rngs: nnx.Rngs, size: Sizes):
        self.q, self.k, self.v = (weight(rngs, size, "d n h", fan_in="d") for _ in range(3))
        self.q_bias, self.k_bias, self.v_bias = (constant(size, "n h", 0.0) for _ in range(3))
        self.o = weight(rngs, size, "n h d", fan_in="n h")
        self.o_bias = constant(size, "d", 0.0)

    def __call__(self, x_bsd: Float[Array, "b s d"], attend: AttendFn) -> Float[Array, "b s d"]:
        pairs = ((self.q, self.q_bias), (self.k, self.k_bias), (self.v, self.v_bias))
        heads = (einsum("bsd,dnh->bsnh", x_bsd, w[...]) + bias[None, None] for w, bias in pairs)
        y_bsnh = name_activation(attend(*(name_activation(x, "qkv") for x in heads)), "attended")
        y_bsd = einsum("bsnh,nhd->bsd", y_bsnh, self.o[...]) + self.o_bias[None, None]
        return name_activation(y_bsd, "out")


class ConformerConvolution(nnx.Module):
    """A gated linear unit, a depth-wise convolution over time, and two point-wise ones.

    f is as wide as d here. A position sees `taps` positions of its window, itself the last.
    """

    def __init__(self, rngs: nnx.Rngs, size: Sizes):
        size = dict(size) | {"f": size["d"]}
        self.norm = LayerNorm(size)
        self.up = weight(rngs, size, "d f", fan_in="d")
        self.up_bias = constant(size, "f", 0.0)
        self.up_shift = constant(size, "i f", 0.0)  # a second bias, as theirs has
        self.gate = weight(rngs, size, "d f", fan_in="d")
        self.gate_bias = constant(size, "f", 0.0)
        self.gate_shift = constant(size, "i f", 0.0)
        self.depth = weight(rngs, size, "x f", fan_in="x")
        self.depth_bias = constant(size, "f", 0.0)
        self.point = weight(rngs, size, "f d", fan_in="f")
        self.point_bias = constant(size, "d", 0.0)
        self.out = weight(rngs, size, "e d", fan_in="e")
        self.out_bias = constant(size, "d", 0.0)

    def __call__(self, x_bsd: Float[Array, "b s d"], windows: ClipWindows) -> Float[Array, "b s d"]:
        x_bsd = self.norm(x_bsd)
        up = einsum("bsd,df->bsf", x_bsd, self.up[...])
        gate = einsum("bsd,df->bsf", x_bsd, self.gate[...])
        up = up + self.up_bias[None, None] + self.up_shift[None]
        gate = gate + self.gate_bias[None, None] + self.gate_shift[None]
        y_bsf = _taps(up * jax.nn.silu(gate), self.depth[...], windows)
        y_bsf = y_bsf + self.depth_bias[None, None]
        y_bsd = einsum("bsf,fd->bsd", y_bsf, self.point[...]) + self.point_bias[None, None]
        y_bsd = einsum("bse,ed->bsd", jax.nn.silu(y_bsd), self.out[...])
        return y_bsd + self.out_bias[None, None]


def _taps(
    x_bsf: Float[Array, "b s f"], depth_xf: Float[Array, "x f"], windows: ClipWindows
) -> Float[Array, "b s f"]:
    """Each channel's sum over itself and the positions before it in its window, in float32."""

    def local(x: Array, depth: Array, places: Array) -> Array:
        taps, wide = len(depth), depth.astype(jnp.float32)
        total = x.astype(jnp.float32) * wide[-1][None, None]
        for back in range(1, min(taps, x.shape[1])):
            earlier = jnp.pad(x, [(0, 0), (back, 0), (0, 0)])[:, :-back].astype(jnp.float32)
            seen = (places >= back)[..., None]
            total += jnp.where(seen, earlier, 0.0) * wide[taps - 1 - back][None, None]
        return total.astype(x.dtype)

    rows = sharding.a("b s f")
    specs = (rows, sharding.w("x f"), sharding.a("b s"))
    taps = jax.shard_map(local, in_specs=specs, out_specs=rows)
    return taps(x_bsf, jax.reshard(depth_xf, specs[1]), windows.places)
